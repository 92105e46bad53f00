"""Rules over where the steps' time goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from image_classifier.debugging.rules.base import Finding, Rule, healthy, insufficient, issue, listed, percent
from image_classifier.debugging.rules.system import data_wait_share, more_workers
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import MODES, PHASES, Evidence

SLICE_S = 0.05  # a few time slices of Linux's scheduler


@dataclass(frozen=True, kw_only=True)
class FrameworkRule(Rule):
    """A rule over step phases."""

    about: ClassVar[Literal["tensors", "system"]] = "system"


@dataclass(frozen=True, kw_only=True)
class StepOutlier(FrameworkRule):
    """Some steps take far longer than the others.

    Of the training steps but for each epoch's first, with their median m and the standard deviation s estimated by
    1.4826 times the median distance from m: an outlier takes longer than m + `stddev` s, 3 m and m + 50 ms, all three.
    Fires when there are more than `outliers` among more than `min_steps` steps, and the time they take above m is more
    than `lost` of all the steps' time.

    The managed rule counts steps beyond mean + 3 standard deviations, which slow steps raise themselves, and whatever
    they cost. 50 ms pass over the slices that other programs take of the cores.
    """

    stddev: float = 6.0
    outliers: int = 10
    min_steps: int = 100
    lost: float = 0.15

    def judge(self, run: RunData) -> Finding:
        series, epochs = run.step("train", "seconds"), run.epochs("train").values
        if len(series) <= self.min_steps or len(series) != len(epochs):
            return insufficient(f"needs more than {self.min_steps} steps with a duration", len(series))
        keep = np.diff(epochs, prepend=-1) == 0
        seconds, steps = series.values[keep], series.steps[keep]
        median = float(np.median(seconds))
        spread = 1.4826 * float(np.median(np.abs(seconds - median)))
        limit = max(median + self.stddev * spread, 3 * median, median + SLICE_S)
        slow = np.flatnonzero(seconds > limit)
        lost = float((seconds[slow] - median).sum() / seconds.sum())
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
            f"{len(slow)} of {len(seconds)} steps took longer than {limit:.3g} s, the median is {median:.3g} s; they "
            f"cost {percent(lost)} of the time",
            where,
            [Evidence(step=int(steps[index]), name="seconds", value=float(seconds[index])) for index in worst],
            len(seconds),
        )


@dataclass(frozen=True, kw_only=True)
class Dataloader(FrameworkRule):
    """Training waits for images.

    Fires when waiting for the next batch takes more than `threshold` of the training steps' time, over at least
    `min_steps` steps, the first left out; or when there are more loading processes than `max_share` times the cores.

    The managed rule looks only at the number of processes (70-200 % of the cores); what it costs is the wait.
    """

    threshold: float = 0.3
    max_share: float = 2.0
    min_steps: int = 10

    def judge(self, run: RunData) -> Finding:
        wait, seconds = run.step("train", "data_wait_s"), run.step("train", "seconds")
        if len(wait) < self.min_steps:
            return insufficient(f"needs {self.min_steps} steps with a data wait", len(wait))
        share = data_wait_share(run)
        workers = run.job.workers
        evidence = [Evidence(step=None, name="share of data_wait_s in the step", value=share)]
        if share > self.threshold:
            slowest = np.argsort(-wait.values)[:5]
            at = [Evidence(step=int(wait.steps[i]), name="data_wait_s", value=float(wait.values[i])) for i in slowest]
            return issue(
                f"data wait is {percent(share)} of the step; without it an epoch would take {percent(1 - share)} of "
                "the time",
                more_workers(run),
                evidence + at,
                len(wait),
            )
        if workers > self.max_share * run.job.cores:
            evidence.append(Evidence(step=None, name="workers", value=workers))
            return issue(
                f"{workers} loading processes share {run.job.cores} cores",
                f"set workers={run.job.cores}",
                evidence,
                len(seconds),
            )
        return healthy(f"data wait is {percent(share)} of the step", len(wait), evidence)


@dataclass(frozen=True, kw_only=True)
class MaxInitializationTime(FrameworkRule):
    """It takes too long until the first step.

    Fires when the first step ended more than `threshold_s` seconds after the job's process began, or has not ended
    for that long. Each attempt of a job counts for itself.
    """

    threshold_s: float = 1200.0

    def judge(self, run: RunData) -> Finding:
        if run.job.started <= 0:
            return insufficient("the job's start is not known")
        times = np.sort(np.concatenate([run.times(mode).values for mode in MODES]))
        begins = [run.job.started, *run.job.restarts]
        waits = []
        for begin, following in zip(begins, [*begins[1:], math.inf], strict=True):
            after = times[times >= begin]
            first = float(after[0]) if len(after) else run.last_time
            if first < following:  # else the attempt ended before its first step
                waits.append((first - begin, len(after) > 0))
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


@dataclass(frozen=True, kw_only=True)
class OverallFrameworkMetrics(FrameworkRule):
    """Where the time of the steps went: a table, no judgement. Never fires.

    Evidence holds the seconds of each mode, and of each phase of the training steps.
    """

    severity: ClassVar[Literal["info", "warning", "critical"]] = "info"

    def judge(self, run: RunData) -> Finding:
        totals = {mode: float(run.step(mode, "seconds").values.sum()) for mode in MODES}
        if not totals["train"]:
            return insufficient("needs steps with a duration")
        evidence = [Evidence(step=None, name=f"{mode} seconds", value=value) for mode, value in totals.items() if value]
        phases = {name: float(run.step("train", name).values.sum()) for name in PHASES if len(run.step("train", name))}
        evidence += [Evidence(step=None, name=f"train {name}", value=value) for name, value in phases.items()]
        largest = sorted(phases.items(), key=lambda item: -item[1])
        shares = [f"{name.removesuffix('_s')} {percent(value / totals['train'])}" for name, value in largest]
        return healthy(
            f"training took {totals['train']:.0f} s: {listed(shares, most=6)}",
            len(run.step("train", "seconds")),
            evidence,
        )
