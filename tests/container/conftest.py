"""The images as SageMaker starts them. Skipped, with the reason, where there is no engine or nothing is built."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from image_classifier.contract.paths import MlPaths
from image_classifier.vision.sample_data import make_sample_data

ROOT = Path(__file__).parents[2]
TRAIN, SERVE = "image-classifier-train:latest", "image-classifier-serve:latest"
SERVE_CPU = "image-classifier-serve-cpu:latest"
HYPERPARAMETERS = {
    "weights": "none", "image_size": "32", "epochs": "2", "batch_size": "4", "log_interval": "1", "workers": "1",
}  # fmt: skip
log = logging.getLogger("docker")


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs one docker command; `make smoke` shows them."""
    log.info("docker %s", shlex.join(arguments))
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips where no Docker engine answers."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker program")
    if docker("version", "--format", "{{.Server.Version}}", check=False).returncode != 0:
        pytest.skip("no Docker engine answers (docker/ci-engine.sh starts one on a bare Debian machine)")


@pytest.fixture(scope="session")
def images(engine: None) -> None:
    """All images with the code as it is now; built before by `make build`, so that this takes seconds."""
    if any(docker("image", "inspect", image, check=False).returncode != 0 for image in (TRAIN, SERVE, SERVE_CPU)):
        pytest.skip("the images are not built (make build)")
    build = "[[ ! -f build/engine/env ]] || . build/engine/env; ./build_and_push.sh build"
    done = subprocess.run(["bash", "-c", build], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Container:
    """A running container. Its log, its end, and what it left in its mounts are what tests look at."""

    def __init__(self, image: str, command: str, *flags: str) -> None:
        self.id = docker("run", "--detach", *flags, image, command).stdout.strip()

    @property
    def log(self) -> str:
        done = docker("logs", self.id)
        return done.stdout + done.stderr

    @property
    def running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.id).stdout.strip() == "true"

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return int(docker("wait", self.id).stdout)

    def stop(self, seconds: int) -> int:
        """SIGTERM, then SIGKILL after `seconds`, as SageMaker does. Returns the exit code: 137 means killed."""
        docker("stop", "--time", str(seconds), self.id)
        return self.wait()

    def wait_for(self, line: str, seconds: float = 240) -> None:
        """Returns when `line` is in the log; fails when the container ends or the time is over."""
        deadline = time.monotonic() + seconds
        while line not in (text := self.log):
            assert self.running or line in self.log, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)


@contextmanager
def container(image: str, command: str, *flags: str) -> Iterator[Container]:
    started = Container(image, command, *flags)
    try:
        yield started
    finally:
        docker("rm", "--force", "--volumes", started.id)


def make_job(base: Path, data: Path, *, hosts: tuple[str, ...] = ("algo-1",), **hyperparameters: str) -> MlPaths:
    """The folders of a job as SageMaker prepares them."""
    paths = MlPaths(base=base)
    for folder in (paths.config, paths.model, paths.output, paths.checkpoints):
        folder.mkdir(parents=True)
    shutil.copytree(data, paths.data)
    write(paths.hyperparameters, HYPERPARAMETERS | hyperparameters)
    write(paths.input_data_config, {folder.name: {} for folder in paths.data.iterdir()})
    write(paths.resource_config, {"current_host": hosts[0], "hosts": hosts, "network_interface_name": "eth0"})
    return paths


def write(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value))


def train_flags(paths: MlPaths, host: str = "algo-1") -> list[str]:
    """How SageMaker runs a training container without network, with our user's ids so that files can be removed."""
    mounts = [
        (paths.base / "input", "/opt/ml/input:ro"),
        (paths.model, "/opt/ml/model"),
        (paths.output, "/opt/ml/output"),
        (paths.checkpoints, "/opt/ml/checkpoints"),
    ]
    volumes = [flag for source, target in mounts for flag in ("--volume", f"{source}:{target}")]
    user = f"{os.getuid()}:{os.getgid()}"
    return [*volumes, "--user", user, "--hostname", host, "--shm-size", "1g", "--env", "OMP_NUM_THREADS=1"]


NO_NETWORK = ("--network", "none", "--add-host", "algo-1:127.0.0.1")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(root, num_classes=2, train_per_class=8, valid_per_class=2, test_per_class=2, size=48)
    return root


@pytest.fixture(scope="session")
def trained(images: None, tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[MlPaths, str]:
    """A job that ran through in the train image, and its log."""
    paths = make_job(tmp_path_factory.mktemp("job") / "ml", data)
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        assert job.wait() == 0, job.log
        return paths, job.log
