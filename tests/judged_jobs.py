"""Finished jobs whose accuracy and verdicts are chosen."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report_folders import make_job

from image_classifier.contract.outputs import HISTORY, RESULT, RULES
from image_classifier.debugging.schema import RuleResult, Verdict, rule_results_to_json

FINE = RuleResult(rule="LossNotDecreasing", verdict=Verdict.NO_ISSUES, severity="warning", summary="it fell")


def make_clean_job(folder: Path) -> Path:
    """A job of which nothing is left to say: learned, judged, without any advice."""
    folder = make_job(folder, epochs=3, test_per_class=6)
    change(folder, tests=(58, 60, 6), rules=[FINE])
    for name in ("per_class.csv", "confusion.csv", "test_predictions.csv", "steps.jsonl"):
        (folder / "output/data" / name).unlink()
    rows = [
        {"epoch": epoch, "train:loss": 0.1, "train:accuracy": 0.99, "validation:loss": 0.1, "validation:accuracy": 0.99}
        for epoch in (1, 2, 3)
    ]
    HISTORY.write(folder / "output/data", rows)
    return folder


def change(
    folder: Path,
    *,
    tests: tuple[int, int, int] | None = None,
    validations: tuple[int, int, int] | None = None,
    rules: list[RuleResult] | None = None,
) -> None:
    """Writes what a job was worth: (right, images, of the largest class), and what its rules said."""
    data = folder / "output" / "data"
    result = json.loads((data / RESULT.name).read_text())
    if validations is not None:  # and no test
        result["metrics"] = {name: value for name, value in result["metrics"].items() if not name.startswith("test:")}
        result["answered"] = {}
    for split, images_of, counts in (("test", "test", tests), ("validation", "valid", validations)):
        if counts is not None:
            right, images, largest = counts
            result["metrics"][f"{split}:accuracy"] = right / images
            five = min(images, 5 * largest)
            result["answered"][images_of] = {"images": images, "largest_class": largest, "largest_five": five}
    (data / RESULT.name).write_text(json.dumps(result))
    if rules is not None:
        (data / RULES.name).write_text(rule_results_to_json(rules))
