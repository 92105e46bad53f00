"""Rules over steps that take too long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from image_classifier.debugging.crop_growth import medians_of_like
from image_classifier.debugging.measures import median_step_s, within_epochs
from image_classifier.debugging.rules.base import Finding, healthy, insufficient, issue, percent
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rules.waiting import ClockRule, more_workers
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import MODES, Evidence

SLICE_S = 0.05  # a few time slices of Linux's scheduler
LAUNCHED = 0.5  # of the median: a step below was given to a GPU that had others to do yet


def without_running_ahead(
    seconds: NDArray[np.float64], medians: NDArray[np.float64], epochs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds of steps whose host did not run ahead of its GPU: what a step waits for the GPU's earlier steps of the
    epoch is taken off it.

    Args:
        seconds, medians, epochs: (n,), of each step in their order: its own, the usual ones, and its epoch.
    """
    found = seconds.copy()
    ahead, epoch = 0.0, math.nan
    for index, (took, usual) in enumerate(zip(seconds, medians, strict=True)):
        if epochs[index] != epoch:  # the host reads what the GPU computed
            ahead, epoch = 0.0, epochs[index]
        if took < LAUNCHED * usual:
            ahead += usual - took
        elif took > usual:
            waited = min(ahead, took - usual)
            found[index], ahead = took - waited, ahead - waited
    return found


@dataclass(frozen=True, kw_only=True)
class StepOutlier(ClockRule):
    """Some steps take far longer than the others.

    Of the training steps but for each epoch's first, with the median m of those whose crops are as large, and the
    standard deviation s estimated by 1.4826 times the median distance from m: an outlier takes longer than
    m + `stddev` s, 3 m and m + 50 ms, all three, also without what steps of the same epoch before it fell short: a host
    that runs ahead of its GPU takes next to no time for some steps, and then waits in one for all of them. Fires when
    there are more than `outliers` among more than `min_steps` steps, and the time they take above m is more than `lost`
    of all the steps' time.

    The managed rule counts steps beyond mean + 3 standard deviations, which slow steps raise themselves, and whatever
    they cost. 50 ms pass over the slices that other programs take of the cores.
    """

    looks_at = "the steps that took longest"
    remedy = "look at what the machine did at that time: other programs, a full disk, checkpoints"
    source = "AWS Profiler's StepOutlier; median and median absolute deviation instead of mean and deviation"
    managed = Managed(reads="framework metrics")
    stddev: float = 6.0
    outliers: int = 10
    min_steps: int = 100
    lost: float = 0.15

    def judge(self, run: RunData) -> Finding:
        num_steps = len(run.step("train", "seconds"))
        if num_steps <= self.min_steps:
            return insufficient(f"needs more than {self.min_steps} steps with a duration", num_steps)
        series, median, epochs = within_epochs(run), median_step_s(run), run.epochs("train")
        seconds, steps = series.values, series.steps
        medians = medians_of_like(run, series)
        spread = 1.4826 * float(np.median(np.abs(seconds - medians)))
        limits = np.maximum.reduce([medians + self.stddev * spread, 3 * medians, medians + SLICE_S])
        seconds = without_running_ahead(seconds, medians, epochs.where(np.isin(epochs.steps, steps)).values)
        slow = np.flatnonzero(seconds > limits)
        lost = float((seconds[slow] - medians[slow]).sum() / series.values.sum())
        if len(slow) <= self.outliers or lost <= self.lost:
            return healthy(
                f"{len(slow)} outliers cost {percent(lost)} of the time; the median step takes {median:.3g} s",
                len(seconds),
            )
        waits = dict(zip(run.step("train", "data_wait_s").steps, run.step("train", "data_wait_s").values, strict=True))
        waiting = sum(waits.get(steps[index], 0.0) for index in slow) / float(seconds[slow].sum())
        where = (
            f"{percent(waiting)} of their time is data wait: {more_workers(run)}"
            if waiting > 0.5
            else ("they do not wait for data: see what else runs on the machine, and checkpoints (checkpoint storage)")
        )
        worst = sorted(slow, key=lambda index: -seconds[index])
        return issue(
            f"{len(slow)} of {len(seconds)} steps took longer than {limits[slow].min():.3g} s, the median is "
            f"{median:.3g} s; they cost {percent(lost)} of the time",
            where,
            [Evidence(step=int(steps[index]), name="seconds", value=float(seconds[index])) for index in worst],
            len(seconds),
        )


@dataclass(frozen=True, kw_only=True)
class MaxInitializationTime(ClockRule):
    """It takes too long until the first step.

    Fires when the first step ended more than `threshold_s` seconds after the job began, or has not ended
    for that long. Each attempt of a job counts for itself; the time in which features were computed does not count.
    """

    looks_at = "seconds until the first step"
    remedy = "smaller or cached data, an image that is nearer"
    source = "AWS Profiler's MaxInitializationTime"
    managed = Managed(reads="framework metrics")
    threshold_s: float = 1200.0

    @property
    def idle_s(self) -> float:
        return self.threshold_s

    def judge(self, run: RunData) -> Finding:
        if run.job.started <= 0:
            return insufficient("the job's start is not known")
        times = np.sort(np.concatenate([run.times(mode).values for mode in MODES]))
        begins = [run.job.started, *run.job.restarts]
        prepared = [*run.job.prepared, *[0.0] * len(begins)]
        waits = []
        for begin, following, computed in zip(begins, [*begins[1:], math.inf], prepared[: len(begins)], strict=True):
            after = times[times >= begin]
            first = float(after[0]) if len(after) else run.last_time
            if first < following:  # else the attempt ended before its first step
                waits.append((first - begin - computed, len(after) > 0))
        waited, ended = max(waits, default=(0.0, False))
        if waited <= self.threshold_s:
            return healthy(f"the first step ended after {waited:.0f} s", 1) if ended else insufficient("needs a step")
        return issue(
            f"{'the first step ended' if ended else 'no step had ended'} after {waited:.0f} s",
            "see the log: downloading data (FastFile mode starts at once) or weights (a weights channel), or a peer "
            "that did not come up",
            [Evidence(step=0, name="seconds to the first step", value=waited)],
            1,
        )
