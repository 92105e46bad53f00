"""`deploy.py --target docker`: the commands of a user, their jobs in the images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from safetensors.numpy import load_file
from tests.container.conftest import ROOT, docker

from image_classifier.contract.machine import free_port

TINY = ["--weights", "none", "--image-size", "32", "--workers", "0"]


def command(target: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "deploy.py"), "--target", target, *arguments]


def deploy(folder: Path, target: str, *arguments: str) -> None:
    done = subprocess.run(
        command(target, *arguments),
        check=False,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout


def containers() -> set[str]:
    return set(docker("ps", "--all", "--quiet", "--filter", "name=classifier-").stdout.split())


@pytest.fixture(scope="module")
def folder(images: None, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A working folder, of a name that is hard to mount, with the sample images and a finished search in the image."""
    root = tmp_path_factory.mktemp("work") / 'a:b, "c"=d'
    root.mkdir()
    (root / "data").symlink_to(data)
    (root / "deploy.toml").write_text("[tune.search]\nbatch_size = [4, 8]\n")
    deploy(root, "docker", "tune", "--trials", "2", "--epochs", "1", "--name", "t", *TINY)
    return root


def test_best_of_a_search_in_docker_trains_the_same_model_in_docker_and_locally(folder: Path) -> None:
    (tuning,) = (folder / "runs").glob("tune-*")
    best = json.loads((tuning / "best.json").read_text())
    assert set(best["hyperparameters"]) >= {"batch_size"}
    weights = {}
    plain = folder.parent / "plain"  # where a process can find its modules: PYTHONPATH is split at colons
    for target, runs in (("docker", folder / "runs"), ("local", plain)):
        best_file = str(tuning / "best.json")
        deploy(
            folder,
            target,
            "--runs-dir",
            str(runs),
            "train",
            "--best",
            best_file,
            "--name",
            target,
            "--epochs",
            "2",
            *TINY,
        )
        (run,) = runs.glob(f"train-*-{target}")
        weights[target] = load_file(run / "model" / "model.safetensors")
        assert (run / "model.tar.gz").is_file()
        assert all(path.stat().st_uid == os.getuid() for path in run.rglob("*"))
    assert all(np.array_equal(weights["docker"][name], array) for name, array in weights["local"].items())
    assert not containers()


def test_nothing_is_left_running_when_the_launcher_is_killed(folder: Path) -> None:
    log = folder / "killed.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command("docker", "train", "--name", "killed", "--epochs", "500", "--batch-size", "4", *TINY),
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        ) as launcher,
    ):
        wait_until(lambda: "epoch 1/500" in log.read_text() or launcher.poll() is not None)
        (job,) = containers()
        assert confinement(job) == ("none", True, ["ALL"], ["no-new-privileges"], f"{os.getuid()}:{os.getgid()}")
        psutil.Process(launcher.pid).send_signal(signal.SIGKILL)
    wait_until(lambda: not containers())
    (run,) = (folder / "runs").glob("train-*-killed")
    assert "stopped by SIGTERM" in (run / "output" / "failure").read_text()
    assert list((run / "checkpoints").iterdir())


def test_a_container_that_outlived_its_supervisor_is_removed_before_the_run_goes_on(folder: Path) -> None:
    arguments = ["train", "--name", "alone", "--epochs", "20", "--batch-size", "4", *TINY]
    log = folder / "alone.log"
    with log.open("w") as output:
        launcher = psutil.Popen(
            command("docker", *arguments),
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    wait_until(lambda: "epoch 1/20" in log.read_text() or launcher.poll() is not None)
    for process in [*launcher.children(recursive=True), launcher]:  # the supervisor cannot act either
        process.kill()
    launcher.wait()
    (left,) = containers()
    (run,) = (folder / "runs").glob("train-*-alone")
    deploy(folder, "docker", "train", "--resume", run.name)
    assert not containers()
    assert (run / "model.tar.gz").is_file()
    assert docker("inspect", left, check=False).returncode != 0


def test_a_served_model_is_confined_and_answers(folder: Path) -> None:
    """In a container of its own: the published port is the only way in, and nothing but /tmp can be written."""
    port = str(free_port("127.0.0.1", 20_000))
    with subprocess.Popen(
        command("docker", "serve", "--port", port), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(url) or server.poll() is not None)
            (job,) = containers()
            _, *rest = confinement(job)
            assert rest == [True, ["ALL"], ["no-new-privileges"], f"{os.getuid()}:{os.getgid()}"]
            written = docker(
                "exec", job, "sh", "-c", "echo x > /tmp/x && ! echo x > /opt/x && ! echo x > /opt/ml/model/x"
            )
            assert written.stderr.count("Read-only file system") == 2
            deploy(folder, "docker", "predict", "--url", url, "data/test")
        finally:
            server.terminate()
    wait_until(lambda: not containers())


def answers(url: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(f"{url}/ping", timeout=5).status_code == 200
    return False


def confinement(job: str) -> tuple[object, ...]:
    """Network, read-only root, dropped capabilities, security options and user of a container."""
    found = json.loads(docker("inspect", job).stdout)[0]
    host = found["HostConfig"]
    user = found["Config"]["User"]
    return host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"], user


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
