"""A program of the user's own in the training container: `sagemaker_program`, `sagemaker_submit_directory`."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from tests.training_program import BOTH, prepare, start, stopped

from image_classifier.contract.paths import MlPaths

MINE = """
import json, os, pathlib, sys
import helper
print("mine", json.dumps(sys.argv[1:]), os.environ["SM_HP_RATE"], os.getcwd(), helper.WORD, flush=True)
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.txt").write_text("trained")
sys.exit(int(os.environ["SM_HP_CODE"]))
"""


def archive(files: dict[str, str | bytes]) -> bytes:
    """A sourcedir.tar.gz as the SageMaker SDK makes it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def run(paths: MlPaths, **variables: str) -> tuple[int, str]:
    with start(paths, **variables) as train:
        log, _ = train.communicate(timeout=120)
    return train.returncode, log


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of a stand-in for S3 with a bucket `scripts`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


def test_a_program_in_s3_runs_as_in_awss_images(tmp_path: Path, store: str) -> None:
    """What `Estimator(entry_point=..., source_dir=..., dependencies=...)` sends: every value is JSON."""
    s3 = boto3.client(
        "s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    s3.create_bucket(Bucket="scripts")
    s3.put_object(
        Bucket="scripts", Key="job/sourcedir.tar.gz", Body=archive({"mine.py": MINE, "helper.py": "WORD = 'there'"})
    )
    paths = prepare(
        tmp_path,
        sagemaker_program='"mine.py"',
        sagemaker_submit_directory='"s3://scripts/job/sourcedir.tar.gz"',
        sagemaker_job_name='"mine-1"',
        sagemaker_region='"us-east-1"',
        sagemaker_container_log_level="20",
    )
    code, log = run(paths, S3_ENDPOINT_URL=store, **CREDENTIALS)
    assert code == 0, log
    assert f'mine ["--code", "0", "--rate", "0.5"] 0.5 {paths.code.resolve()} there' in log
    assert (paths.model / "weights.txt").read_text() == "trained"
    assert not paths.failure.exists()


def test_a_program_that_is_not_in_s3_is_a_sentence(tmp_path: Path, store: str) -> None:
    paths = prepare(tmp_path, sagemaker_program="mine.py", sagemaker_submit_directory="s3://scripts/nothing.tar.gz")
    code, log = run(paths, S3_ENDPOINT_URL=store, **CREDENTIALS)
    assert code == 1
    assert paths.failure.read_text().startswith("the program cannot be fetched from s3://scripts/nothing.tar.gz: ")
    assert "Traceback" not in log


def test_a_mounted_folder_is_run_with_what_its_requirements_name_and_its_exit_code_is_the_jobs(tmp_path: Path) -> None:
    """As local mode mounts a source folder over /opt/ml/code; requirements are installed where PIP_TARGET says."""
    paths = prepare(tmp_path, sagemaker_program="mine.py", sagemaker_submit_directory=str(tmp_path / "code"), code="7")
    paths.code.mkdir()
    (paths.code / "mine.py").write_text(MINE)
    (paths.code / "requirements.txt").write_text("./helper-1.0-py3-none-any.whl\n")
    with zipfile.ZipFile(paths.code / "helper-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("helper.py", "WORD = 'installed'")
        wheel.writestr("helper-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: helper\nVersion: 1.0\n")
        wheel.writestr("helper-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("helper-1.0.dist-info/RECORD", "")
    code, log = run(paths, PIP_TARGET=str(paths.code), PIP_NO_INDEX="1")
    assert code == 7, log
    assert "installed" in log
    assert paths.failure.read_text() == "mine.py ended with exit code 7\nhint: the log says why"


@pytest.mark.parametrize(
    ("given", "files", "code", "sentence"),
    [
        ({"sagemaker_program": "other.py"}, {"mine.py": ""}, 2, "sagemaker_program names 'other.py', which is not in"),
        (
            {"sagemaker_submit_directory": "s3://b/k"},
            {},
            2,
            "sagemaker_submit_directory comes without sagemaker_program",
        ),
        ({"sagemaker_program": "mine.py", "sagemaker_mpi_enabled": "true"}, {"mine.py": ""}, 2, "asks for MPI"),
        (
            {"sagemaker_program": "mine.py", "sagemaker_submit_directory": "/no.tar"},
            {},
            1,
            "cannot be fetched from /no",
        ),
        (
            {"sagemaker_program": "mine.py"},
            {"mine.py": "", "requirements.txt": "./no.whl"},
            1,
            "what requirements.txt beside mine.py asks for could not be installed",
        ),
    ],
)
def test_what_cannot_be_run_is_a_sentence(
    tmp_path: Path, given: dict[str, str], files: dict[str, str], code: int, sentence: str
) -> None:
    paths = prepare(tmp_path, **given)
    paths.code.mkdir()
    for name, content in files.items():
        (paths.code / name).write_text(content)
    done, log = run(paths, PIP_NO_INDEX="1")
    assert done == code, log
    assert sentence in paths.failure.read_text()
    assert "Traceback" not in log or "requirements.txt" in files


def test_a_shell_program_gets_the_stop_signal(tmp_path: Path) -> None:
    paths = prepare(tmp_path, sagemaker_program="mine.sh", words="a 'b'")
    paths.code.mkdir()
    (paths.code / "mine.sh").write_text(
        'trap "echo stopped; exit 143" TERM\necho "got $*"\nwhile :; do sleep 0.1; done\n'
    )
    with start(paths) as train:
        assert train.stdout is not None
        seen = []
        for line in train.stdout:
            seen.append(line)
            if line.startswith("got "):
                break
        train.send_signal(signal.SIGTERM)
        seen.append(train.communicate(timeout=30)[0])
    assert train.returncode == 143, seen
    assert "got --code 0 --rate 0.5 --words a 'b'\n" in seen
    assert "stopped" in seen[-1]


def test_without_any_ours_is_run_also_with_a_folder_mounted_over_all_of_opt_ml(tmp_path: Path) -> None:
    paths = prepare(tmp_path)  # whose hyperparameters are not ours
    assert run(paths)[0] == 2
    assert paths.failure.read_text().startswith("unknown hyperparameter 'code'")


HANDLES = """
import os, signal, sys, time
def stop(*_):
    os.write(1, b"saved\\n")  # it may come in the middle of a print
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("handles", flush=True)
time.sleep(20)
"""


@BOTH
def test_sigterm_reaches_a_program_only_through_ours(
    tmp_path: Path, starts: Callable[[MlPaths], subprocess.Popen[str]]
) -> None:
    paths = prepare(tmp_path, sagemaker_program="mine.py")
    paths.code.mkdir()
    (paths.code / "mine.py").write_text(HANDLES)
    paths.resource_config.write_text(json.dumps({"current_host": "localhost", "hosts": ["localhost"]}))
    code, log = stopped(paths, starts)
    assert (code, "saved" in log) == ((143, True) if starts is start else (-signal.SIGTERM, False))


@BOTH
def test_an_exit_code_stays_as_it_is_only_through_ours_and_a_reason_written_by_the_program_stays(
    tmp_path: Path, starts: Callable[[MlPaths], subprocess.Popen[str]]
) -> None:
    paths = prepare(tmp_path, sagemaker_program="mine.py")
    paths.code.mkdir()
    (paths.code / "mine.py").write_text(f"open({str(paths.failure)!r}, 'w').write('no luck')\nraise SystemExit(7)\n")
    paths.resource_config.write_text(json.dumps({"current_host": "localhost", "hosts": ["localhost"]}))
    with starts(paths) as train:
        train.communicate(timeout=30)
    assert (train.returncode, paths.failure.read_text()) == (7 if starts is start else 1, "no luck")


@BOTH
def test_a_job_without_input_is_a_sentence_only_with_ours(
    tmp_path: Path, starts: Callable[[MlPaths], subprocess.Popen[str]]
) -> None:
    with starts(MlPaths(base=tmp_path)) as train:
        log, _ = train.communicate(timeout=30)
    assert train.returncode == (2 if starts is start else 0)
    assert log.startswith("error: ") is (starts is start)
    assert starts is start or log == ""
