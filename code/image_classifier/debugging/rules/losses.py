"""Rules over numbers that must be finite, and a loss that must go down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import guessing_loss, planned_steps, since_not_finite
from image_classifier.debugging.rules.base import Finding, Rule, healthy, insufficient, issue, not_applicable, short
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rundata import Floats, Mask, RunData, Series
from image_classifier.debugging.schema import Evidence


@dataclass(frozen=True, kw_only=True)
class ExplodingTensor(Rule):
    """A loss, gradient, weight or activation is no longer a finite number.

    Fires when any recorded loss or statistic is infinite or NaN; with `only_nan`, only for NaN.
    """

    explains = (
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "VanishingGradient",
        "PoorWeightInitialization",
        "DeadRelu",
        "WeightUpdateRatio",
        "UnchangedTensor",
        "AllZero",
        "Overfit",
        "Overtraining",
        "ClassImbalance",
        "OscillatingLoss",
    )
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

    The losses are averaged over windows: m_0, m_1, ... with standard errors from the deviation within all windows. A
    window has `window` steps, or a tenth of a training with fewer than ten such. Fires when, at the `patience` latest
    windows, after the warm-up and `num_steps` further steps, of a short training half of it,
    - m_0 - m_k < max(diff_percent % of |m_0|, 2 standard errors of the difference): it never went down; but for a loss
      below `known` of that of guessing all along, of a network that was trained before, and for one that is not above 0
      at first, which is no distance from anything;
    - or m_k > `chance` times the loss of guessing - 2 standard errors, and it is not on its way: it went down no
      further than to ignorance. Guessing has the entropy of the labels, ln(classes) where they are balanced. A loss
      that still falls from window to window, before the last planned step, is on its way;
    - or m_k - min(m_j, j < k) > increase_percent % of |m_0| + 3 standard errors: it rises.

    The deviation within windows is their mean for a rise; otherwise their median, which a steep beginning does not
    touch. A loss that falls later takes the finding back.

    With `literal` it is the managed rule: at every `literal_steps`-th step, the loss must lie `diff_percent` % below
    the one `literal_steps` steps before. On single batches that fires on nearly every healthy run.
    """

    explains = ("ClassImbalance", "Overtraining", "NoBetterThanGuessing")
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
    known: float = 0.8
    literal: bool = False
    literal_steps: int = 10

    def judge(self, run: RunData) -> Finding:
        series = run.step("train", "loss")
        losses, steps = series.values, series.steps
        if not run.job.config.get("loss_falls", True):
            return not_applicable("this loss need not fall")
        if self.literal:
            return self._literal(run, steps, losses)
        if (since := since_not_finite(run)) is not None:
            return insufficient(f"the training loss is not finite from step {since} on", len(losses))
        planned = planned_steps(run)
        size = max(3, min(self.window, planned // 10))
        start = run.job.config.get("warmup_epochs", 0) * run.job.steps_per_epoch + min(self.num_steps, planned // 2)
        needed = math.ceil(start / size) + self.patience
        count = len(losses) // size
        if count < needed:
            return insufficient(f"needs {needed * size} steps", len(losses))
        windows = losses[len(losses) - count * size :].reshape(count, size)  # the latest step is in the latest window
        means = windows.mean(axis=1)
        variances = windows.var(axis=1, ddof=1)
        error, usual = (math.sqrt(float(each) / size) for each in (variances.mean(), np.median(variances)))
        at = steps[-1]
        flat = means[0] - means < max(self.diff_percent / 100 * abs(means[0]), 2 * math.sqrt(2) * usual)
        guessing = guessing_loss(run)
        if means[0] <= 0 or means.max() < self.known * guessing:
            flat[:] = False
        lowest = np.concatenate([means[:1], np.minimum.accumulate(means)[:-1]])
        rising = means - lowest > self.increase_percent / 100 * abs(means[0]) + 3 * math.sqrt(2) * error
        ignorant = self._ignorant(run, means, usual, len(losses) < planned)
        lr = run.job.config.get("lr", "?")
        look = f"change lr (it is {lr}); check that labels and images belong together"
        for bad, what, advice in (
            (flat, f"does not go down: {short(means[0])} at first, {short(means[-1])} by step {int(at)}", look),
            (
                ignorant,
                f"went from {short(means[0])} to {short(means[-1])} by step {int(at)}, no further down than guessing "
                f"({short(guessing)})",
                f"{look}, and that head and loss fit each other",
            ),
            (
                rising,
                f"is rising: {short(lowest[-1])} at its lowest, {short(means[-1])} by step {int(at)}",
                f"lower lr (it is {lr}) or raise warmup_epochs",
            ),
        ):
            if bad[-self.patience :].all():
                names = ("the first window", "the lowest window so far", "this window")
                evidence = [
                    Evidence(step=int(at), name=f"train loss, mean of {name}", value=float(value))
                    for name, value in zip(names, (means[0], lowest[-1], means[-1]), strict=True)
                ]
                return issue(f"the training loss {what}", advice, evidence, len(losses))
        return healthy(f"the training loss went from {short(means[0])} to {short(means[-1])}", len(losses))

    def _ignorant(self, run: RunData, means: Floats, error: float, unfinished: bool) -> Mask:
        """By window, whether the loss is that of guessing; nowhere when the loss is no cross entropy of classes."""
        guessing = guessing_loss(run)
        clean = run.step("train", "clean_loss").values
        nowhere = np.zeros(len(means), np.bool_)
        if not math.isfinite(guessing) or abs(clean.mean() - means.mean()) > 0.2 * guessing:
            return nowhere
        on_its_way = len(means) > 2 and means[-3] - means[-1] > max(0.02 * abs(means[-3]), 2 * math.sqrt(2) * error)
        if unfinished and on_its_way:
            return nowhere
        return np.asarray(means > self.chance * guessing - 2 * error)

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


@dataclass(frozen=True, kw_only=True)
class StartsAnew(Rule):
    """Every epoch begins where the training began: what was learned is lost.

    The losses of each epoch's first tenth of steps are compared with those of the last tenth of the epoch before.
    Fires when at each of the `patience` latest epochs the loss has risen by more than `share` of all that it had fallen
    by since the training's first tenth of an epoch, and by more than 3 standard errors.
    """

    explains = ("LossNotDecreasing", "NoBetterThanGuessing", "WeightUpdateRatio", "OscillatingLoss")
    looks_at = "losses at the end of an epoch and at the beginning of the next"
    remedy = "make network and optimiser once, before the first epoch; do not load or reset weights in the loop"
    source = "ours"
    managed = None
    aspect = "learning"
    patience: int = 3
    share: float = 0.6

    def judge(self, run: RunData) -> Finding:
        losses, epochs = run.step("train", "loss"), run.epochs("train").values
        parts = [losses.values[epochs == each] for each in np.unique(epochs)]
        if len(parts) <= self.patience:
            return insufficient(f"needs more than {self.patience} epochs", len(losses))
        size = max(1, min(map(len, parts)) // 10)
        if min(map(len, parts)) < 4:
            return insufficient("needs epochs of four steps or more", len(losses))
        starts = np.array([part[:size].mean() for part in parts])
        ends = np.array([part[-size:].mean() for part in parts])
        error = float(np.mean([part[len(part) // 2 :].std() for part in parts])) / math.sqrt(size)
        rise, fallen = starts[1:] - ends[:-1], starts[0] - ends[:-1]
        lost = (rise > self.share * fallen) & (rise > 3 * error) & (fallen > 3 * error)
        if not lost[-self.patience :].all():
            return healthy("each epoch goes on where the one before ended", len(losses))
        return issue(
            f"each epoch begins anew: the loss rises from {short(float(ends[-2]))} to {short(float(starts[-1]))}, and "
            f"began at {short(float(starts[0]))}",
            "make network and optimiser once, before the first epoch; do not load or reset weights in the loop",
            [
                Evidence(
                    step=int(losses.steps[-len(parts[-1])]),
                    name="train loss, first of the epoch",
                    value=float(starts[-1]),
                )
            ],
            len(losses),
        )


def everything(run: RunData) -> list[tuple[str, Series]]:
    """Every loss and statistic there is, by the name it has in evidence."""
    found = [(f"{mode} loss", run.step(mode, "loss")) for mode in ("train", "eval")]
    for kind in run.kinds():
        for statistic in ("abs_max", "abs_mean", "l2", "input_std", "mean"):
            found += [(f"{kind[:-1]} {name} {statistic}", series) for name, series in run.tensors(kind, statistic)]
    return found
