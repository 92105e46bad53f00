"""The search: which trials are run, what becomes of good, hopeless and crashing ones, and how it goes on.

The training job is a stand-in here, a script that logs what a job logs; integration/test_tune_job.py has the real one.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from image_classifier.cli import settings
from image_classifier.contract.errors import ConfigError, JobError, JobStopped, PlatformError
from image_classifier.contract.outputs import HISTORY, BestEpoch
from image_classifier.contract.search import Categorical, Continuous, Integer
from image_classifier.launch import local
from image_classifier.launch.process import Interrupts, Job
from image_classifier.launch.runs import Record, Run, Status, open_run
from image_classifier.launch.view import SILENT, Live, View
from image_classifier.tuning import tuner as tune
from image_classifier.tuning.best_trial import remember
from image_classifier.tuning.plan import combinations, num_combinations
from image_classifier.tuning.study import distribution, open_study
from image_classifier.tuning.trials import TrialRow, pick_best
from image_classifier.tuning.tuner import find_best
from image_classifier.vision.sample_data import make_sample_data

# Learns to `batch_size` percent. Batch size 13 crashes, 15 is stopped by a rule, 17 finds the disk full; 19 and 21
# learn, but cannot be tested. An existing checkpoint makes it skip the epochs it counts.
STAND_IN = """
import json, pathlib, signal, sys, time
base = pathlib.Path.cwd()
hyper = json.loads((base / "input/config/hyperparameters.json").read_text())
batch, epochs = int(hyper["batch_size"]), int(hyper["epochs"])
def stop(*_):
    (base / "output/failure").write_text("stopped by SIGTERM")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if batch == 13:
    (base / "output/failure").write_text("thirteen is unlucky\\nhint: take another")
    sys.exit(1)
if batch == 15:
    (base / "output/failure").write_text("stopped by rule LossNotDecreasing\\nhint: change lr")
    sys.exit(3)
if batch == 17 and not (base / "../../mended").exists():
    (base / "output/failure").write_text("cannot write a checkpoint: No space left on device\\nhint: free some space")
    sys.exit(4)
counter, history = base / "checkpoints/epoch", base / "output/data/history.jsonl"
first = int(counter.read_text()) + 1 if counter.exists() else 1
for epoch in range(first, epochs + 1):
    accuracy = batch / 100 * epoch / epochs
    row = {"validation:accuracy": accuracy, "validation:loss": 1 - accuracy}
    with history.open("a") as file:
        file.write(json.dumps({"epoch": epoch, **row}) + "\\n")
    counter.write_text(str(epoch))
    print(f"metrics epoch={epoch} " + " ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    while epoch == 2 and (base / "../../hold").exists():
        time.sleep(0.01)
    time.sleep(0.2 if batch == 10 and epochs == 9 else 0)
tried = (base / "input/config/trial.json").exists()
if not tried and batch in (19, 21) and not (base / "../../mended").exists():
    (base / "output/failure").write_text("a test image is broken" if batch == 19 else "No space left on device")
    sys.exit(1 if batch == 19 else 4)
if not tried:
    (base / "model/manifest.json").write_text("{}")
while not tried and (base / "../../hold").exists():
    time.sleep(0.01)
(base / "output/data/metrics.json").write_text(json.dumps({"outcome": "tried" if tried else "completed"}))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_sample_data(tmp_path / "data", num_classes=2, train_per_class=50, valid_per_class=1, test_per_class=0, size=32)
    return tmp_path / "data"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in in the place of the training program."""

    def start(run: Run, *, share: int = 1, view: View = SILENT) -> Job:
        job = Job.start([sys.executable, "-c", STAND_IN], env=os.environ, cwd=run.path, log=run.log)
        run.begin(job.pid)
        return job

    monkeypatch.setattr(local, "start_training", start)


def search(data: Path, batch_sizes: object, view: View = SILENT, **flags: settings.Value) -> tune.Search:
    """A search over batch sizes only."""
    file = data.parent / "deploy.toml"
    file.write_text(f"runs_dir = 'runs'\n[tune.search]\nbatch_size = {batch_sizes}\n")
    given = {"tune.epochs": 3, "tune.prune": False} | {key.replace("__", "."): value for key, value in flags.items()}
    made = settings.load(given, file=file, environ={})
    return create(made, data, view)


def create(made: settings.Settings, data: Path, view: View = SILENT) -> tune.Search:
    given = made.given_flags()
    return tune.create(made.train, made.search, made.tune, data, data.parent / "runs", given=given, view=view)


class Noted(View):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def rows_of(run: Run) -> list[dict[str, str]]:
    with (run.path / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("stand_in")
def test_every_combination_is_tried_once_and_the_best_kept(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = Noted()
    made = search(data, [10, 20, 13, 30, 64, 500], view, tune__trials=9)
    found = tune.run(made)
    assert "batch_size 500 left out: there are only 100 training images" in view.notes
    assert tuple(capsys.readouterr()) == ("", "")  # who calls it from Python decides what is printed
    rows = rows_of(made.run)
    assert sorted(row["batch_size"] for row in rows) == ["10", "13", "20", "30", "64"]  # 5 trials, not 9
    crashed = next(row for row in rows if row["batch_size"] == "13")
    assert (crashed["status"], crashed["failure"]) == ("Failed", "thirteen is unlucky")
    assert (found.best_values, found.best_value) == ({"batch_size": 64}, 0.64)
    best = json.loads((made.run.path / "best.json").read_text())
    assert best["hyperparameters"] == {"batch_size": "64"}
    assert settings.load({}, best=find_best(made.run.name, data.parent / "runs"), environ={}).train.batch_size == 64
    assert (made.run.path / "tuning.svg").read_text().startswith("<?xml")
    models = [path.parents[1].name for path in made.run.path.glob("trials/*/model/manifest.json")]
    assert models == [f"{found.best_trial:03}"]  # the weights of the others are gone
    assert not list(made.run.path.glob("trials/*/checkpoints"))
    assert made.run.record().status == Status.COMPLETED


@pytest.mark.usefixtures("stand_in")
def test_only_the_best_trial_is_tested_and_its_record_is_that_of_its_training(data: Path) -> None:
    made = search(data, [10, 20, 30], tune__trials=3)
    found = tune.run(made)
    for number in (1, 2, 3):
        trial = Run(path=made.run.path / f"trials/{number:03}")
        outcome = "completed" if number == found.best_trial else "tried"
        assert trial.result()["outcome"] == outcome
        assert any(trial.paths.model.glob("*")) == (outcome == "completed")
        record = trial.record()
        assert (record.status, record.attempts, record.exit_code, dict(record.details)) == ("Completed", 1, 0, {})
        assert trial.log.read_text().count("metrics epoch=") == 3
    assert "is the best: tested" in made.run.log.read_text()
    best = Run(path=made.run.path / f"trials/{found.best_trial:03}")
    remember(best)  # as a search leaves it that was killed when its best trial had just been tested
    best.update(status=Status.IN_PROGRESS, attempts=2, processes=())
    tune.run(tune.resume(made.run, {}))
    assert (best.record().status, best.record().attempts, dict(best.record().details)) == ("Completed", 1, {})
    everything = search(data, [10, 20], tune__trials=2, tune__keep_models=True)
    tune.run(everything)
    assert len(list(everything.run.path.glob("trials/*/model/manifest.json"))) == 2
    assert "is the best: tested" not in everything.run.log.read_text()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("batch_size", "kind"), [(19, JobError), (21, PlatformError)])
def test_a_best_trial_that_cannot_be_tested_ends_the_search_which_can_go_on(
    data: Path, batch_size: int, kind: type[Exception]
) -> None:
    made = search(data, [batch_size, 10], tune__trials=2)
    with pytest.raises(kind, match=r"broken|No space") as caught:
        tune.run(made)
    assert f"tune --resume {made.run.typed}" in caught.value.hint  # type: ignore[attr-defined]
    assert made.run.record().status == Status.FAILED
    (made.run.path / "mended").touch()
    assert tune.run(tune.resume(made.run, {})).best_values == {"batch_size": batch_size}
    best = Run(path=find_best(made.run.name, data.parent / "runs").parent / "trials" / "001")
    assert {row["status"] for row in rows_of(made.run)} == {"Completed"}
    assert best.record().attempts == 1


@pytest.mark.usefixtures("stand_in")
def test_a_search_stopped_while_its_best_trial_is_tested_goes_on_there(data: Path) -> None:
    made = search(data, [10, 20], tune__trials=2)
    hold = made.run.path / "hold"
    with Interrupts() as interrupts:
        made.run.begin()
        with tune.Tuner(made, tune.SearchView(Live(), made.run.log, made.tune), interrupts) as tuner:
            tuner.work()
            best = max(tuner.rows(), key=lambda row: row.value or 0)
            hold.touch()
            interrupts.count = 1
            with pytest.raises(JobStopped, match="before the best trial's model was written"):
                tuner.finish_best()
    made.run.end(Status.STOPPED)
    hold.unlink()
    trial = Run(path=best.path)
    assert trial.result()["outcome"] == "tried"
    assert list(trial.paths.checkpoints.glob("*"))
    tune.run(tune.resume(made.run, {}))
    assert trial.result()["outcome"] == "completed"
    assert (trial.record().status, trial.record().attempts) == (Status.COMPLETED, 1)
    assert not list(made.run.path.glob("trials/*/checkpoints"))


@pytest.mark.usefixtures("stand_in")
def test_a_trial_that_a_rule_stopped_is_pruned_and_the_search_goes_on(data: Path) -> None:
    made = search(data, [15, 10], tune__trials=2)
    assert tune.run(made).best_values == {"batch_size": 10}
    pruned = next(row for row in rows_of(made.run) if row["batch_size"] == "15")
    assert pruned["status"] == "Pruned"
    assert pruned["failure"] == "stopped by rule LossNotDecreasing"


@pytest.mark.usefixtures("stand_in")
def test_search_ends_early_when_all_trials_fail_alike(data: Path) -> None:
    made = search(data, [13, 13], train__lr=0.1)  # one combination
    with pytest.raises(JobError, match="no trial finished; the first one failed with: thirteen is unlucky"):
        tune.run(made)
    assert made.run.record().status == Status.FAILED
    made = dataclass_with_lr(search(data, [13]))
    with pytest.raises(JobError, match="the first 3 trials failed in the same way: thirteen is unlucky"):
        tune.run(made)


def dataclass_with_lr(made: tune.Search) -> tune.Search:
    """The same search with an endless space."""
    wider = {**made.space, "lr": Continuous(low=0.001, high=0.1, log=True)}
    return dataclasses.replace(made, space=wider, tune=dataclasses.replace(made.tune, trials=8))


@pytest.mark.usefixtures("stand_in")
def test_hopeless_trial_is_pruned(data: Path) -> None:
    made = search(data, "{ low = 10, high = 64 }", tune__trials=4, tune__epochs=9, tune__prune=True)
    study = open_study(made.run, made)
    for value in (62, 63, 64, 10):
        study.enqueue_trial({"batch_size": value})
    tune.run(made)
    rows = rows_of(made.run)
    assert [row["status"] for row in rows] == ["Completed"] * 3 + ["Pruned"]
    record = Run(path=made.run.path / "trials/004").record()
    assert (record.status, record.exit_code) == (Status.STOPPED, 143)
    assert record.failure.startswith("pruned after epoch")


@pytest.mark.usefixtures("stand_in")
def test_interrupted_search_goes_on_where_it_was(data: Path) -> None:
    made = search(data, [10, 20, 30], tune__trials=3)
    hold = made.run.path / "hold"

    class InterruptedInTheSecondTrial(tune.SearchView):
        """Presses Ctrl-C when the second trial has reached its second epoch."""

        def epoch(self, number: int, progress: tune.JobProgress) -> None:
            if number == 1:
                hold.touch()
            if (number, progress.epoch) == (2, 2):
                interrupts.count += 1

    with Interrupts() as interrupts:
        made.run.begin()
        shown = InterruptedInTheSecondTrial(Live(), made.run.log, made.tune)
        with (
            tune.Tuner(made, shown, interrupts) as tuner,
            pytest.raises(JobStopped, match="stopped after 1 of 3 trials") as stopped,
        ):
            tuner.work()
    assert made.run.name in stopped.value.hint
    made.run.end(Status.STOPPED)
    hold.unlink()
    (made.run.path / "study.journal.lock").symlink_to("study.journal")  # as a killed search leaves them
    with (made.run.path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 4, "worker')
    tune.run(tune.resume(made.run, {}))
    rows = rows_of(made.run)
    assert [row["status"] for row in rows] == ["Completed"] * 3
    assert sorted(row["batch_size"] for row in rows) == ["10", "20", "30"]
    second = Run(path=made.run.path / "trials/002")
    assert second.record().attempts == 2
    assert second.log.read_text().count("metrics epoch=") == 3  # no epoch was run twice
    again = tune.resume(made.run, {"tune.trials": 3, "tune.parallel": 2})
    assert tune.run(again).best_values == {"batch_size": 30}  # nothing is left to run, the result is the same


@pytest.mark.usefixtures("stand_in")
def test_a_full_disk_ends_the_search_and_is_no_trials_failure(data: Path) -> None:
    made = search(data, [17, 10], tune__trials=2)
    with pytest.raises(PlatformError, match="cannot write a checkpoint: No space left") as caught:
        tune.run(made)
    assert f"tune --resume {made.run.typed}" in caught.value.hint
    assert made.run.record().status == Status.FAILED
    (made.run.path / "mended").touch()
    assert tune.run(tune.resume(made.run, {})).best_values == {"batch_size": 17}
    assert [row["status"] for row in rows_of(made.run)] == ["Completed"] * 2


@pytest.mark.usefixtures("stand_in")
def test_a_search_whose_trials_still_save_their_state_is_still_running(data: Path) -> None:
    made = search(data, [10, 20], tune__trials=2)
    trial = open_run(made.run.path / "trials" / "001", Record(kind="train"))
    trial.begin()
    with pytest.raises(ConfigError, match="still running"):
        tune.resume(made.run, {})


@pytest.mark.usefixtures("stand_in")
def test_values_are_drawn_by_number_whatever_was_drawn_before(data: Path) -> None:
    straight, broken = (search(data, "{ low = 20, high = 64 }", tune__trials=4) for _ in range(2))
    tune.run(straight)
    for trials in (1, 2, 4):
        again = dataclasses.replace(broken, tune=dataclasses.replace(broken.tune, trials=trials))
        tune.run(again)
    values = [[row["batch_size"] for row in rows_of(made.run)] for made in (straight, broken)]
    assert values[0] == values[1]


@pytest.mark.usefixtures("stand_in")
def test_what_a_killed_search_did_not_hear_of_a_trial_is_caught_up_on_and_judged(data: Path) -> None:
    made = search(data, "{ low = 10, high = 64 }", tune__trials=4, tune__epochs=9, tune__prune=True)
    study = open_study(made.run, made)
    for value in (62, 63, 64):
        study.enqueue_trial({"batch_size": value})
    tune.run(dataclasses.replace(made, tune=dataclasses.replace(made.tune, trials=3)))
    study = open_study(made.run, made)  # as a search leaves it that was killed in its fourth trial
    study.enqueue_trial({"batch_size": 10})
    trial = study.ask({"batch_size": distribution(made.space["batch_size"])})
    trial.set_user_attr("number", 4)
    run = open_run(made.run.path / "trials" / "004", Record(kind="train", config=made.base.to_hyperparameters()))
    HISTORY.write(run.paths.output_data, [{"epoch": e, "validation:accuracy": 0.01 * e} for e in range(1, 6)])
    tune.run(made)
    assert [row["status"] for row in rows_of(made.run)] == ["Completed"] * 3 + ["Pruned"]
    assert run.record().failure == "pruned after epoch 5"
    assert not run.log.exists()  # nothing was run for that


def test_searched_hyperparameter_given_as_flag_is_fixed(data: Path) -> None:
    made = settings.load({"train.lr": 0.02, "train.image_size": 64, "tune.epochs": 2}, environ={})
    made = create(made, data)
    assert set(made.space) == {"batch_size"}
    assert made.carried == {"lr": "0.02", "image_size": "64"}
    assert (made.base.lr, made.base.epochs) == (0.02, 2)
    everything = settings.load({"train.lr": 0.02, "train.batch_size": 8}, environ={})
    with pytest.raises(ConfigError, match="nothing is left to search"):
        create(everything, data)


def test_batch_sizes_must_fit_the_data(data: Path) -> None:
    with pytest.raises(ConfigError, match="every batch size of the search is larger than the 100 training images"):
        search(data, [128, 256])


def test_combinations_are_counted_and_listed() -> None:
    space = {"epochs": Integer(low=2, high=4), "optimizer": Categorical(values=("sgd", "adamw"))}
    points = list(combinations(space))
    assert num_combinations(space) == len(points) == 6
    assert {"epochs": 4, "optimizer": "adamw"} in points
    endless = {**space, "lr": Continuous(low=0.1, high=0.2)}
    assert num_combinations(endless) == float("inf")
    assert list(combinations(endless)) == []


def test_the_validation_loss_settles_ties_between_trials() -> None:
    rows = [row(1, 0.9, 0.5), row(2, 0.9, 0.4), row(3, None, 0.1), row(4, 0.8, 0.1)]
    assert pick_best(rows, "validation:accuracy") is rows[1]
    assert pick_best(rows[2:3], "validation:accuracy") is None


def row(number: int, value: float | None, loss: float) -> TrialRow:
    return TrialRow(
        number=number,
        status="Completed" if value is not None else "Failed",
        config=settings.TrainConfig(),
        value=value,
        best=None if value is None else BestEpoch(value=value, epoch=1, loss=loss),
        seconds=1.0,
        failure="",
        path=Path(),
        curve=(),
    )
