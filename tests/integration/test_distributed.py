"""Two processes that train one model on the CPU, started through the script as torchrun would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from image_classifier.contract.errors import JobError, JobStopped
from image_classifier.contract.paths import MlPaths
from image_classifier.training.distributed import meet
from image_classifier.training.stop import StopFlag
from image_classifier.training.toolkit_module import places
from image_classifier.vision.artifact import load_model
from image_classifier.vision.sample_data import make_sample_data

SCRIPT = Path(__file__).parents[2] / "code" / "train.py"
CONFIG = {
    "weights": "none", "image_size": "32", "epochs": "2", "batch_size": "5", "log_interval": "1", "workers": "0",
    "amp": "off", "augment": "light", "fine_tune": "head", "lr": "0.05", "debug": "False", "profile": "False",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(root, num_classes=2, train_per_class=7, valid_per_class=2, test_per_class=2, size=48)
    return root


def start(base: Path, *data: Path, size: int = 0, **changes: str) -> list[subprocess.Popen[str]]:
    """Starts a process for each of `data`. Each has, as on a host of its own, its own folders. `size`: with those that
    never come."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    processes = []
    for rank, place in enumerate(places(["127.0.0.1"], "127.0.0.1", size or len(data), "")[: len(data)]):
        paths = host(base, rank)
        paths.data.parent.mkdir(parents=True)
        paths.data.symlink_to(data[rank])
        ours = {"SAGEMAKER_BASE_DIR": str(paths.base), "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
        command = [
            sys.executable,
            SCRIPT,
            *(word for key, value in (CONFIG | changes).items() for word in (f"--{key}", value)),
        ]
        environment = {**os.environ, **place, **ours}
        processes.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    return processes


def train(base: Path, *data: Path) -> tuple[list[int], list[str]]:
    """Runs them to their ends; exit codes and logs by rank."""
    processes = start(base, *data)
    logs = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], logs


def host(base: Path, rank: int) -> MlPaths:
    return MlPaths(base=base / f"host-{rank}")


def test_two_processes_train_the_model_that_one_trains(tmp_path: Path, data: Path) -> None:
    """With the batch norms of the body frozen, how a batch is divided must not matter."""
    codes, logs = train(tmp_path / "one", data)
    assert codes == [0], logs
    codes, logs = train(tmp_path / "two", data, data)
    assert codes == [0, 0], logs
    assert logs[1] == ""
    assert not host(tmp_path / "two", 1).model.exists()
    alone, together = (host(tmp_path / name, 0) for name in ("one", "two"))
    results = [json.loads((paths.output_data / "metrics.json").read_text())["metrics"] for paths in (alone, together)]
    assert results[1]["train:loss"] == pytest.approx(results[0]["train:loss"], rel=1e-4)
    assert results[1]["train:accuracy"] == results[0]["train:accuracy"]
    expected, got = (load_file(paths.model / "model.safetensors") for paths in (alone, together))
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_hosts_with_different_images_are_refused(tmp_path: Path, data: Path) -> None:
    other = tmp_path / "other"
    make_sample_data(other, num_classes=2, train_per_class=6, valid_per_class=2, test_per_class=2, size=48)
    codes, logs = train(tmp_path, data, other)
    assert codes == [1, 1], logs
    for rank in range(2):
        assert host(tmp_path, rank).failure.read_text().startswith("the hosts see different images")


def test_a_follower_ends_only_when_the_model_and_the_report_are_written(tmp_path: Path, data: Path) -> None:
    """A starter that ends everything as soon as one process has ended, as docker-compose does, loses nothing."""
    main, follower = start(tmp_path, data, data)
    log = follower.communicate(timeout=120)
    written = [load_model(host(tmp_path, 0).model).classes, (host(tmp_path, 0).output_data / "report.html").is_file()]
    main.communicate(timeout=60)
    assert (main.returncode, follower.returncode) == (0, 0), log
    assert written == [load_model(host(tmp_path, 0).model).classes, True]


def test_a_failure_after_the_last_epoch_ends_every_process_with_its_reason(tmp_path: Path, data: Path) -> None:
    (tmp_path / "host-0").mkdir()
    (tmp_path / "host-0" / "model").write_text("in the way of the folder")
    codes, logs = train(tmp_path, data, data)
    assert codes == [4, 4], logs
    reasons = [host(tmp_path, rank).failure.read_text() for rank in range(2)]
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith(f"Not a directory: {host(tmp_path, 0).model}")


def test_a_stop_of_one_process_stops_all_at_the_same_step(tmp_path: Path, data: Path) -> None:
    main, follower = start(tmp_path, data, data, epochs="500")
    assert main.stdout is not None
    log = []
    for line in main.stdout:
        log.append(line)
        if "epoch=2/500 step=2/" in line:
            follower.send_signal(signal.SIGTERM)
            break
    for process in (main, follower):
        log.append(process.communicate(timeout=60)[0])
    assert (main.returncode, follower.returncode) == (143, 143), log
    failures = [host(tmp_path, rank).failure.read_text() for rank in range(2)]
    assert failures[0] == failures[1]
    assert failures[0].startswith("stopped by SIGTERM in epoch ")
    assert len(list(host(tmp_path, 0).checkpoints.iterdir())) >= 1
    assert not host(tmp_path, 1).checkpoints.exists()


def test_a_stop_ends_the_wait_for_a_process_that_never_comes(tmp_path: Path, data: Path) -> None:
    main, follower = start(tmp_path, data, data, size=3)
    assert main.stdout is not None
    log = []
    for line, process in (("2 of 3 are here", follower), ("1 of 3 are here", main)):
        for printed in main.stdout:
            log.append(printed)
            if line in printed:
                break
        process.send_signal(signal.SIGTERM)
    for process in (main, follower):
        log.append(process.communicate(timeout=60)[0])
    assert (main.returncode, follower.returncode) == (143, 143), log
    for rank, arrived in ((0, 1), (1, 2)):
        expected = f"stopped by SIGTERM while waiting for the other processes ({arrived} of 3 are here)"
        assert host(tmp_path, rank).failure.read_text().startswith(expected)


class StopAtThirdLook(StopFlag):
    looks = 0

    def __bool__(self) -> bool:
        self.looks += 1
        self.reason = "SIGTERM" if self.looks == 3 else None
        return self.reason is not None


def test_a_stop_ends_the_wait_for_a_main_process_that_never_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(JobStopped, match="stopped by SIGTERM while waiting for 127"):
        meet(1, 2, StopAtThirdLook())
    monkeypatch.setattr("image_classifier.training.distributed.MEETING_TIMEOUT_S", 0.0)
    with pytest.raises(JobError, match="gave up waiting for 127"):
        meet(1, 2, StopFlag())
