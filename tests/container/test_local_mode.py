"""Both images under the local modes of AWS's own SDKs, as `examples/local_mode_sdk_v2.py` and `..._v3.py` have it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.container.conftest import ROOT, SERVE, TRAIN

SDK_V2 = Path(os.environ.get("SDK_V2_PYTHON") or ROOT / "build" / "sdk-v2" / "bin" / "python")
SDK_V3 = Path(os.environ.get("SDK_V3_PYTHON") or ROOT / "build" / "sdk-v3" / "bin" / "python")
VARIABLES = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


def test_the_sdk_fits_on_one_and_two_hosts_deploys_predicts_and_transforms(
    images: None, data: Path, tmp_path: Path
) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("there is no docker-compose program")
    if not SDK_V2.exists():
        pytest.skip("there is no environment with version 2 of the SDK: `make sdk-v2` makes one")
    command = [SDK_V2, ROOT / "examples" / "local_mode_sdk_v2.py", data, tmp_path, TRAIN, SERVE]
    done = subprocess.run(
        command, env=os.environ | VARIABLES, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    # what containers print comes in between, and the SDK's own signs without an end of line
    said = re.findall(r"fit on \d host|predicted: \[\{'label': '\w+'|transformed: \d+", done.stdout)
    assert [each.split(":")[0] for each in said] == ["fit on 1 host", "fit on 2 host", "predicted", "transformed"]
    assert said[-1] == "transformed: 8"
    for hosts in (1, 2):
        (archive,) = (tmp_path / f"output-{hosts}").rglob("model.tar.gz")
        assert archive.stat().st_size > 1_000_000


def test_version_3_of_the_sdk_trains_on_one_and_two_hosts(images: None, data: Path, tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("there is no docker-compose program")
    if not SDK_V3.exists():
        pytest.skip("there is no environment with version 3 of the SDK: `make sdk-v3` makes one")
    command = [SDK_V3, ROOT / "examples" / "local_mode_sdk_v3.py", data, tmp_path / "work", TRAIN]
    done = subprocess.run(
        command, env=os.environ | VARIABLES, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.findall(r"trained on (\d) host", done.stdout) == ["1", "2"]
    for hosts in (1, 2):
        archive = tmp_path / "work" / f"hosts-{hosts}" / "compressed_artifacts" / "model.tar.gz"
        assert archive.stat().st_size > 1_000_000
