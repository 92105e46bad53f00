"""A search that learns from earlier ones, and one that goes by rungs; the training job is test_tune's stand-in."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.unit.test_tune import STAND_IN, Noted, rows_of, search

import image_classifier
from image_classifier.contract.errors import ConfigError, JobStopped
from image_classifier.contract.outputs import HISTORY
from image_classifier.launch import local
from image_classifier.launch.process import Interrupts, Job
from image_classifier.launch.runs import Record, Run, Status, open_run
from image_classifier.launch.view import SILENT, Live, View
from image_classifier.tuning import tuner as tune
from image_classifier.tuning.study import first_points, open_study
from image_classifier.tuning.warm_start import IDENTICAL, TRANSFER, WarmStart
from image_classifier.vision.sample_data import make_sample_data

SLOWER = STAND_IN.replace("batch == 10 and epochs == 9", "epochs == 9")  # that it is stopped in time
FEW = "{ low = 20, high = 64 }"


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(run: Run, *, share: int = 1, view: View = SILENT) -> Job:
        job = Job.start([sys.executable, "-c", SLOWER], env=os.environ, cwd=run.path, log=run.log)
        run.begin(job.pid)
        return job

    monkeypatch.setattr(local, "start_training", start)


@pytest.fixture(name="images")
def _images(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    make_sample_data(folder, num_classes=2, train_per_class=50, valid_per_class=1, test_per_class=0, size=32)
    return folder


def earlier(images: Path, name: str, accuracies: dict[int, float], /, **details: object) -> Run:
    """A search that has ended: batch size -> accuracy of its trials."""
    like = search(images, [10, 20])
    record = like.run.record()
    tried = Record(kind="tune", status=Status.COMPLETED, details={**record.details, **details}, data=str(images))
    run = open_run(images.parent / "runs" / name, tried)
    for number, (batch_size, accuracy) in enumerate(accuracies.items(), 1):
        config = like.base.replace(batch_size=batch_size).to_hyperparameters()
        trial = open_run(
            run.path / "trials" / f"{number:03}", Record(kind="train", status=Status.COMPLETED, config=config)
        )
        HISTORY.write(
            trial.paths.output_data,
            [{"epoch": 1, "validation:accuracy": accuracy, "validation:loss": 1 - accuracy}],
        )
    shutil.rmtree(like.run.path)
    return run


def test_trials_over_the_same_images_count_as_the_searchs_own_and_are_not_run_again(images: Path) -> None:
    earlier(images, "tune-a", {10: 0.1, 20: 0.95})
    view = Noted()
    made = search(images, [10, 20, 30, 40], view, tune__trials=9, tune__warm_start="tune-a")
    assert "learns from tune-a: 2 trials as IdenticalDataAndAlgorithm" in view.notes
    found = tune.run(made)
    assert sorted(row["batch_size"] for row in rows_of(made.run)) == ["30", "40"]
    assert any("2 of them tried by earlier searches: 2 trials instead of 4" in n for n in view.notes)
    study = open_study(made.run, made)
    assert [trial.value for trial in study.get_trials()[:2]] == [0.1, 0.95]  # what the model learns from
    best = json.loads((made.run.path / "best.json").read_text())
    assert (round(best["value"], 6), best["hyperparameters"]) == (0.4, {"batch_size": "40"})  # of a trial of its own
    assert best["warm_start"] == {
        "searches": [{"run": "tune-a", IDENTICAL: 2, TRANSFER: 0, "outside": 0}],
        "better": {"run": "tune-a", "trial": 2, "value": 0.95},
    }
    assert "trial 2 of tune-a was better (validation:accuracy 0.9500)" in found.learned[-1]
    with pytest.raises(ConfigError, match="tried all 2 combinations"):
        search(images, [10, 20], tune__warm_start="tune-a")


def test_of_a_search_over_other_images_only_the_best_points_are_taken_and_tried_first(images: Path) -> None:
    earlier(images, "tune-a", {10: 0.5, 64: 0.9, 30: 0.8, 500: 1.0}, images="0" * 64)
    view = Noted()
    made = search(images, "{ low = 5, high = 64 }", view, tune__trials=4, tune__warm_start="tune-a")
    assert "learns from tune-a: 3 trials as TransferLearning, 1 lie outside of the ranges" in view.notes
    tune.run(made)
    assert [row["batch_size"] for row in rows_of(made.run)][:2] == ["64", "30"]
    values = [trial.value for trial in open_study(made.run, made).get_trials()]
    assert 0.9 not in values  # of other images: on another scale
    assert json.loads((made.run.path / "best.json").read_text())["warm_start"]["better"] is None


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({}, IDENTICAL),
        ({"train__workers": 1}, IDENTICAL),
        ({"train__weight_decay": 0.5}, TRANSFER),
        ({"tune__epochs": 4}, TRANSFER),
    ],
)
def test_trials_count_only_with_the_same_hyperparameters_besides_the_searched_ones(
    images: Path, flags: dict[str, float], kind: str
) -> None:
    earlier(images, "tune-a", {10: 0.5})
    made = search(images, FEW.replace("20", "5"), tune__warm_start="tune-a", **flags)
    assert [trial.kind for trial in made.earlier.trials] == [kind]


def test_trials_of_another_version_of_the_code_do_not_count(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier(images, "tune-a", {10: 0.5})
    monkeypatch.setattr(image_classifier, "__version__", "99.0")
    made = search(images, [10, 20], tune__warm_start="tune-a")
    assert [trial.kind for trial in made.earlier.trials] == [TRANSFER]


def test_what_cannot_be_learned_from_is_refused_before_a_run_is_made(images: Path) -> None:
    runs = images.parent / "runs"
    earlier(images, "tune-a", {10: 0.5})
    earlier(images, "tune-loss", {10: 0.5}, tune={"objective": "validation:loss"})
    earlier(images, "tune-empty", {})
    earlier(images, "tune-outside", {7: 0.5})
    open_run(runs / "train-a", Record(kind="train", status=Status.COMPLETED))
    active = earlier(images, "tune-active", {10: 0.5})
    active.begin()
    before = sorted(path.name for path in runs.iterdir())
    for text, message in {
        "tune-loss": "tune-loss went by validation:loss, this search goes by validation:accuracy",
        "tune-empty": "nothing can be learned from tune-empty: no trial of it has a result",
        "tune-outside": "nothing can be learned from tune-outside: all of its trials lie outside",
        "tune-active": "tune-active is still running",
        "train-a": "train-a is a train run",
        "tune-b": "there is no run 'tune-b'",
        "tune-a,tune-a": "named twice",
        "tune-a,": "names no search",
        "a,b,c,d,e,f": "5 earlier ones at most",
    }.items():
        with pytest.raises(ConfigError, match=message):
            search(images, [10, 20], tune__warm_start=text)
    assert sorted(path.name for path in runs.iterdir()) == before


def test_a_warm_search_that_was_killed_goes_on_without_the_earlier_ones_and_ends_alike(images: Path) -> None:
    run = earlier(images, "tune-a", {22: 0.3, 33: 0.5, 44: 0.4})
    other = earlier(images, "tune-b", {55: 0.2, 60: 0.1}, images="")
    straight, broken = (
        search(images, FEW, tune__trials=4, tune__warm_start=f"{run.name}, {other.name}") for _ in range(2)
    )
    tune.run(straight)
    with Interrupts() as interrupts:
        broken.run.begin()

        class Interrupted(tune.SearchView):
            def epoch(self, number: int, progress: tune.JobProgress) -> None:
                interrupts.count += number == 2

        shown = Interrupted(Live(), broken.run.log, broken.tune)
        with tune.Tuner(broken, shown, interrupts) as tuner, pytest.raises(JobStopped):
            tuner.work()
    broken.run.end(Status.STOPPED)
    shutil.rmtree(run.path)
    shutil.rmtree(other.path)
    journal = broken.run.path / "study.journal"
    kept = journal.read_bytes()
    lines = kept.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]))  # as a search leaves it that was killed while it put earlier trials in
    made = tune.resume(broken.run, {})
    assert made.earlier == straight.earlier
    assert len(open_study(made.run, made).get_trials()) == 3
    journal.write_bytes(kept)
    tune.run(made)
    assert len(open_study(made.run, made).get_trials()) == 3 + 4
    columns = [
        [{name: row[name] for name in ("trial", "status", "batch_size")} for row in rows_of(each.run)]
        for each in (straight, broken)
    ]
    assert columns[0] == columns[1]


def test_a_damaged_warm_start_is_named(images: Path) -> None:
    earlier(images, "tune-a", {10: 0.5})
    made = search(images, [10, 20], tune__warm_start="tune-a")
    details = dict(made.run.record().details)
    assert WarmStart.parse(details["warm_start"]) == made.earlier
    for damaged in ({"trials": 3}, {"trials": [{}], "outside": {}}, [], {"trials": [], "outside": {"a": "x"}}):
        made.run.update(details=details | {"warm_start": damaged})
        with pytest.raises(Exception, match=r"job\.json is damaged"):
            tune.resume(made.run, {})


def test_by_rungs_the_first_trial_is_the_settings_own_and_the_weak_end_early(images: Path) -> None:
    made = search(images, FEW, tune__trials=7, tune__epochs=9, tune__prune=True, tune__strategy="Hyperband")
    assert made.base.batch_size == 32
    tune.run(made)
    rows = rows_of(made.run)
    assert (rows[0]["batch_size"], rows[0]["status"]) == ("32", "Completed")
    best_yet = 0
    for row in rows:  # with fewer than six trials at a rung only the best so far goes on
        size = int(row["batch_size"])
        if int(row["trial"]) < 6:
            assert row["status"] == ("Completed" if size >= best_yet else "Pruned")
            assert (row["status"] == "Completed") or int(row["epochs"]) == 1
        best_yet = max(best_yet, size)
    assert "Pruned" in {row["status"] for row in rows}


def test_one_in_three_goes_on_from_each_rung(images: Path) -> None:
    from optuna.trial import TrialState

    made = search(images, FEW, tune__epochs=9, tune__prune=True, tune__strategy="Hyperband")
    study = open_study(made.run, made)
    for curve in ([0.2, 0.3, 0.4], [0.5, 0.5, 0.5], [0.3, 0.3, 0.9], [0.1], [0.4]):
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
        study.tell(trial, state=TrialState.PRUNED)

    def ends(*curve: float) -> bool:
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
        ended = trial.should_prune()
        study.tell(trial, state=TrialState.FAIL)
        return ended

    assert not ends(0.45)  # the second of six at the first rung, of which two go on
    assert ends(0.35)  # the fourth of seven
    assert ends(0.6, 0.6, 0.8)  # the second of four at the second rung, of which one goes on
    assert not ends(0.95, 0.1, 0.1)  # by its best epoch the first of five
    assert not ends(0.95, 0.9)  # between two rungs the lower one's verdict stands


def test_hyperband_that_could_end_nothing_is_refused(images: Path) -> None:
    for flags, message in (({"tune__epochs": 1, "tune__prune": True}, "at least 2"), ({}, "prune = false forbids")):
        with pytest.raises(ConfigError, match=message):
            search(images, FEW, tune__strategy="Hyperband", **flags)


def test_the_settings_own_values_are_left_out_where_they_lie_outside_of_the_search(images: Path) -> None:
    made = search(images, [10, 20], tune__prune=True, tune__strategy="Hyperband")
    assert first_points(made) == [{}]
    assert tune.run(made).best_values == {"batch_size": 20}
    made = search(images, "{ low = 5, high = 9 }", tune__trials=3, tune__strategy="Random")
    assert tune.run(made).best_value > 0
