"""What a model is worth is said where somebody decides about it: after a training, before serving and spending."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.judged_jobs import change, make_clean_job

from image_classifier.cli import show_jobs
from image_classifier.contract.errors import ConfigError, JobStopped
from image_classifier.launch.runs import Run, Status, create_run
from image_classifier.launch.training_run import Outcome
from image_classifier.launch.view import View
from image_classifier.report import write_report
from image_classifier.report.before_serving import standing_of_archive
from image_classifier.sagemaker import cost
from image_classifier.vision.artifact import GoldenSample, write_model
from image_classifier.vision.preprocess import Preprocessing


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of which nothing is left to say."""
    return make_clean_job(tmp_path / "train-1")


def printed(
    job: Path, runs: Path, capsys: pytest.CaptureFixture[str], counts: tuple[int, int, int]
) -> tuple[Run, str, str]:
    """What is shown after a training that was worth so much."""
    run = create_run(runs, "train")
    shutil.copytree(job, run.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("job.json"))
    change(run.path, tests=counts)
    write_report(run.path)
    run.end(Status.COMPLETED, exit_code=0)
    show_jobs.trained(Outcome(run=run, result=run.result(), seconds=1.0))
    found = capsys.readouterr()
    return run, found.out, found.err


def test_the_console_after_a_training_says_it(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, err = printed(job, tmp_path / "runs", capsys, (27, 100, 20))
    assert "test accuracy\t0.2700 (95 % interval 19–37 %, 100 images; not better than guessing (20 %))" in out
    assert "warning: Not better than guessing (20 %)" in err
    assert "next: python deploy.py serve" not in err
    run, out, err = printed(job, tmp_path / "runs", capsys, (95, 100, 20))
    assert "warning" not in err
    assert f"next: python deploy.py serve {run.typed}" in err


def test_serving_begins_with_a_warning(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(job, tests=(27, 100, 20))
    write_report(job)
    show_jobs.ServeView(job / "model.tar.gz")
    assert "warning: Not better than guessing (20 %)" in capsys.readouterr().err
    change(job, tests=(58, 60, 6))
    write_report(job)
    show_jobs.ServeView(job / "model.tar.gz")
    assert "warning" not in capsys.readouterr().err
    show_jobs.ServeView(tmp_path / "elsewhere" / "model.tar.gz")
    assert "warning: Not known to be better than guessing" in capsys.readouterr().err


Archive = Callable[[Mapping[str, float]], Path]


@pytest.fixture
def archive_of(tmp_path: Path) -> Archive:
    """Makes a model.tar.gz that lies in no run, with those metrics."""
    from tests.unit.test_artifact import CLASSES, GOLDEN, WEIGHTS

    def make(metrics: Mapping[str, float]) -> Path:
        from image_classifier.vision.artifact import pack

        write_model(
            tmp_path / "model",
            weights=WEIGHTS,
            classes=CLASSES,
            preprocessing=Preprocessing.for_image_size(64),
            golden=[GoldenSample(each.name, each.image, each.probabilities) for each in GOLDEN],
            config={},
            metrics=metrics,
            data_fingerprint="f00d",
            versions={},
        )
        (tmp_path / "alone").mkdir(exist_ok=True)
        pack(tmp_path / "model", tmp_path / "alone" / "model.tar.gz")
        return tmp_path / "alone" / "model.tar.gz"

    return make


def test_an_archive_alone_tells_whether_its_model_guesses(archive_of: Archive) -> None:
    counts = {"test:images": 100.0, "test:largest_class": 20.0, "epochs": 10.0}
    assert standing_of_archive(archive_of({"test:accuracy": 0.27} | counts))["verdict"] == "guessing"
    assert standing_of_archive(archive_of({"test:accuracy": 0.9} | counts))["verdict"] == "unjudged"
    assert standing_of_archive(archive_of({"test:accuracy": 0.9}))["verdict"] == "unknown"


def test_a_damaged_archive_is_not_known_to_be_better(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(b"no archive")
    assert standing_of_archive(tmp_path / "model.tar.gz")["verdict"] == "unknown"


class Asked(View):
    """Somebody at a terminal who says no."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(f"warning: {text}")

    def ask(self, question: str) -> bool | None:
        self.heard.append(question)
        return False


def test_the_question_before_money_is_spent_says_it() -> None:
    view, estimate = Asked(), cost.Estimate(lines=("an endpoint: $1",), most=1.0)
    doubt = "Not better than guessing (20 %): ..."
    with pytest.raises(JobStopped):
        cost.confirm(estimate, view, yes=False, doubt=doubt)
    assert view.heard == [f"warning: {doubt}", f"{doubt} Go on all the same?"]
    cost.confirm(estimate, view, yes=True, doubt=doubt)
    assert view.heard[2:] == [f"warning: {doubt}"]
    with pytest.raises(ConfigError):
        cost.confirm(estimate, View(), yes=False)
