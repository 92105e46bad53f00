"""`deploy.py tune` and `train` with real training jobs, killed and interrupted on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from image_classifier.contract.metrics import parse_metric_line
from image_classifier.contract.outputs import TEST_PREDICTIONS
from image_classifier.launch.runs import Run, Status, find_run
from image_classifier.vision.artifact import unpack
from image_classifier.vision.sample_data import make_sample_data

DEPLOY = Path(__file__).parents[2] / "deploy.py"
SETTINGS = """
[train]
weights = "none"
image_size = 32
epochs = 2
augment = "light"
log_interval = 1

[tune]
trials = 2
prune = false

[tune.search]
lr = { low = 0.005, high = 0.05, log = true }
batch_size = [4, 8]
"""
DEADLINE_S = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with settings and data: a folder a class, to be split."""
    root = tmp_path_factory.mktemp("project")
    (root / "deploy.toml").write_text(SETTINGS)
    make_sample_data(root / "made", num_classes=2, train_per_class=16, valid_per_class=0, test_per_class=0, size=40)
    (root / "made" / "train").rename(root / "data")
    return root


def deploy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)


def interrupt(folder: Path, number: signal.Signals, when: Callable[[], bool], *arguments: str) -> tuple[int, str]:
    """Starts deploy.py, sends it a signal as soon as `when` holds, returns exit status and standard error."""
    command = [sys.executable, str(DEPLOY), *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + DEADLINE_S
        while not when():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, err


def epochs_logged(run: Run) -> list[int]:
    lines = run.log.read_text().splitlines() if run.log.exists() else []
    parsed = [parse_metric_line(line) for line in lines]
    return [each[0] for each in parsed if each is not None and "train:loss" in each[1]]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything that works below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in (process.environ().get("SAGEMAKER_BASE_DIR") or ""):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def split_of(run: Run) -> dict[str, set[str]]:
    """Split -> images, as a run's jobs were told."""
    rows = list(csv.DictReader((run.paths.channel("split") / "split.csv").read_text().splitlines()))
    return {split: {row["path"] for row in rows if row["split"] == split} for split in ("train", "valid", "test")}


def images_tested(run: Run) -> set[str]:
    """The images that a job was tested on."""
    return {row[0] for row in TEST_PREDICTIONS.read(run.paths.output_data)}


def test_killed_search_goes_on_and_its_best_is_trained(folder: Path) -> None:
    runs = folder / "runs"

    def first_trial_has_an_epoch() -> bool:
        return any(epochs_logged(Run(path=path)) for path in runs.glob("tune-*/trials/001"))

    status, _ = interrupt(folder, signal.SIGKILL, first_trial_has_an_epoch, "tune")
    assert status == -signal.SIGKILL
    tuning = find_run(runs, kind="tune")
    trial = Run(path=tuning.path / "trials" / "001")
    gone, alive = psutil.wait_procs(processes_of(folder), timeout=DEADLINE_S)
    assert gone
    assert not alive
    assert tuning.record().status == Status.FAILED
    assert trial.record().status == Status.STOPPED  # its supervisor let it save its state
    assert "Traceback" not in trial.log.read_text()

    first = next((folder / "data").iterdir())
    (first / "later.jpg").write_bytes(next(first.iterdir()).read_bytes())  # no job that has begun sees it
    done = deploy(folder, "tune", "--resume", tuning.name)
    assert done.returncode == 0, done.stderr
    assert [len(images) for images in split_of(trial).values()] == [22, 6, 4]
    assert split_of(Run(path=tuning.path / "trials" / "002")) == split_of(trial)
    with (tuning.path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["Completed", "Completed"]
    assert trial.record().attempts == 2
    assert epochs_logged(trial) == [1, 2]
    best = json.loads((tuning.path / "best.json").read_text())
    assert best["hyperparameters"] == {name: rows[best["trial"] - 1][name] for name in ("lr", "batch_size")}
    assert len(list(tuning.path.glob("trials/*/model/model.safetensors"))) == 1
    for number in (1, 2):
        seen = images_tested(Run(path=tuning.path / "trials" / f"{number:03}"))
        assert seen == (split_of(trial)["test"] if number == best["trial"] else set())

    def has_an_epoch() -> bool:
        return any(epochs_logged(Run(path=path)) for path in runs.glob("train-*"))

    status, err = interrupt(folder, signal.SIGINT, has_an_epoch, "train", "--best", tuning.name, "--epochs", "3")
    run = find_run(runs, kind="train")
    assert status == 130, err
    assert "error: stopped by SIGTERM in epoch" in err
    assert f"deploy.py train --resume {run.name}" in err
    assert run.record().status == Status.STOPPED
    assert not processes_of(folder)

    done = deploy(folder, "train", "--resume", run.name)
    assert done.returncode == 0, done.stderr
    assert epochs_logged(run) == [1, 2, 3]
    assert images_tested(run) == split_of(run)["test"]
    assert sum(map(len, split_of(run).values())) == 33
    record = run.record()
    assert (record.status, record.attempts) == (Status.COMPLETED, 2)
    assert {name: record.config[name] for name in ("lr", "batch_size")} == best["hyperparameters"]
    assert len(unpack(run.archive, folder / "unpacked").classes) == 2
    assert f"python deploy.py serve {run.name}" in done.stderr
    ready = json.loads((run.paths.output_data / "report.json").read_text())["standing"]["ready"]
    assert (f"next: python deploy.py serve {run.name}" in done.stderr) == ready
    assert ("warning: " in done.stderr) != ready
    assert "test accuracy" in done.stdout
    assert not list(run.path.glob("code/image_classifier/launch"))  # the image would not ship it either


def test_failing_job_ends_with_its_first_cause(folder: Path) -> None:
    make_sample_data(folder / "broken", num_classes=2, train_per_class=4, valid_per_class=1, test_per_class=1, size=40)
    unreadable = sorted(folder.glob("broken/train/*"))[0]
    for image in unreadable.iterdir():
        image.write_bytes(b"no image")
    done = deploy(folder, "--debug", "train", "--data", "broken", "--name", "broken")
    run = find_run(folder / "runs", kind="train")
    cause = run.failure().message
    assert done.returncode == 1
    assert unreadable.name in cause
    assert f"error: {cause}" in done.stderr
    assert str(run.log) in done.stderr
    assert run.log.read_text().splitlines()[-1] in done.stderr  # --debug shows the end of the log
    record = run.record()
    assert (record.status, record.failure) == (Status.FAILED, cause)
