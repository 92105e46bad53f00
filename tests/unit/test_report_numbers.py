"""A number on the page and the same number in a rule's evidence are one number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report_folders import make_job

from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.saved import read_files
from image_classifier.report import gather


@pytest.fixture(scope="module", params=[1, 3], ids=["one process", "three processes on three hosts"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job") / "train", test_per_class=2, processes=request.param)


@pytest.fixture(scope="module")
def facts(job: Path) -> dict[str, Any]:
    return gather(job)


@pytest.fixture(scope="module")
def evidence(job: Path) -> dict[str, dict[str, float]]:
    """Rule -> name -> value."""
    results = judge(read_files(job / "output"), parse_rules("all"))
    return {each.rule: {e.name: e.value for e in each.evidence} for each in results}


def same(value: float) -> Any:
    """Equal to the six digits that report.json keeps."""
    return pytest.approx(value, rel=1e-5)


def test_share_of_data_wait(facts: dict[str, Any], evidence: dict[str, dict[str, float]]) -> None:
    shares = {row["phase"]: row["share"] for row in facts["time"]["phases"]}
    assert shares["data_wait_s"] == same(evidence["Dataloader"]["share of data_wait_s in the step"])
    assert sum(shares.values()) == same(1.0)


def test_seconds_of_every_mode(facts: dict[str, Any], evidence: dict[str, dict[str, float]]) -> None:
    spent = {mode: seconds for mode, seconds in facts["time"]["job"].items() if mode != "other"}
    assert set(spent) == {"train", "eval", "test"}
    for mode, seconds in spent.items():
        assert seconds == same(evidence["OverallFrameworkMetrics"][f"{mode} seconds"])


def test_where_a_step_goes(facts: dict[str, Any], job: Path) -> None:
    (result,) = judge(read_files(job / "output"), parse_rules("OverallFrameworkMetrics"))
    largest = max(facts["time"]["phases"], key=lambda row: float(row["share"]))
    assert f"{largest['phase'].removesuffix('_s')} {100 * largest['share']:.0f} %" in result.summary


def test_median_step(facts: dict[str, Any], job: Path) -> None:
    (result,) = judge(read_files(job / "output"), parse_rules("StepOutlier"))
    assert f"the median step takes {facts['time']['step']['median_s']:.3g} s" in result.summary


def test_use_of_the_machine(facts: dict[str, Any], evidence: dict[str, dict[str, float]]) -> None:
    summary = {row["dimension"]: row for row in facts["system"]["summary"]}
    found = evidence["OverallSystemUsage"]
    assert len(found) == 20  # MAX_EVIDENCE: four metrics with five numbers each
    for name, value in found.items():
        dimension, label = name.split()
        column = {"p50": "median"}.get(label, label)
        if column in summary[dimension]:
            assert summary[dimension][column] == same(value), name


def test_updates_of_the_layers(job: Path, facts: dict[str, Any]) -> None:
    (rule,) = parse_rules("WeightUpdateRatio")
    (result,) = judge(read_files(job / "output"), [type(rule)(small=1.0)])  # fires on every layer
    medians = {each.name.split()[1]: each.value for each in result.evidence}
    assert medians
    table = {row["layer"] + ".weight": row["update_ratio"] for row in facts["layers"]["table"]}
    assert {name: table[name] for name in medians} == same_all(medians)


def same_all(values: dict[str, float]) -> Any:
    return pytest.approx(values, rel=1e-5)
