"""Nothing that runs here calls anybody: a listener that stands for the internet hears nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

CODE = Path(__file__).parents[2] / "code"


class Proxy:
    """Hears what would go out: the first line of everything that is sent to it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.heard: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """For a program that is to be overheard: no settings that would keep it quiet, and a home of its own."""
        url = "http://{}:{}".format(*self._listener.getsockname())
        kept = {name: value for name, value in os.environ.items() if name not in {"CI", "HOME", "NO_PROXY", "no_proxy"}}
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        return kept | dict.fromkeys(names, url) | {"PYTHONPATH": str(CODE)}

    def _listen(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    self.heard.append(connection.recv(4096).decode(errors="replace").partition("\r\n")[0])


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Proxy(listener)


@pytest.mark.parametrize(
    "program",
    [
        # the engine of the endpoint, with time for what it may have started in the background
        "from image_classifier.serving.quiet_openvino import openvino\n"
        "import time; openvino.Core().available_devices; time.sleep(2)",
        "import optuna; optuna.create_study().optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=2)",
        "import image_classifier.training.job, image_classifier.report, smdebug.pytorch",
        "import sagemaker.core.resources, boto3, moto, rich.console",
    ],
    ids=["openvino", "optuna", "training", "aws"],
)
def test_no_library_calls_home(proxy: Proxy, tmp_path: Path, program: str) -> None:
    environment = proxy.environment | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert proxy.heard == []
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
