"""Crops that grow make later steps longer and fill more memory: no rule takes that for a fault."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import work_by_epoch
from image_classifier.debugging.crop_growth import SETTINGS, grown_at, medians_of_like, work_of_steps
from image_classifier.debugging.measures import within_epochs
from image_classifier.debugging.rules.framework import StepOutlier
from image_classifier.debugging.rules.system import GPUMemoryIncrease
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, StepRecord, SystemSample, Verdict

GROWING = TrainConfig(epochs=6, start_scale=0.57)
STEPS = 60  # an epoch
STEP_S = 0.6  # of crops of full size


def run_of(config: TrainConfig, *, pause_s: float = 0.0, leak: float = 0.0, of_size: float = 30.0) -> RunData:
    """A job on a GPU whose steps and memory go with the size of the crops.

    Args:
        pause_s: by which every tenth step is longer.
        leak: percent of the memory that fill up by the end.
        of_size: percent of the memory that crops of full size take.
    """
    run = RunData(JobFacts(config=asdict(config), steps_per_epoch=STEPS, gpus=["made up"]))
    work, now = work_by_epoch(config), 1000.0
    count = config.epochs * STEPS
    for step in range(count):
        share = work[step // STEPS]
        seconds = STEP_S * share + (pause_s if step % 10 == 9 else 0.0)
        now += seconds
        used = 20.0 + of_size * share + leak * step / count
        sample = {"type": "gpu", "node": "algo-1", "name": "gpu0", "dimension": "GPUMemoryUtilization"}
        run.add_system(SystemSample(time=now, value=used, **sample))
        values = {"seconds": seconds, "loss": 1.0, "clean_loss": 1.0, "data_wait_s": 0.0}
        run.add_step(StepRecord(step=step, epoch=1 + step // STEPS, mode="train", time=now, images=32, **values))
    return run


def first_steps(run: RunData, epochs: int, more: int) -> RunData:
    """The same job when it had come so far."""
    found = RunData(run.job)
    times, seconds = run.times("train"), run.step("train", "seconds")
    memory = next(iter(run.system("GPUMemoryUtilization").values()))
    for step in range(epochs * STEPS + more):
        sample = {"type": "gpu", "node": "algo-1", "name": "gpu0", "dimension": "GPUMemoryUtilization"}
        now = float(times.values[step])
        found.add_system(SystemSample(time=now, value=float(memory.values[step]), **sample))
        values = {"seconds": float(seconds.values[step]), "loss": 1.0, "clean_loss": 1.0, "data_wait_s": 0.0}
        found.add_step(StepRecord(step=step, epoch=1 + step // STEPS, mode="train", time=now, images=32, **values))
    return found


def test_steps_are_compared_with_their_like() -> None:
    run = run_of(GROWING)
    work = work_by_epoch(GROWING)
    assert len(set(work)) > 2
    assert work_of_steps(run).values.tolist() == pytest.approx(np.repeat(work, STEPS).tolist())
    series = within_epochs(run)
    assert medians_of_like(run, series) == pytest.approx(series.values)


@pytest.mark.parametrize("config", [GROWING, GROWING.replace(epochs=2), GROWING.replace(start_scale=0.3)])
def test_larger_crops_are_no_outliers_at_any_time(config: TrainConfig) -> None:
    run = run_of(config)
    for epochs in range(config.epochs):
        for more in (12, 30, STEPS):
            result = StepOutlier(min_steps=50).check(first_steps(run, epochs, more))
            assert result.verdict in (Verdict.NO_ISSUES, Verdict.INSUFFICIENT_DATA), result


def test_without_knowing_their_size_they_would_be() -> None:
    run = run_of(GROWING.replace(epochs=2, start_scale=0.3))
    del run.job.config["start_scale"]
    assert StepOutlier(min_steps=50).check(first_steps(run, 1, 20)).verdict is Verdict.ISSUES


def test_pauses_in_a_job_whose_crops_grow_are_found() -> None:
    result = StepOutlier().check(run_of(GROWING, pause_s=4.0))
    assert result.verdict is Verdict.ISSUES
    assert result.summary.startswith("36 of 354 steps")


def test_memory_that_grows_with_the_crops_is_no_leak() -> None:
    run = run_of(GROWING)
    for epochs in range(GROWING.epochs):
        for more in (20, STEPS):
            result = GPUMemoryIncrease(min_s=10).check(first_steps(run, epochs, more))
            assert result.verdict in (Verdict.NO_ISSUES, Verdict.INSUFFICIENT_DATA), result
    assert GPUMemoryIncrease(min_s=10).check(run).verdict is Verdict.NO_ISSUES


def test_a_leak_is_found_once_the_crops_have_grown() -> None:
    assert GPUMemoryIncrease(min_s=10).check(run_of(GROWING, leak=40.0)).verdict is Verdict.ISSUES


def test_memory_counts_from_the_last_growth() -> None:
    run = run_of(GROWING)
    last = work_by_epoch(GROWING).index(1.0)
    assert grown_at(run) == pytest.approx(run.times("train").values[last * STEPS])
    assert grown_at(run_of(TrainConfig(epochs=3, start_scale=1.0))) == 0.0
    assert grown_at(RunData(JobFacts(config={}))) == 0.0


@pytest.mark.parametrize(
    "config", [{}, {"epochs": 3}, dict.fromkeys(SETTINGS, "strange"), {**asdict(GROWING), "image_size": -1}]
)
def test_of_other_programs_nothing_is_assumed(config: dict[str, object]) -> None:
    run = run_of(GROWING)
    run.job.config.clear()
    run.job.config.update(config)
    assert set(work_of_steps(run).values) == {1.0}
