"""A server that the tests of a module share, overheard."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.proxy import Proxy
from tests.server_program import PATIENCE_S, Program, start, wait_until_ready

from image_classifier.vision.artifact import Artifact, load_model

EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\n"


@pytest.fixture(scope="module")
def artifact(model_dir: Path) -> Artifact:
    return load_model(model_dir)


@pytest.fixture(scope="module")
def base(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder whose model folder also holds things that a trusting server would run or install."""
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(model_dir, base / "model", copy_function=os.link)
    evil = EVIL.format(marker=str(base / "executed"))
    (base / "model" / "code").mkdir()
    (base / "model" / "code" / "requirements.txt").write_text("/nowhere/to/be-found.whl\n")
    for name in ("inference.py", "sitecustomize.py", "PIL.py", "json.py"):
        (base / "model" / "code" / name).write_text(evil)
        (base / "model" / name).write_text(evil)
    for folder, _, _ in os.walk(base / "model"):
        Path(folder).chmod(0o555)
    return base


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Proxy(listener)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(base: Path, home: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Overheard: what it would send elsewhere comes to `proxy`."""
    overheard = proxy.settings | {"HOME": str(home), "CLASSIFIER_ENGINE": "openvino"}
    overheard |= {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": str(base / "model" / "code")}
    program = start(base, tmp_path_factory.mktemp("server") / "tmp", **overheard)
    try:
        wait_until_ready(program)
        yield program
    finally:
        program.process.terminate()
        program.process.wait(PATIENCE_S)
