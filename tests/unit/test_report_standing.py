"""No praise for a coin toss: what is said of a model that guesses, and what has to hold before one is to be served."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.judged_jobs import FINE, change, make_clean_job
from tests.report_folders import CLASSES, make_job, make_tuning

from image_classifier.contract.outputs import HISTORY, REPORT, RESULT, TRIALS_FOLDER
from image_classifier.debugging.rules import RULES as RULE_CLASSES
from image_classifier.debugging.schema import RuleResult, Verdict
from image_classifier.debugging.scores import balanced_accuracy, confusion_matrix, macro_f1
from image_classifier.report import gather, gather_tuning, render, write_report
from image_classifier.report.advice import what_next
from image_classifier.report.before_serving import standing_of_run
from image_classifier.report.standing import measured, standing
from image_classifier.vision.confidence import calibration_error, confidence_bins, exact_interval

Facts = dict[str, Any]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of which nothing is left to say."""
    return make_clean_job(tmp_path / "train-1")


def first_line(facts: Facts) -> str:
    """Of the page."""
    body = render(facts).partition("<body>")[2]
    return body.partition("<p>")[2].partition("</p>")[0]


def titles(facts: Facts) -> str:
    return " | ".join(item["title"] for item in facts["next"])


def test_a_model_that_nothing_speaks_against_is_to_be_served(job: Path) -> None:
    facts = gather(job)
    assert facts["standing"]["ready"] is True
    assert facts["standing"]["verdict"] == "ready"
    assert "Serve it: python deploy.py serve train-1" in titles(facts)
    assert first_line(facts).startswith("Better than guessing (10 %), and no rule that matters found an issue")


@pytest.mark.parametrize(
    ("counts", "guessing"),
    [
        ((27, 100, 20), "20 %"),  # the interval is 19 to 37 %
        ((20, 100, 20), "20 %"),
        ((0, 100, 20), "20 %"),
        ((91, 100, 90), "90 %"),  # nearly all images are of one class
        ((4, 4, 2), "50 %"),  # all right, of too few
        ((1, 1, 1), "100 %"),
        ((3, 133, 1), "0.8 %"),  # Wilson's interval would call it better
    ],
)
def test_a_model_not_shown_to_beat_the_largest_class_is_never_recommended(
    job: Path, counts: tuple[int, int, int], guessing: str
) -> None:
    change(job, tests=counts)
    facts = gather(job)
    assert facts["standing"]["ready"] is False
    assert facts["standing"]["verdict"] == "guessing"
    assert first_line(facts).startswith(f"Not better than guessing ({guessing})")
    assert "Serve it" not in titles(facts)
    assert f"not better than guessing ({guessing})" in titles(facts)
    assert "looked and found nothing wrong" not in json.dumps(facts["next"])


def test_the_baseline_and_the_interval_stand_beside_the_accuracy(job: Path) -> None:
    change(job, tests=(27, 100, 20))
    accuracy = gather(job)["outcome"]["accuracy"]
    assert (accuracy["value"], accuracy["guessing"], accuracy["better"]) == (0.27, 0.2, False)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.18607, 0.36802), abs=1e-5)
    page = render(gather(job))
    assert "Guessing" in page
    assert "the model is not shown to be better" in page


def test_the_best_of_many_epochs_has_to_be_better_by_more(job: Path) -> None:
    change(job, validations=(30, 100, 20))
    assert gather(job)["outcome"]["accuracy"]["looks"] == 3
    single = measured({"test:accuracy": 0.3}, {"test": {"images": 100, "largest_class": 20}}, looks=3)
    best_of = measured({"validation:accuracy": 0.3}, {"valid": {"images": 100, "largest_class": 20}}, looks=3)
    assert single is not None
    assert best_of is not None
    assert (single["better"], best_of["better"]) == (True, False)  # a test chose nothing


def test_of_guessers_at_most_one_in_forty_is_called_better() -> None:
    random = np.random.default_rng(5)
    for classes, images in ((2, 20), (5, 100), (133, 133), (133, 266)):
        hits = random.binomial(images, 1 / classes, 4000)
        called = {int(each): exact_interval(int(each), images)[0] > 1 / classes for each in np.unique(hits)}
        assert np.mean([called[int(each)] for each in hits]) <= 0.025 + 0.008  # two standard errors and more


def test_without_the_largest_class_nothing_is_claimed(job: Path) -> None:
    path = job / "output/data" / RESULT.name
    result = json.loads(path.read_text())
    del result["answered"]
    path.write_text(json.dumps(result))
    facts = gather(job)
    assert facts["standing"]["verdict"] == "unknown"
    assert first_line(facts).startswith("Not known to be better than guessing: how many test images")
    assert "Serve it" not in titles(facts)


@pytest.mark.parametrize(
    "answered",
    [[], {"test": 3}, {"test": {"images": 60}}, {"test": {"images": 5, "largest_class": 9, "largest_five": 9}}],
)
def test_counts_that_cannot_be_are_not_counted_with(job: Path, answered: Any) -> None:
    path = job / "output/data" / RESULT.name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"answered": answered}))
    assert gather(job)["standing"]["verdict"] == "unknown"


def test_a_job_of_an_earlier_version_is_compared_by_its_tables(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "train-1", epochs=2, test_per_class=6)
    path = folder / "output/data" / RESULT.name
    result = json.loads(path.read_text())
    del result["answered"]
    path.write_text(json.dumps(result))
    outcome = gather(folder)["outcome"]
    assert outcome["accuracy"]["guessing"] == pytest.approx(1 / len(CLASSES))
    assert outcome["answered"]["test"] == {"images": 60, "largest_class": 6, "largest_five": 30}


LACKING = dataclasses.replace(FINE, rule="Overfit", verdict=Verdict.INSUFFICIENT_DATA, summary="needs 4 epochs")
FAILED = dataclasses.replace(FINE, rule="DeadRelu", verdict=Verdict.ERROR, summary="the rule failed")
FIRED = dataclasses.replace(FINE, rule="Overfit", verdict=Verdict.ISSUES, summary="it overfits", advice="stop earlier")
NO_GPU = dataclasses.replace(LACKING, rule="LowGPUUtilization", summary="this job had no GPU", applies=False)
NO_RELU = dataclasses.replace(LACKING, rule="DeadRelu", summary="no activation gives zeros", applies=False)
TABLE = dataclasses.replace(FINE, rule="OverallSystemUsage", severity="info", summary="CPU 61 %")
UNKNOWN = dataclasses.replace(LACKING, rule="OfAnotherVersion")


@pytest.mark.parametrize(
    ("rules", "verdict", "said"),
    [
        ([FINE, LACKING], "unjudged", "Overfit lacked data (needs 4 epochs)"),
        ([FINE, FAILED], "unjudged", "DeadRelu lacked data (the rule failed)"),
        ([FINE, UNKNOWN], "unjudged", "OfAnotherVersion lacked data"),
        ([FINE, FIRED], "open", "a rule found an issue: Overfit"),
        ([], "unjudged", "no rule about the model judged the training"),
        ([TABLE], "unjudged", "no rule about the model judged the training"),
        ([FINE, NO_GPU, NO_RELU, TABLE], "ready", ""),
    ],
)
def test_a_rule_that_could_not_judge_is_not_one_that_found_nothing(
    job: Path, rules: list[RuleResult], verdict: str, said: str
) -> None:
    change(job, rules=rules)
    facts = gather(job)
    assert facts["standing"]["verdict"] == verdict
    assert said in facts["standing"]["sentence"]
    assert ("Serve it" in titles(facts)) == (verdict == "ready")
    if verdict == "ready":
        assert "1 rule looked and found nothing wrong" in facts["next"][-1]["reason"]


def test_advice_about_the_model_contradicts_serving_it(job: Path) -> None:
    rows = HISTORY.read(job / "output/data")
    HISTORY.write(job / "output/data", [row | {"validation:accuracy": 0.7} for row in rows])
    facts = gather(job)
    assert facts["standing"]["verdict"] == "open"
    assert "Start from pretrained weights" in first_line(facts)
    assert "Serve it" not in titles(facts)


PAIRS = {"pairs": [{"true": "a", "predicted": "b", "images": 14, "examples": []}], "errors": 28}
WEAK = [{"class": "a", "images": 14, "recall": 0.0, "high": 0.2}]


def test_the_mistakes_of_a_network_that_guesses_are_no_advice_about_classes(job: Path) -> None:
    change(job, tests=(40, 60, 6))
    facts = gather(job) | {"confusion": PAIRS, "per_class": WEAK}
    found = {item["title"] for item in what_next(facts)}
    assert {"Look at a taken for b", "Add images of a"} <= found
    change(job, tests=(6, 60, 6))
    facts = gather(job) | {"confusion": PAIRS, "per_class": WEAK}
    assert not {"Look at a taken for b", "Add images of a"} & {item["title"] for item in what_next(facts)}


def test_a_table_of_numbers_is_shown_as_no_verdict(job: Path) -> None:
    rules = [FINE, dataclasses.replace(FINE, rule="OverallSystemUsage", severity="info", summary="medians: CPU 90 %")]
    change(job, rules=rules)
    page = render(gather(job))
    assert page.count("✓ no issue") == 1
    assert page.count("○ numbers only") == 1


@pytest.mark.parametrize("end", ["failed", "stopped", "unfinished"])
def test_a_job_without_a_result_has_no_model(job: Path, end: str) -> None:
    (job / "output/data" / RESULT.name).unlink()
    if end != "unfinished":
        (job / "output/failure").write_text("stopped by SIGTERM" if end == "stopped" else "it broke")
    facts = gather(job)
    assert facts["standing"]["verdict"] == "no model"
    assert first_line(facts).startswith("No model: the training ")


def test_the_report_for_programs_says_the_same(job: Path) -> None:
    change(job, tests=(27, 100, 20))
    write_report(job)
    found = REPORT.read_object(job / "output/data")["standing"]
    assert set(found) == {"ready", "verdict", "sentence", "open", "lacking"}
    assert found["sentence"] == first_line(gather(job))
    assert standing_of_run(job) == found


def test_peaked_names_the_first_epoch_that_had_it(job: Path) -> None:
    rows = [
        {"epoch": epoch, "train:accuracy": 0.9, "validation:accuracy": value, "validation:loss": loss}
        for epoch, value, loss in ((1, 0.5, 1.0), (2, 0.9, 0.6), (3, 0.8, 0.5), (4, 0.9, 0.4))
    ]
    HISTORY.write(job / "output/data", rows)
    path = job / "output/data" / RESULT.name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_epoch": 4, "epochs": 4}))
    page = render(gather(job)).replace("\u00a0", " ")
    assert "peaked at 90.0 % first in epoch 2" in page
    assert "Kept are the weights of epoch 4, which had the same and a lower loss." in page


def test_macro_f1_and_balanced_accuracy_are_those_of_scikit_learn() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 0, 3])
    confusion = confusion_matrix(labels, predicted, 5)
    assert balanced_accuracy(confusion) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert macro_f1(confusion) == pytest.approx((6 / 8 + 2 / 4 + 0 + 0) / 4)  # a class that is only named counts
    assert (balanced_accuracy(confusion_matrix(labels[:0], labels[:0], 3)), macro_f1(confusion[4:, 4:])) == (0.0, 0.0)


def test_the_calibration_error_is_the_distance_between_confidence_and_accuracy() -> None:
    sure = confidence_bins(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, False, False, False]))
    assert calibration_error(sure) == pytest.approx(0.65)
    random = np.random.default_rng(0)
    confidence = random.uniform(0.2, 1.0, 20_000)
    right = random.uniform(size=20_000) < confidence
    assert calibration_error(confidence_bins(confidence, right)) < 0.02
    ends = confidence_bins(np.array([0.0, 1.0, np.nan]), np.array([False, True, False]))
    assert [(each.low, each.high, each.images) for each in ends] == [(0.0, 1 / 15, 2), (14 / 15, 1.0, 1)]
    assert calibration_error([]) == 0.0


def test_the_page_draws_the_reliability_of_the_test_images(tmp_path: Path) -> None:
    facts = gather(make_job(tmp_path / "train-1", epochs=2, test_per_class=6))
    assert sum(each["images"] for each in facts["scores"]["bins"]) == 60
    page = render(facts)
    assert "Reliability diagram" in page
    assert "Macro-F1" in page
    assert "Balanced accuracy" in page


def test_a_search_is_as_honest_about_its_best_trial(tmp_path: Path) -> None:
    folder = make_tuning(tmp_path / "tune-1")
    facts = gather_tuning(folder)
    assert facts["standing"]["verdict"] == "unknown"  # the trials' folders hold no result
    trial = folder / TRIALS_FOLDER / f"{facts['best']['trial']:03}"
    make_job(tmp_path / "made", epochs=2, test_per_class=2)
    shutil.rmtree(trial)
    shutil.copytree(tmp_path / "made", trial)
    change(trial, validations=(33, 100, 20), rules=[FINE])
    write_report(trial)
    assert REPORT.read_object(trial / "output/data")["outcome"]["accuracy"]["better"] is True  # of 2 epochs
    facts = gather_tuning(folder)
    assert facts["standing"]["verdict"] == "guessing"  # of all epochs of all trials
    assert first_line(facts).startswith("Not better than guessing (20 %), as far as 100 images can tell")


@pytest.mark.parametrize("report", [[], {"rules": 3, "next": {}}, {"rules": [3, {}], "next": [{"title": 1}]}])
def test_a_damaged_report_of_a_trial_spoils_no_search(tmp_path: Path, report: Any) -> None:
    folder = make_tuning(tmp_path / "tune-1")
    trial = folder / TRIALS_FOLDER / f"{gather_tuning(folder)['best']['trial']:03}"
    REPORT.write(trial / "output/data", report)
    assert first_line(gather_tuning(folder)).startswith("Not known to be better")


def test_only_tables_do_not_judge() -> None:
    assert [name for name, rule in RULE_CLASSES.items() if not rule.judges] == [
        "OverallSystemUsage",
        "OverallFrameworkMetrics",
    ]


def test_nothing_evaluated_is_nothing_known() -> None:
    assert measured({}, {}, 1) is None
    found = standing({"status": "completed", "accuracy": None}, [], [])
    assert found["sentence"] == "Not known to be better than guessing: nothing was evaluated."
