"""The program `train` in a folder laid out as a training container's: ours, and AWS's alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from image_classifier.contract.paths import MlPaths

CODE = Path(__file__).parents[1] / "code"
TRAIN = [sys.executable, "-m", "image_classifier.training.train_program"]
TOOLKITS = [str(Path(sys.executable).parent / "train")]  # AWS's program, without ours
STOPS_WITHIN_S = 60


def prepare(base: Path, **hyperparameters: str) -> MlPaths:
    paths = MlPaths(base=base)
    for folder in (paths.config, paths.model, paths.output_data):
        folder.mkdir(parents=True)
    paths.hyperparameters.write_text(json.dumps({"code": "0", "rate": "0.5"} | hyperparameters))
    paths.resource_config.write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}))
    paths.input_data_config.write_text("{}")
    return paths


def start_toolkits(paths: MlPaths) -> subprocess.Popen[str]:
    """`train` as AWS's images have it."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = ours | {"SAGEMAKER_BASE_DIR": str(paths.base)}
    return subprocess.Popen(
        TOOLKITS, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=paths.base
    )


def start(paths: MlPaths, **variables: str) -> subprocess.Popen[str]:
    """`train` as in the image: our source is elsewhere than in `code`."""
    image = {"SAGEMAKER_TRAINING_MODULE": "image_classifier.training.toolkit_module:main", "PYTHONPATH": str(CODE)}
    environment = os.environ | image | {"SAGEMAKER_BASE_DIR": str(paths.base)} | variables
    return subprocess.Popen(
        TRAIN, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=paths.base
    )


BOTH = pytest.mark.parametrize("starts", [start_toolkits, start], ids=["the toolkit alone", "ours"])


def stopped(paths: MlPaths, starts: Callable[[MlPaths], subprocess.Popen[str]]) -> tuple[int, str]:
    """Exit code, and what was printed, when SIGTERM comes after a program has printed `handles`."""
    with starts(paths) as train:
        assert train.stdout is not None
        for line in train.stdout:
            if line == "handles\n":
                break
        train.send_signal(signal.SIGTERM)
        log, _ = train.communicate(timeout=STOPS_WITHIN_S)
    return train.returncode, log
