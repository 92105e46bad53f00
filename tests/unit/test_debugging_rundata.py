"""A run read from files is the run that was observed, whatever order its lines are in."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tests.report_folders import make_job

from image_classifier.contract.outputs import CLASSES, SETUP, STEPS
from image_classifier.debugging.measures import data_wait_share, usage
from image_classifier.debugging.rules import parse_rules
from image_classifier.debugging.rundata import KINDS, STEP_VALUES, RunData
from image_classifier.debugging.saved import PEERS, read_parts
from image_classifier.debugging.schema import (
    MODES,
    JobFacts,
    StatisticsRecord,
    StepRecord,
    SystemSample,
    Verdict,
    read_statistics,
    read_steps,
    read_system,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job") / "train", epochs=2, test_per_class=2, processes=2)


def content(run: RunData) -> dict[tuple[str, ...], list[list[float]]]:
    """Every series there is."""
    found = {(mode, name): run.step(mode, name) for mode in MODES for name in (*STEP_VALUES, "epoch", "time")}
    tensors = {
        (kind, tensor, name): series
        for kind in KINDS
        for tensor in run.tensor_names(kind)
        for name, series in run.statistics(kind, tensor).items()
    }
    system = {(dimension, name): each for dimension in run.dimensions() for name, each in run.system(dimension).items()}
    every = {**found, **tensors, **system}
    return {name: [series.steps.tolist(), series.values.tolist()] for name, series in every.items()}


def test_all_at_once_is_the_same_as_one_by_one(job: Path) -> None:
    data = job / "output" / "data"
    live = RunData(JobFacts(config={}))
    for step in read_steps(data):
        live.add_step(step)
    for statistics in read_statistics(data):
        live.add_statistics(statistics)
    for sample in read_system(job / "output"):
        live.add_system(sample)
    saved = read_parts(job / "output").run
    assert content(saved) == content(live)
    assert saved.last_time == live.last_time
    assert saved.nodes() == ("algo-1", "algo-2")


def step(number: int, loss: float, wait: float | None = None, time: float | None = None) -> StepRecord:
    return StepRecord(
        step=number,
        epoch=1,
        mode="train",
        time=1.0 + number if time is None else time,
        seconds=1.0,
        images=8,
        loss=loss,
        clean_loss=loss,
        data_wait_s=wait,
    )


def test_of_a_step_that_was_made_again_only_the_last_counts() -> None:
    steps = [step(0, 3.0, 0.5), step(1, 2.0, 0.5), step(2, 9.0, 0.5), step(2, 1.0), step(3, 0.5, 0.25)]
    run = RunData(JobFacts(config={}))
    run.add_steps(steps)
    assert run.step("train", "loss").values.tolist() == [3.0, 2.0, 1.0, 0.5]
    assert run.step("train", "data_wait_s").steps.tolist() == [0.0, 1.0, 3.0]
    records = [
        StatisticsRecord(step=at, weights={"fc": {"l2": value}}) for at, value in ((0, 1), (5, 9), (5, 2), (3, 4))
    ]
    run.add_all_statistics(records)
    assert run.statistics("weights", "fc")["l2"].steps.tolist() == [0, 3, 5]
    assert run.statistics("weights", "fc")["l2"].values.tolist() == [1, 4, 2]


def test_lines_in_any_order_make_the_same_run() -> None:
    steps = [step(number, 1.0 / (number + 1), 0.1) for number in range(50)]
    ordered, shuffled = RunData(JobFacts(config={})), RunData(JobFacts(config={}))
    ordered.add_steps(steps)
    random.Random(0).shuffle(steps)
    shuffled.add_steps(steps)
    assert content(shuffled) == content(ordered)


def test_steps_without_a_time_have_no_durations() -> None:
    run = RunData(JobFacts(config={}))
    run.add_steps([step(0, 1.0, 0.1, time=0.0), step(1, 0.5, 0.1, time=0.0)])  # as smdebug keeps them
    assert len(run.step("train", "loss")) == 2
    assert len(run.step("train", "seconds")) == len(run.times("train")) == 0
    assert data_wait_share(run) == 0.0


def test_a_damaged_part_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    output = tmp_path / "output"
    make_job(tmp_path, epochs=1, test_per_class=1)
    (output / "data" / STEPS.name).write_text('{"step": "x"}\n')
    (output / "data" / SETUP.name).unlink()
    saved = read_parts(output)
    assert set(saved.damaged) == {STEPS.name}
    assert saved.absent == {SETUP.name, CLASSES.name, PEERS}
    assert saved.run.kinds()
    assert saved.run.dimensions()["GPUUtilization"] == "gpu"
    assert not len(saved.run.step("train", "loss"))


def test_hosts_whose_clocks_differ_are_judged_together() -> None:
    run = RunData(JobFacts(config={}))
    run.add_steps([step(number, 1.0) for number in range(400)])
    for host, late, values in (("algo-1", 0.0, (20.0, 40.0)), ("algo-2", 0.3, (60.0, 80.0))):
        for second in range(400):
            for core, value in enumerate(values):
                run.add_system(
                    SystemSample(
                        type="cpu",
                        name=f"cpu{core}",
                        dimension="CPUUtilization",
                        value=value,
                        node=host,
                        time=1.0 + second + late,
                    )
                )
    values, samples = usage(run, "CPUUtilization")
    assert (sorted(np.unique(values)), samples) == ([30.0, 70.0], 1600)
    (rule,) = parse_rules("OverallSystemUsage")
    result = rule.check(run)
    assert result.verdict is Verdict.NO_ISSUES
    assert {e.name: e.value for e in result.evidence}["CPUUtilization max"] == 70.0
