"""What AWS's own programs do and ours do not, side by side: each test asserts the one of ours, and the other of AWS's.

docs/sagemaker.md names the public issue to each.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from tests.conftest import jpeg
from tests.server_program import Program
from tests.stock_server import stock_server
from tests.training_program import BOTH, prepare, start, start_toolkits, stopped

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import MlPaths

MODEL = "def model_fn(model_dir):\n    return 1\n\n\ndef predict_fn(data, model):\n    return data.tolist()\n"
BROKEN = "def model_fn(model_dir):\n    raise RuntimeError('the weights are damaged')\n"
SHELL = 'trap "echo stopped; exit 143" TERM\necho handles\nfor i in $(seq 50); do sleep 0.1; done\n'


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of AWS's model server and handler around a model."""
    with stock_server(tmp_path_factory.mktemp("stock"), MODEL) as url:
        yield url


@pytest.fixture(params=["AWS's", "ours"])
def endpoint(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """An address, and whether ours answers there."""
    if request.param == "ours":
        server: Program = request.getfixturevalue("server")
        return server.url, True
    return request.getfixturevalue("stock"), False


def post(url: str, body: bytes, kind: str) -> requests.Response:
    return requests.post(f"{url}/invocations", data=body, headers={"Content-Type": kind}, timeout=60)


@pytest.mark.parametrize("kind", ["application/x-image", "image/png", "image/jpeg; charset=utf-8"])
def test_pictures_are_taken(endpoint: tuple[str, bool], kind: str) -> None:
    url, ours = endpoint
    assert post(url, jpeg(0), kind).status_code == (200 if ours else 500)


def test_what_a_client_did_wrong_is_not_called_an_internal_error_and_shows_no_traceback(
    endpoint: tuple[str, bool],
) -> None:
    url, ours = endpoint
    answer = post(url, b"no image, no JSON", "application/json")
    assert answer.status_code == (400 if ours else 500)
    assert ("Traceback" in answer.text) is not ours


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_no_array_of_a_client_runs_code(endpoint: tuple[str, bool], tmp_path: Path) -> None:
    url, ours = endpoint
    body = io.BytesIO()
    np.lib.format.write_array(body, np.array([_Touch(tmp_path / "executed")], dtype=object), allow_pickle=True)
    assert pickle.PROTO in body.getvalue()
    answer = post(url, body.getvalue(), "application/x-npy")
    assert (tmp_path / "executed").exists() is not ours
    assert not ours or answer.status_code == 415


def test_no_client_takes_the_model_away(endpoint: tuple[str, bool]) -> None:
    """The last that asks AWS's: it has no model afterwards, and says that it is healthy."""
    url, ours = endpoint
    assert (requests.delete(f"{url}/models/model", timeout=60).status_code == 200) is not ours
    assert (post(url, jpeg(0), "image/jpeg").status_code == 200) is ours
    assert requests.get(f"{url}/ping", timeout=60).status_code == 200


def test_awss_says_that_it_is_healthy_though_no_model_could_be_loaded(tmp_path: Path) -> None:
    """Ours ends: test_server_life.py, test_a_model_that_does_not_reproduce_its_golden_samples_is_not_served."""
    with stock_server(tmp_path, BROKEN) as url:
        answer = post(url, b"[1]", "application/json")
        assert (answer.status_code, "the weights are damaged" in answer.text) == (500, True)
        assert requests.get(f"{url}/ping", timeout=60).status_code == 200


def test_awss_installs_what_lies_beside_the_model(tmp_path: Path) -> None:
    """Ours does not: test_server.py, test_nothing_is_run_or_installed_from_the_model_folder."""
    code, target = tmp_path / "model" / "code", tmp_path / "installed"
    code.mkdir(parents=True)
    (code / "requirements.txt").write_text(f"{code}/helper-1.0-py3-none-any.whl\n")
    with zipfile.ZipFile(code / "helper-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("helper.py", "")
        wheel.writestr("helper-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: helper\nVersion: 1.0\n")
        wheel.writestr("helper-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("helper-1.0.dist-info/RECORD", "")
    own = {"SAGEMAKER_BASE_DIR": str(tmp_path), "PIP_TARGET": str(target), "PIP_NO_INDEX": "1", "HOME": str(tmp_path)}
    install = "import sagemaker_inference.model_server as server; server._install_requirements()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", install], env=os.environ | own, check=True, cwd=tmp_path)
    assert (target / "helper.py").is_file()


@BOTH
def test_a_shell_program_gets_the_stop_signal_only_through_ours(
    tmp_path: Path, starts: Callable[[MlPaths], subprocess.Popen[str]]
) -> None:
    paths = prepare(tmp_path, sagemaker_program="mine.sh")
    paths.code.mkdir()
    (paths.code / "mine.sh").write_text(SHELL)
    paths.resource_config.write_text(json.dumps({"current_host": "localhost", "hosts": ["localhost"]}))
    code, log = stopped(paths, starts)
    assert (code, "stopped" in log) == ((143, True) if starts is start else (-signal.SIGTERM, False))


def test_the_recommended_type_reads_false_as_true_and_ours_as_false(tmp_path: Path) -> None:
    paths = prepare(tmp_path, sagemaker_program="mine.py", debug="False")
    paths.code.mkdir()
    (paths.code / "mine.py").write_text(
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--debug', type=bool)\n"
        "print('read', parser.parse_known_args()[0].debug, flush=True)\n"
    )
    paths.resource_config.write_text(json.dumps({"current_host": "localhost", "hosts": ["localhost"]}))
    with start_toolkits(paths) as train:
        log, _ = train.communicate(timeout=60)
    assert "read True\n" in log
    assert TrainConfig.from_argv(["--debug", "False"]).debug is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of smdebug's own protobuf code
def test_the_debuggers_hook_needs_a_file_that_trials_never_have(tmp_path: Path) -> None:
    """Ours records all the same: test_train_job.py runs every job without that file."""
    import smdebug.pytorch as smd

    with pytest.raises(FileNotFoundError, match=r"debughookconfig\.json"):
        smd.Hook.create_from_json_file(json_file_path=str(tmp_path / "debughookconfig.json"))


def test_the_toolkit_rules_out_onnx_which_our_export_does_without() -> None:
    """`export --format onnx` is written and read back by test_exporting.py, in this environment."""
    asked = importlib.metadata.requires("sagemaker-training") or []
    assert any(each.startswith("protobuf") and "<=3.20" in each for each in asked)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("onnx")
