"""Two processes that train one model on the CPU, started through the script as torchrun would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from image_classifier.contract.errors import JobError, JobStopped
from image_classifier.contract.paths import RESTARTS_VARIABLE, MlPaths
from image_classifier.training.distributed import meet
from image_classifier.training.stop import StopFlag
from image_classifier.training.toolkit_module import MAX_RESTARTS, places
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


LAUNCHER = """
import json, logging, os, pathlib, sys
from image_classifier.training.program import TrainingProgram
from image_classifier.training.toolkit_module import run_program
logging.basicConfig()
ours = TrainingProgram(name="train.py", folder=pathlib.Path(sys.argv[1]), is_ours=True)
run_program(ours, sys.argv[3:], json.loads(sys.argv[2]))
"""


def launch(base: Path, data: Path, **changes: str) -> subprocess.Popen[str]:
    """`train` of one host that has two processes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    paths = MlPaths(base=base)
    paths.data.parent.mkdir(parents=True)
    paths.output.mkdir()
    paths.data.symlink_to(data)
    at = [place | {"MASTER_PORT": port} for place in places(["127.0.0.1"], "127.0.0.1", 2, "")]
    words = [word for key, value in (CONFIG | changes).items() for word in (f"--{key}", value)]
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCHER, str(SCRIPT.parent), json.dumps(at), *words]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill_at(launcher: subprocess.Popen[str], line: str, rank: int, *, times: int) -> str:
    """Kills the process of this rank the first times that the line is printed; the whole log."""
    assert launcher.stdout is not None
    log = []
    for printed in launcher.stdout:
        log.append(printed)
        if line in printed and "".join(log).count(line) <= times:
            started = psutil.Process(launcher.pid).children(recursive=True)
            next(process for process in started if is_script(process, rank)).kill()
    launcher.communicate()
    return "".join(log)


def is_script(process: psutil.Process, rank: int) -> bool:
    """Whether it is the script of this rank, and not its supervisor."""
    with suppress(psutil.Error):  # one that has ended meanwhile
        return process.cmdline()[1:2] == ["train.py"] and process.environ().get("RANK") == str(rank)
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, np.ndarray]:
    """The weights of a training that lost no process."""
    base = tmp_path_factory.mktemp("whole") / "ml"
    launcher = launch(base, data, epochs="3")
    log = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0, log
    return load_file(base / "model" / "model.safetensors")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_that_loses_a_process_goes_on_and_ends_with_the_same_model(
    tmp_path: Path, data: Path, undisturbed: dict[str, np.ndarray], rank: int
) -> None:
    launcher = launch(tmp_path / "ml", data, epochs="3")
    log = kill_at(launcher, "epoch=2/3 step=2/3", rank, times=1)
    assert launcher.returncode == 0, log
    assert "was killed by SIGKILL: all start again from the last checkpoint (1 of 3 times)" in log
    assert "the last checkpoint (2 of 3 times)" not in log
    assert not MlPaths(base=tmp_path / "ml").failure.exists()
    got = load_file(tmp_path / "ml" / "model" / "model.safetensors")
    assert all(np.array_equal(got[name], array) for name, array in undisturbed.items())


def test_a_training_that_loses_a_process_again_and_again_ends_with_a_sentence(tmp_path: Path, data: Path) -> None:
    """At each start: how far it comes before it is killed, and whether it has a checkpoint then, is chance."""
    launcher = launch(tmp_path / "ml", data, epochs="500")
    log = kill_at(launcher, "processes: 2, this is number 0", 1, times=MAX_RESTARTS + 1)
    assert launcher.returncode == 128 + signal.SIGKILL, log
    assert log.count("all start again") == MAX_RESTARTS
    assert MlPaths(base=tmp_path / "ml").failure.read_text().startswith("the training script was killed by SIGKILL")


SHORT_MEETING = """
import sys
from image_classifier.training import distributed
from image_classifier.training.script import leave, main
distributed.MEETING_AGAIN_TIMEOUT_S = 3.0
leave(main(sys.argv[1:]))
"""


def launch_hosts(base: Path, data: Path, program: Path, **changes: str) -> list[subprocess.Popen[str]]:
    """`train` of two hosts, each with its own folders and one process."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    launchers = []
    for rank in range(2):
        paths = host(base, rank)
        paths.output.mkdir(parents=True, exist_ok=True)
        if not paths.data.exists():
            paths.data.parent.mkdir(parents=True)
            paths.data.symlink_to(data)
        place = places(["127.0.0.1", "localhost"], ["127.0.0.1", "localhost"][rank], 1, "")[0] | {"MASTER_PORT": port}
        words = [word for key, value in (CONFIG | changes).items() for word in (f"--{key}", value)]
        ours = {"SAGEMAKER_BASE_DIR": str(paths.base), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
        command = [sys.executable, "-c", LAUNCHER, str(program), json.dumps([place]), *words]
        launchers.append(
            subprocess.Popen(
                command, env={**os.environ, **ours}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return launchers


def vanish(launcher: subprocess.Popen[str]) -> None:
    """A host is gone: all of its processes at once, so that none can tell another."""
    everything = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in everything:
            process.send_signal(number)


def wait_for_checkpoint(paths: MlPaths) -> None:
    """One that is whole: it is written behind the training."""
    deadline = time.monotonic() + 100
    while not any(not path.name.startswith(".") for path in paths.checkpoints.glob("*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_vanishes_ends_the_others_with_a_sentence_and_both_go_on_when_started_again(
    tmp_path: Path, data: Path, rank: int
) -> None:
    program = tmp_path / "program"
    program.mkdir()
    (program / "train.py").write_text(SHORT_MEETING)
    launchers = launch_hosts(tmp_path, data, program, epochs="400")
    other, left = launchers[1 - rank], host(tmp_path, 1 - rank)
    wait_for_checkpoint(host(tmp_path, 0))
    vanish(launchers[rank])
    log = "".join(launcher.communicate(timeout=100)[0] for launcher in launchers)
    assert other.returncode == 1, log
    assert "all start again from the last checkpoint (1 of 3 times)" in log
    assert left.failure.read_text().startswith("gave up waiting for "), log
    again = launch_hosts(tmp_path, data, SCRIPT.parent, epochs="400")
    assert again[0].stdout is not None
    first = next(line for line in again[0].stdout if "epoch=" in line)
    assert "epoch=1/400" not in first  # it goes on
    again[1].send_signal(signal.SIGTERM)
    logs = [launcher.communicate(timeout=100)[0] for launcher in again]
    assert [launcher.returncode for launcher in again] == [143, 143], logs
    assert left.failure.read_text().startswith("stopped by SIGTERM in epoch ")


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


def test_those_that_are_left_give_up_sooner_on_one_that_does_not_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.setenv(RESTARTS_VARIABLE, "1")
    monkeypatch.setattr("image_classifier.training.distributed.MEETING_AGAIN_TIMEOUT_S", 0.0)
    with pytest.raises(JobError, match=r"gave up waiting for the other processes \(1 of 2 are here\)") as caught:
        meet(0, 2, StopFlag())
    assert "the log of one that did not come says why" in caught.value.hint


def test_a_store_that_goes_away_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts again may still meet the store of a main process which has not ended yet."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    program = (
        "import sys, time; from torch.distributed import TCPStore\n"
        f"store = TCPStore('127.0.0.1', {port}, 2, is_master=True, wait_for_workers=False)\n"
        "store.add('arrived', int(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "while store.add('arrived', 0) == int(sys.argv[1]): time.sleep(0.05)\n"
        "time.sleep(float(sys.argv[2]))"
    )
    stores: list[subprocess.Popen[str]] = []

    def start_store(arrived: int, stay_s: float) -> None:
        words = [sys.executable, "-c", program, str(arrived), str(stay_s)]
        stores.append(subprocess.Popen(words, text=True, stdout=subprocess.PIPE))
        assert stores[-1].stdout is not None
        assert stores[-1].stdout.readline() == "ready\n"

    class StartsAgain(StopFlag):
        def __bool__(self) -> bool:
            if len(stores) == 1 and stores[0].poll() is not None:
                start_store(1, 60.0)
            return False

    start_store(2, 1.0)  # both were here: a third is one that has started again
    try:
        meet(1, 2, StartsAgain())
        assert len(stores) == 2
    finally:
        for process in stores:
            process.kill()
            process.communicate()
