"""Rules over waiting: for a step, for images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import after_filling, data_wait_share, phase_shares, usual
from image_classifier.debugging.rules.base import Finding, Rule, healthy, insufficient, issue, percent
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import Evidence


@dataclass(frozen=True, kw_only=True)
class ClockRule(Rule):
    """A rule over when the steps ended, and where their time went."""

    about = "system"


@dataclass(frozen=True, kw_only=True)
class StalledTraining(ClockRule):
    """No step ended for a long time.

    Fires when more than `threshold_s` seconds lie between the ends of two steps (of any mode), or between the last
    step's end and the newest observation. The time between two attempts of a job does not count, and that to the first
    step of one is MaxInitializationTime's.
    """

    looks_at = "the longest pause between two steps"
    remedy = "the log and the system timeline of that time; workers=0 shows whether a loading process hangs"
    source = "AWS Debugger's StalledTrainingRule"
    severity = "critical"
    managed = Managed(reads="tensors", name="StalledTrainingRule", fields={"threshold": "threshold_s"})
    threshold_s: float = 1800.0

    @property
    def idle_s(self) -> float:
        return self.threshold_s

    def judge(self, run: RunData) -> Finding:
        times = np.sort(np.concatenate([run.times(mode).values for mode in ("train", "eval", "test")]))
        if len(times) == 0:
            return insufficient("needs the time of a step")
        ends = np.append(times[1:], max(run.last_time, times[-1]))
        gaps = ends - times
        for restart in run.job.restarts:
            gaps[(times < restart) & (restart <= ends)] = 0.0
        longest = float(gaps.max())
        if longest <= self.threshold_s:
            return healthy(f"the longest pause between steps was {longest:.1f} s", len(times))
        return issue(
            f"no step ended for {longest:.0f} s",
            "look at the log and the system timeline of that time: a data loading process that hangs (workers=0 shows "
            "it), storage that does not answer, or a peer that is gone",
            [Evidence(step=int(gaps.argmax()), name="seconds after this many steps", value=longest)],
            len(times),
        )


@dataclass(frozen=True, kw_only=True)
class Dataloader(ClockRule):
    """Training waits for images.

    Fires when waiting for the next batch takes more than `threshold` of the training steps' time, and `min_wait_s`
    seconds in all, over at least `min_steps` steps, the first left out; or when there are more loading processes than
    `max_share` times the cores. Epochs that fill a cache of decoded images do not count, as long as others will follow.

    The managed rule looks only at the number of processes (70-200 % of the cores); what it costs is the wait. Steps on
    rows of features take less than a millisecond: whatever holds one of them up is half of its time, and nobody's loss.
    """

    looks_at = "the share of waiting for data in the step, and the slowest waits"
    remedy = "raise workers, cache=decoded, smaller images, more cores"
    source = "AWS Profiler's Dataloader"
    managed = Managed(reads="framework metrics")
    aspect = "speed"
    threshold: float = 0.3
    max_share: float = 2.0
    min_steps: int = 10
    min_wait_s: float = 0.5

    def judge(self, run: RunData) -> Finding:
        wait, seconds = run.step("train", "data_wait_s"), run.step("train", "seconds")
        if len(wait) < self.min_steps:
            return insufficient(f"needs {self.min_steps} steps with a data wait", len(wait))
        if run.job.cached and not len(after_filling(run)) and int(run.job.config.get("epochs", 0) or 0) > 1:
            return insufficient("the first epoch fills the cache of decoded images", len(wait))
        share = data_wait_share(run)
        workers = run.job.workers
        evidence = [Evidence(step=None, name="share of data_wait_s in the step", value=share)]
        waited = float(usual(run, "data_wait_s").values.sum())
        if share > self.threshold and waited >= self.min_wait_s:
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
        in_all = f", {waited:.2g} s in all" if share > self.threshold else ""
        return healthy(f"data wait is {percent(share)} of the step{in_all}", len(wait), evidence)


WAITS = 0.2  # the share of a step from which on waiting for data is worth more processes


def waits_for_data(run: RunData) -> bool | None:
    """Whether the steps wait for data for a share of their time; None where that was not measured."""
    return data_wait_share(run) > WAITS if phase_shares(run) else None


def busy_core(run: RunData) -> str:
    """What helps where a GPU has nothing to do while a core is busy: what that core is busy with decides."""
    if waits_for_data(run) is not False:
        return more_workers(run)
    shares = phase_shares(run)
    said = f"data wait is {percent(data_wait_share(run))} of the step, so more workers change nothing"
    if shares.get("hook_s", 0.0) > WAITS:
        return f"{said}: recording takes {percent(shares['hook_s'])}: raise debug_interval and activation_interval"
    size = run.job.config.get("batch_size", "?")
    return (
        f"{said}: the thread that launches the GPU's work is the limit: raise batch_size (it is {size}) or image_size, "
        "so that each launch does more, or take a smaller GPU"
    )


def more_workers(run: RunData) -> str:
    """What to set `workers` to, given the cores; or what else helps when all have work."""
    job = run.job
    if job.workers < job.cores:
        return f"set workers={job.cores}{'' if job.cached else ' or cache=decoded'}"
    return (
        f"workers={job.workers} already fills the {job.cores} cores: {'' if job.cached else 'cache=decoded, '}make the "
        "images smaller (image_size is what is needed), augment=light, or take an instance with more cores"
    )
