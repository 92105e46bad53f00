"""Rules over numbers that must be finite, and a loss that must go down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.rules.base import Finding, Rule, first_run, healthy, insufficient, issue, short
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rundata import Floats, RunData, Series
from image_classifier.debugging.schema import Evidence


@dataclass(frozen=True, kw_only=True)
class ExplodingTensor(Rule):
    """A loss, gradient, weight or activation is no longer a finite number.

    Fires when any recorded loss or statistic is infinite or NaN; with `only_nan`, only for NaN.
    """

    looks_at = "the first step at which each loss or statistic was not finite, with its value"
    remedy = (
        "lower lr, raise warmup_epochs, set amp=off where it only happens in bf16; labels or images that are not finite"
    )
    source = "AWS Debugger's ExplodingTensor"
    severity = "critical"
    managed = Managed(
        reads="tensors", collections=("losses", "gradients", "weights"), told=True, fields={"only_nan": "only_nan"}
    )
    only_nan: bool = False

    def judge(self, run: RunData) -> Finding:
        evidence: list[Evidence] = []
        datapoints = 0
        for name, series in everything(run):
            values = series.values
            datapoints += len(values)
            bad = np.isnan(values) if self.only_nan else ~np.isfinite(values)
            if bad.any():
                first = int(np.argmax(bad))
                evidence.append(Evidence(step=int(series.steps[first]), name=name, value=float(values[first])))
        if not datapoints:
            return insufficient("no losses or tensors were recorded")
        if not evidence:
            return healthy("every recorded number is finite", datapoints)
        evidence.sort(key=lambda each: each.step or 0)
        first_one = evidence[0]
        lr = run.job.config.get("lr", "?")
        return issue(
            f"{first_one.name} became {first_one.value} at step {first_one.step}",
            f"lower lr (it is {lr}), raise warmup_epochs, or set amp=off if it only happens in bf16",
            evidence,
            datapoints,
        )


@dataclass(frozen=True, kw_only=True)
class LossNotDecreasing(Rule):
    """The training loss does not go down, or goes up again.

    The losses are averaged over windows of `window` steps: m_0, m_1, ... with standard errors. Fires when
    - after the warm-up and `num_steps` further steps, at `patience` windows in a row,
      m_0 - m_k < max(diff_percent % of m_0, 2 standard errors of the difference): it never went down;
    - or m_k > `chance` ln(classes) - 2 standard errors there, where guessing has a loss of ln(classes): it went down
      no further than to ignorance; or
    - at `patience` windows in a row, m_k - min(m_j, j < k) > increase_percent % of m_0 + 3 standard errors: it rises.

    With `literal` it is the managed rule: at every `literal_steps`-th step, the loss must lie `diff_percent` % below
    the one `literal_steps` steps before. On single batches that fires on nearly every healthy run.
    """

    looks_at = "the means of the first, the lowest and the latest window of training losses"
    remedy = "change lr; check that labels and images belong together, and that the head and the loss fit each other"
    source = "AWS Debugger's LossNotDecreasing; the windows and their standard errors are ours: batches differ"
    managed = Managed(
        reads="tensors",
        collections=("losses",),
        told=True,
        fields={"num_steps": "literal_steps", "diff_percent": "diff_percent"},
    )
    aspect = "learning"
    window: int = 20
    num_steps: int = 100
    diff_percent: float = 0.1
    increase_percent: float = 5.0
    patience: int = 2
    chance: float = 0.99
    literal: bool = False
    literal_steps: int = 10

    def judge(self, run: RunData) -> Finding:
        series = run.step("train", "loss")
        losses, steps = series.values, series.steps
        if self.literal:
            return self._literal(run, steps, losses)
        start = run.job.config.get("warmup_epochs", 0) * run.job.steps_per_epoch + self.num_steps
        needed = math.ceil(start / self.window) + self.patience
        count = len(losses) // self.window
        if count < needed:
            return insufficient(f"needs {needed * self.window} steps", len(losses))
        windows = losses[: count * self.window].reshape(count, self.window)
        means, errors = windows.mean(axis=1), windows.std(axis=1, ddof=1) / math.sqrt(self.window)
        both = np.hypot(errors, errors[0])
        flat = means[0] - means < np.maximum(self.diff_percent / 100 * means[0], 2 * both)
        if len(run.job.classes) > 1:
            flat |= means > self.chance * math.log(len(run.job.classes)) - 2 * errors
        flat[: needed - self.patience] = False
        best = np.minimum.accumulate(means)
        best = np.concatenate([means[:1], best[:-1]])
        rising = means - best > self.increase_percent / 100 * means[0] + 3 * both
        ends = steps[self.window - 1 :: self.window]
        lr = run.job.config.get("lr", "?")
        for bad, what, advice in (
            (flat, "does not go down", f"change lr (it is {lr}); check that labels and images belong together"),
            (rising, "is rising", f"lower lr (it is {lr}) or raise warmup_epochs"),
        ):
            at = first_run(bad, self.patience)
            if at is not None:
                names = ("the first window", "the lowest window so far", "this window")
                values = (means[0], best[at], means[at])
                evidence = [
                    Evidence(step=int(ends[at]), name=f"train loss, mean of {name}", value=float(value))
                    for name, value in zip(names, values, strict=True)
                ]
                summary = f"the training loss {what}: {short(means[0])} at first, {short(means[at])} by step"
                return issue(f"{summary} {int(ends[at])}", advice, evidence, len(losses))
        return healthy(f"the training loss went from {short(means[0])} to {short(means[-1])}", len(losses))

    def _literal(self, run: RunData, steps: Floats, losses: Floats) -> Finding:
        evidence = []
        for index in range(self.literal_steps, len(losses), self.literal_steps):
            drop = (losses[index - self.literal_steps] - losses[index]) / abs(losses[index - self.literal_steps])
            if not drop * 100 >= self.diff_percent:
                evidence.append(Evidence(step=int(steps[index]), name="train loss", value=float(losses[index])))
        if len(losses) <= self.literal_steps:
            return insufficient(f"needs more than {self.literal_steps} steps", len(losses))
        if not evidence:
            return healthy("the loss went down at every comparison", len(losses))
        return issue(
            f"the loss did not go down by {self.diff_percent} % at {len(evidence)} comparisons",
            f"change lr (it is {run.job.config.get('lr', '?')}), or use the windowed form: batches differ",
            evidence,
            len(losses),
        )


def everything(run: RunData) -> list[tuple[str, Series]]:
    """Every loss and statistic there is, by the name it has in evidence."""
    found = [(f"{mode} loss", run.step(mode, "loss")) for mode in ("train", "eval")]
    for kind in run.kinds():
        for statistic in ("abs_max", "abs_mean", "l2", "input_std", "mean"):
            found += [(f"{kind[:-1]} {name} {statistic}", series) for name, series in run.tensors(kind, statistic)]
    return found
