"""The source that a job runs is a copy, and comes compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image_classifier.contract.installation import SOURCE
from image_classifier.launch import local
from image_classifier.launch.runs import Run, create_run

PROGRAM = "import image_classifier.contract.config as c; print(c.TrainConfig.from_argv.__func__.__code__.co_filename)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As in a fresh checkout."""
    for name in ("__init__.py", "contract"):
        path, target = SOURCE / "image_classifier" / name, tmp_path / "code" / "image_classifier" / name
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True)
            shutil.copy2(path, target)
    return tmp_path / "code"


def run_in(run: Run) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-v", "-c", PROGRAM],
        env=environment | {"PYTHONPATH": str(run.paths.code)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(run.paths.code / "image_classifier" / "contract" / "config.py")
    return done.stderr


def test_a_job_need_not_compile_its_source(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    run = create_run(tmp_path / "runs", "train", "one")
    local._snapshot(run, ("contract",), source=source)
    cached = f"config.{sys.implementation.cache_tag}.pyc"
    said = run_in(run)
    assert f"# code object from '{run.paths.code}/image_classifier/contract/__pycache__/{cached}'" in said
    assert (source / "image_classifier" / "contract" / "__pycache__" / cached).exists()  # for the next job
    (source / "image_classifier" / "contract" / "__pycache__" / "config.of-another.pyc").write_bytes(b"")
    with (source / "image_classifier" / "contract" / "config.py").open("a") as file:
        file.write("\nCHANGED = True\n")
    other = create_run(tmp_path / "runs", "train", "two")
    local._snapshot(other, ("contract",), source=source)
    assert "\nCHANGED = True\n" in (other.paths.code / "image_classifier" / "contract" / "config.py").read_text()
    assert f"{other.paths.code}/image_classifier/contract/__pycache__/{cached}'" in run_in(other)
    assert not list(other.paths.code.rglob("*.of-another.pyc"))


def test_who_wants_no_bytecode_gets_none(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    run = create_run(tmp_path / "runs", "train", "one")
    local._snapshot(run, ("contract",), source=source)
    assert not list(source.rglob("*.pyc"))
    assert not list(run.paths.code.rglob("*.pyc"))
