"""Trainings that are forked from one process: what they compute, how each ends, and what becomes of the others."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.head_training import CONFIG, make_pictures
from tests.processes import lives

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import HISTORY
from image_classifier.launch import local
from image_classifier.launch.job_data import channels_for
from image_classifier.launch.process import Job
from image_classifier.launch.runs import Record, Run, open_run
from image_classifier.tuning.best_trial import ask_for_metrics_alone

DEADLINE_S = 120
LONG = CONFIG.replace(epochs=10_000)  # to be ended by something else
OTHERS: set[psutil.Process] = set()
VARIES = ("seconds", "train:images_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def search(tmp_path: Path, data: Path) -> Run:
    return open_run(tmp_path / "runs" / "search", Record(kind="tune", data=str(data), config={}))


def trial(search: Run, number: int, config: TrainConfig) -> Run:
    """The folder of a training, prepared."""
    data = Path(search.record().data)
    record = Record(kind="train", data=str(data), config=config.to_hyperparameters())
    run = open_run(search.path / "trials" / f"{number:03}", record)
    local.prepare_training(run, config, channels_for(data, search))
    return run


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status_of(job: Job) -> int:
    wait(lambda: job.poll() is not None)
    status = job.poll()
    assert status is not None
    return status


def ended(run: Run, share: int = 1) -> int:
    """Starts a training, waits for its end and returns the exit status."""
    with local.start_training(run, share=share) as job:
        return status_of(job)


def trains(run: Run) -> bool:
    return "metrics epoch=" in run.log.read_text()


def process_of(run: Run) -> psutil.Process:
    """The process that trains: it works in the folder of its source."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(run.paths.code.resolve()):
                found.append(process)
        except psutil.Error:
            continue
    return next(each for each in found if each.ppid() not in [one.pid for one in found])


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """What tests before these have started lives on, and is none of this family."""
    OTHERS.update(psutil.Process().children(recursive=True))
    yield
    OTHERS.clear()


def family() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if process not in OTHERS]


def learned(run: Run) -> list[dict[str, Any]]:
    """What a training found, without its times."""
    result = run.result()
    rows = [*HISTORY.read(run.paths.output_data), {**result, "metrics": {}}, result["metrics"]]
    return [{name: value for name, value in row.items() if name not in VARIES} for row in rows]


def files(run: Run) -> list[str]:
    """What a training left, down to the files of single steps."""
    return sorted(str(path.relative_to(run.paths.output)) for path in run.paths.output.rglob("*"))


def test_forked_trainings_of_a_head_compute_and_leave_what_a_process_of_its_own_does(search: Run) -> None:
    alone, forked, again = (trial(search, number, CONFIG) for number in (1, 2, 3))
    assert ended(alone) == 0
    with local.forked_trainings(search):
        assert ended(forked) == 0
        assert ended(again) == 0
    assert learned(forked) == learned(alone) == learned(again)
    assert files(forked) == files(alone) == files(again)
    models = [(run.paths.model / "model.safetensors").read_bytes() for run in (alone, forked, again)]
    assert models[0] == models[1] == models[2]
    assert "sagemaker-training-toolkit" in alone.log.read_text()
    assert "sagemaker-training-toolkit" not in forked.log.read_text()
    assert not family()


def test_forked_trainings_on_pictures_share_them_and_compute_and_leave_the_same(search: Run) -> None:
    config = CONFIG.replace(fine_tune="full", workers=1, debug=True, activation_interval=0, epochs=2)
    alone, forked, again = (trial(search, number, config) for number in (1, 2, 3))
    for run in (alone, forked, again):
        ask_for_metrics_alone(run)
    assert ended(alone) == 0
    with local.forked_trainings(search):
        assert ended(forked) == 0
        assert ended(again) == 0
    assert learned(forked) == learned(alone) == learned(again)
    assert files(forked) == files(alone) == files(again)
    for run in (forked, again):
        assert "all 18 train images are kept decoded" in run.log.read_text()


def test_each_ends_in_its_own_way_and_the_others_do_not_notice(search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = trial(search, 1, CONFIG.replace(weights="/nowhere/weights.pth"))
    killed, stopped = trial(search, 2, LONG), trial(search, 3, LONG)
    fine, later, other = trial(search, 4, CONFIG), trial(search, 5, CONFIG), trial(search, 6, CONFIG)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with local.forked_trainings(search), ExitStack() as jobs:
        started = [jobs.enter_context(local.start_training(run, share=2)) for run in (failing, killed, stopped, fine)]
        wait(lambda: trains(killed) and trains(stopped))
        process_of(killed).kill()
        started[2].stop()
        assert [status_of(job) for job in started] == [1, 137, 143, 0]
        assert "/nowhere/weights.pth" in failing.failure().message
        assert killed.failure().message == "the training script was killed by SIGKILL"
        assert "memory ran out" in killed.failure().hint
        assert stopped.failure().message.startswith("stopped by SIGTERM in epoch")
        assert any(stopped.paths.checkpoints.iterdir())
        assert fine.result()["outcome"] == "completed"

        assert ended(later, share=2) == 0  # the process is as it was
        monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as of a job that has other cores: not from this process
        assert ended(other) == 0
        assert "sagemaker-training-toolkit" not in later.log.read_text()
        assert "sagemaker-training-toolkit" in other.log.read_text()
    assert not family()


def test_a_stop_and_a_kill_before_the_first_fork_are_obeyed(search: Run) -> None:
    with local.forked_trainings(search):
        stopped = trial(search, 1, LONG)
        with local.start_training(stopped) as job:
            job.stop()
            assert status_of(job) == 143
        assert stopped.failure().message.startswith("stopped by SIGTERM")
    with local.forked_trainings(search):
        with local.start_training(trial(search, 2, LONG)) as job:
            job.kill()
            assert status_of(job) == 137
        assert not family()


def test_trainings_of_a_killed_server_or_supervisor_are_killed_and_the_next_one_gets_another(search: Run) -> None:
    first, second, third = trial(search, 1, LONG), trial(search, 2, LONG), trial(search, 3, CONFIG)
    with local.forked_trainings(search):
        with local.start_training(first) as one, local.start_training(second) as two:
            wait(lambda: trains(first) and trains(second))
            training, other = process_of(first), process_of(second)
            supervisor = training.parent()
            assert supervisor is not None
            supervisor.kill()
            assert status_of(one) == 137
            wait(lambda: not lives(training))
            assert two.poll() is None
            server = other.parents()[1]
            server.send_signal(signal.SIGKILL)
            assert status_of(two) == 137
            wait(lambda: not other.is_running())
        assert ended(third) == 0
    assert not family()
