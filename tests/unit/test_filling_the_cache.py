"""The epoch that fills a cache of decoded images says nothing of what loading costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.rule_examples import CONFIG

from image_classifier.debugging.measures import data_wait_share
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, StepRecord, Verdict

PER_EPOCH = 25
JOB = JobFacts(config=CONFIG, cores=8, workers=2, cached=True)
FILLING, FULL = [0.8] * PER_EPOCH, [0.01] * PER_EPOCH


def waiting_run(waits: Sequence[float], job: JobFacts, seconds: float = 1.0) -> RunData:
    """Steps of a second, or so many, of which so many seconds each were waited for images."""
    run = RunData(job)
    for step, wait in enumerate(waits):
        run.add_step(
            StepRecord(
                step=step,
                epoch=1 + step // PER_EPOCH,
                mode="train",
                time=1000.0 + step,
                seconds=seconds,
                images=32,
                loss=1.0,
                clean_loss=1.0,
                data_wait_s=wait,
            )
        )
    return run


def verdict(waits: Sequence[float], job: JobFacts) -> Verdict:
    (result,) = judge(waiting_run(waits, job), parse_rules("Dataloader"))
    return result.verdict


def test_the_epoch_that_fills_the_cache_is_no_reason_to_stop_a_job() -> None:
    assert verdict(FILLING, JOB) is Verdict.INSUFFICIENT_DATA
    assert verdict(FILLING + FULL, JOB) is Verdict.NO_ISSUES
    assert data_wait_share(waiting_run(FILLING + FULL, JOB)) == pytest.approx(0.01)


def test_steps_that_take_no_time_wait_for_nothing_worth_a_word() -> None:
    """Those of a head on its features: a scheduler's slice is more than all they do in an epoch."""
    waits = [0.0004] * 2 * PER_EPOCH
    for seconds, expected in ((0.0007, Verdict.NO_ISSUES), (0.7, Verdict.ISSUES)):
        scaled = [wait * seconds / 0.0007 for wait in waits]
        run = waiting_run(scaled, replace(JOB, cached=False), seconds)
        (result,) = judge(run, parse_rules("Dataloader"))
        assert result.verdict is expected


def test_waiting_that_the_cache_does_not_end_is_told() -> None:
    assert verdict(FILLING + FILLING, JOB) is Verdict.ISSUES
    assert verdict(FILLING, replace(JOB, config={**CONFIG, "epochs": 1})) is Verdict.ISSUES
    assert verdict(FILLING, replace(JOB, cached=False)) is Verdict.ISSUES


@pytest.mark.parametrize(("goes_on_at", "filling"), [(50, [50]), (60, [60, 75])])
def test_a_job_that_goes_on_fills_its_cache_again(goes_on_at: int, filling: list[int]) -> None:
    """A new attempt has an empty one: for the rest of the epoch in which it begins, and then for what that left out."""
    job = replace(JOB, restarts=[1000.0 + goes_on_at - 0.5])
    waits = FULL * 4
    for first in (0, *filling):
        waits[first : PER_EPOCH * (first // PER_EPOCH + 1)] = [0.99] * (PER_EPOCH - first % PER_EPOCH)
    assert verdict(waits, job) is Verdict.NO_ISSUES
    assert verdict(waits, JOB) is Verdict.ISSUES
