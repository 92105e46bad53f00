"""Nothing that runs here calls anybody: a listener that stands for the internet hears nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.proxy import Proxy


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
