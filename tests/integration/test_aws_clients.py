"""AWS's own clients ask our endpoint: what stands in `examples/`, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import MODEL_CLASSES, jpeg
from tests.runtime_stand_in import runtime
from tests.server_program import Program

from image_classifier.vision.artifact import Artifact

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SDK_V2 = Path(os.environ.get("SDK_V2_PYTHON") or ROOT / "build" / "sdk-v2" / "bin" / "python")
CLIENTS = ("predict_boto3.py", "predict_sdk_v3.py", "predict_sdk_v2.py")


@pytest.fixture(scope="module")
def aws(server: Program) -> Iterator[dict[str, str]]:
    with runtime(server.url, "image-classifier") as variables:
        yield variables


def sdk_v2() -> str:
    """The Python that has version 2 of the SDK."""
    if not SDK_V2.exists():
        pytest.skip("there is no environment with version 2 of the SDK: `make sdk-v2` makes one")
    return str(SDK_V2)


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> list[str]:
    """The command of an example."""
    python = sdk_v2() if "v2" in request.param else sys.executable
    return [python, str(EXAMPLES / request.param)]


def ask(
    command: list[str], aws: dict[str, str], folder: Path, photo: bytes, endpoint: str = "image-classifier"
) -> subprocess.CompletedProcess[str]:
    (folder / "photo.jpg").write_bytes(photo)
    own = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, endpoint, "photo.jpg"], env=own | aws, cwd=folder, check=False, capture_output=True, text=True
    )


def test_an_example_prints_what_the_model_answers(
    client: list[str], aws: dict[str, str], tmp_path: Path, artifact: Artifact
) -> None:
    sample = artifact.golden[0]
    done = ask(client, aws, tmp_path, sample.image)
    assert done.returncode == 0, done.stderr
    best = sorted(zip(sample.probabilities, MODEL_CLASSES, strict=True), reverse=True)[:3]
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" *\d\.\d+ ", line)]
    assert [row[1] for row in rows] == [label for _, label in best]
    assert [float(row[0]) for row in rows] == pytest.approx([probability for probability, _ in best], abs=1e-3)


def test_a_client_is_told_what_is_wrong_with_a_photo(client: list[str], aws: dict[str, str], tmp_path: Path) -> None:
    done = ask(client, aws, tmp_path, b"no image")
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())  # version 2 draws its tracebacks on standard output
    assert "(ModelError)" in said
    assert "client error (400)" in said
    assert ask(client, aws, tmp_path, jpeg(0), "another").returncode != 0


def test_the_documented_predictor_of_version_2_is_answered(
    aws: dict[str, str], tmp_path: Path, artifact: Artifact
) -> None:
    page = (ROOT / "docs" / "sagemaker.md").read_text(encoding="utf-8")
    (snippet,) = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Predictor" in each]
    sample = artifact.golden[0]
    done = ask([sdk_v2(), "-c", snippet], aws, tmp_path, sample.image)
    assert done.returncode == 0, done.stderr
    best = MODEL_CLASSES[max(range(len(MODEL_CLASSES)), key=lambda index: sample.probabilities[index])]
    assert f"{{'label': {best!r}, 'probability': " in done.stdout


def test_the_package_list_holds_by_the_sdks_name() -> None:
    """`sagemaker` is in the locks of what runs deploy.py, and costs them nothing but its line."""
    for name in ("deploy", "dev"):
        assert "\nsagemaker==3.0 " in (ROOT / "requirements" / f"{name}.txt").read_text()
