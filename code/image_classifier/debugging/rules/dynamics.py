"""Rules over how a loss moves: to and fro, no further, held up by something else, in the same order every epoch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import (
    HALF_OF_DIFFERENCES,
    MASTERED,
    guessing_loss,
    has_learned,
    planned_steps,
    since_not_finite,
)
from image_classifier.debugging.rules.base import (
    Finding,
    Rule,
    healthy,
    insufficient,
    issue,
    listed,
    not_applicable,
    percent,
    short,
)
from image_classifier.debugging.rundata import Floats, RunData
from image_classifier.debugging.schema import Evidence

WINDOWS = (3, 10, 40)  # steps
FIRST = 10  # steps at the beginning


@dataclass(frozen=True, kw_only=True)
class OscillatingLoss(Rule):
    """The training loss swings up and down by far more than batches differ.

    The losses are averaged over windows of 3, 10 and 40 steps. A turn is a change of direction after a rise or fall of
    more than `swing` of the first window's mean and more than `sigmas` standard errors of the difference of two
    windows, by what one step's loss differs from the next's. Fires when windows of one length make `turns` or more, at
    least half of them in the second half of the steps, and the last window is not below a fifth of the loss of
    guessing.
    """

    looks_at = "turns of the mean training loss, and the size of the swings"
    remedy = "lower lr or momentum; shuffle the images; a larger batch_size"
    source = "AUTOTRAINER (ICSE 2021): oscillating loss; the standard errors are ours"
    managed = None
    aspect = "learning"
    swing: float = 0.2
    sigmas: float = 5.0
    turns: int = 8
    fewest: int = 16

    def judge(self, run: RunData) -> Finding:
        series = run.step("train", "loss")
        if (since := since_not_finite(run)) is not None:
            return insufficient(f"the training loss is not finite from step {since} on", len(series))
        sizes = [size for size in WINDOWS if len(series) >= size * self.fewest]
        if not sizes or not run.job.config.get("loss_falls", True):
            return not_applicable("too few steps to swing in")
        noise = float(np.median(np.abs(np.diff(series.values)))) / HALF_OF_DIFFERENCES
        for size in sizes:
            count = len(series) // size
            means = series.values[len(series) - count * size :].reshape(count, size).mean(axis=1)
            least = max(self.swing * abs(float(means[0])), self.sigmas * math.sqrt(2 / size) * noise)
            at = turning_points(means, least)
            late = sum(index >= count // 2 for index in at)
            if len(at) < self.turns or 2 * late < len(at) or means[-1] < MASTERED * guessing_loss(run):
                continue
            steps = [int(series.steps[len(series) - (count - index) * size]) for index in at]
            heights = [float(means[index]) for index in at]
            return issue(
                f"the training loss swings between {short(min(heights))} and {short(max(heights))}: {len(at)} turns by "
                f"step {int(series.steps[-1])}",
                f"lower lr (it is {run.job.config.get('lr', '?')}) or momentum; see that the images are shuffled",
                [
                    Evidence(step=step, name="train loss, mean at a turn", value=height)
                    for step, height in zip(steps, heights, strict=True)
                ],
                len(series),
            )
        return healthy("the training loss does not swing by more than batches differ", len(series))


@dataclass(frozen=True, kw_only=True)
class Plateau(Rule):
    """The loss has stopped falling long before the training ends.

    Fires when the training has learned something, but not nearly all (a fifth of the loss of guessing); when at least
    half of the planned steps are made; and when the loss fell between the two halves of the last `share` of the steps
    by less than `flat` of all that it has fallen by, with a standard error below that. It may be all that the images
    give.
    """

    looks_at = "the mean losses of both halves of the last part of the steps"
    remedy = "lower lr from where it became flat; or fewer epochs; a larger network or better labels, if that is all"
    source = "ours; Keras's ReduceLROnPlateau acts on the same"
    severity = "info"
    managed = None
    share: float = 0.4
    flat: float = 0.05

    def judge(self, run: RunData) -> Finding:
        series = run.step("train", "clean_loss")
        losses = series.values
        part = int(self.share * len(losses)) // 2
        if part < 10 or 2 * len(losses) < planned_steps(run):
            return not_applicable("too few steps")
        if not has_learned(run):
            return healthy("nothing was learned that could end", len(losses))
        before, after = losses[-2 * part : -part], losses[-part:]
        fallen = float(losses[: max(3, part // 2)].mean() - after.mean())
        error = math.hypot(before.std() / math.sqrt(part), after.std() / math.sqrt(part))
        gain = float(before.mean() - after.mean())
        least = self.flat * fallen
        if gain > least or error > least or after.mean() < MASTERED * guessing_loss(run):
            return healthy(f"the loss fell by {short(gain)} over the last {2 * part} steps", len(losses))
        return issue(
            f"the training loss is flat, {short(float(before.mean()))} and {short(float(after.mean()))}, over the last "
            f"{2 * part} of {len(losses)} steps",
            "lower lr earlier (a schedule), or end the training where it became flat",
            [Evidence(step=int(series.steps[-2 * part]), name="train loss, mean", value=float(before.mean()))],
            len(losses),
        )


@dataclass(frozen=True, kw_only=True)
class Regulariser(Rule):
    """What is added to the loss, or what weight decay does, is larger than the loss itself.

    Of a classifier, the excess is the loss that is minimised minus the cross entropy of the same outputs. Looks at the
    latest tenth of the steps, and at the first ten where the cross entropy is not below `learned` of the loss of
    guessing in the latest. Fires when the mean excess there is more than `times` the larger of the cross entropy and of
    the loss of guessing, and it is a sum: it moves smoothly, its logarithm's change from step to step changing by less
    than `steady`, and not by much more than that of the quotient of the two: that of a loss which is scaled does not
    move. Fires too when weight decay has brought at least half of the filters and matrices below `left` of the norm
    that they began with, and the loss has not plainly gone down.
    """

    looks_at = "the loss that is minimised, and the cross entropy of the same outputs"
    remedy = "a smaller factor before the penalty, or weight_decay of the optimiser in its place"
    source = "ours; TheDeepChecker (TOSEM 2022): regularisation that dominates the loss"
    explains = (
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "WeightUpdateRatio",
        "ConstantOutput",
        "ClassImbalance",
        "AllZero",
        "DeadRelu",
        "VanishingGradient",
        "UnchangedTensor",
        "PoorWeightInitialization",
    )
    managed = None
    aspect = "learning"
    times: float = 1.0
    steady: float = 0.05
    learned: float = 0.9
    left: float = 0.2

    def judge(self, run: RunData) -> Finding:
        if (decayed := self._decayed(run)) is not None:
            return decayed
        loss, clean = run.step("train", "loss"), run.step("train", "clean_loss").values
        ignorant = guessing_loss(run)
        part = max(10, len(loss) // 10)
        if not math.isfinite(ignorant) or len(loss) < part or np.array_equal(loss.values, clean):
            return not_applicable("the loss is no cross entropy of classes with something added")
        if not np.isfinite([loss.values, clean]).all():
            return insufficient("the losses are not finite", len(loss))
        latest = slice(len(loss) - part, len(loss))
        parts = [latest, slice(0, FIRST)] if clean[latest].mean() > self.learned * ignorant else [latest]
        for place in parts:
            excess, own = loss.values[place] - clean[place], clean[place]
            much = excess.mean() > self.times * max(float(own.mean()), ignorant)
            varies, scaled = _variation(excess), _variation(loss.values[place] / np.maximum(own, 1e-9))
            if much and varies < self.steady and varies < 2 * scaled:
                step = int(loss.steps[place][-1])
                return issue(
                    f"by step {step} {short(float(excess.mean()))} are added to a cross entropy of "
                    f"{short(float(own.mean()))}: the network is trained to be small, not to be right",
                    "make the factor of the penalty smaller, so that it stays a fraction of the loss",
                    [
                        Evidence(step=step, name="train loss, mean excess", value=float(excess.mean())),
                        Evidence(step=step, name="train cross entropy, mean", value=float(own.mean())),
                    ],
                    len(loss),
                )
        over = float((loss.values[latest] - clean[latest]).mean())
        return healthy(f"the loss exceeds the cross entropy by {short(over)}", len(loss))

    def _decayed(self, run: RunData) -> Finding | None:
        """What there is to say of weights that decay has made small."""
        seen = run.statistics("batch", "optimizer").get("decay_max")
        decay = float(seen.values[-1] if seen is not None else run.job.config.get("weight_decay", 0.0))
        norms = {name: series for name, series in run.tensors("weights", "l2") if len(series) > 1}
        begun = {name: series for name, series in norms.items() if series.values[0] > 0}
        small = [name for name, series in begun.items() if series.values[-1] < self.left * series.values[0]]
        if not decay or not small or 2 * len(small) < len(norms) or has_learned(run):
            return None
        evidence = [
            Evidence(step=int(begun[name].steps[-1]), name=f"weight {name} l2", value=float(begun[name].values[-1]))
            for name in small
        ]
        return issue(
            f"weight decay of {short(decay)} has shrunk {len(small)} of {len(norms)} filters and matrices to less than "
            f"{percent(self.left)} of their size: {listed(small)}",
            "lower weight_decay",
            evidence,
            len(norms),
        )


@dataclass(frozen=True, kw_only=True)
class RepeatedOrder(Rule):
    """Every epoch brings the same batches in the same order.

    What is left of each step's loss beside the mean of its five neighbours is compared between epochs that follow each
    other, place by place. Under shuffling Fisher's atanh of that correlation has a deviation of 1 / sqrt(n - 3) for n
    steps. Fires when the mean over the pairs is more than `sigmas` of it above 0, and the correlation above `least`.
    """

    looks_at = "the correlation of the losses of one epoch and the next, by place"
    remedy = "shuffle anew in every epoch: shuffle=True, set_epoch of a DistributedSampler, no seed within the loop"
    source = "ours"
    severity = "info"  # many trainings come through it unharmed
    managed = None
    sigmas: float = 6.0
    least: float = 0.3
    fewest: int = 12

    def judge(self, run: RunData) -> Finding:
        losses, epochs = run.step("train", "loss").values, run.epochs("train").values
        parts = [losses[epochs == each] for each in np.unique(epochs)]
        length = min(map(len, parts), default=0)
        if length < self.fewest or len(parts) < 3:
            return not_applicable("needs three epochs of a dozen steps")
        if not np.isfinite(losses).all():
            return insufficient("the losses are not finite", len(losses))
        rest = [_beside_neighbours(part[:length]) for part in parts]
        pairs = [float(np.corrcoef(one, other)[0, 1]) for one, other in itertools.pairwise(rest)]
        known = np.clip([each for each in pairs if math.isfinite(each)], -0.999, 0.999)
        if not len(known):
            return insufficient("the losses do not differ within an epoch", len(losses))
        # what is left of a series beside its mean is worth four fifths of its length
        score = float(np.arctanh(known).mean()) * math.sqrt(len(known) * max(1.0, 0.8 * len(rest[0]) - 3))
        usual = float(np.mean(known))
        if score <= self.sigmas or usual < self.least:
            return healthy(f"losses of one epoch and the next correlate by {short(usual)}", len(losses))
        return issue(
            f"the batches of every epoch are the same in the same order: their losses correlate by {short(usual)}",
            "shuffle anew in every epoch",
            [Evidence(step=None, name="correlation of losses by place", value=usual)],
            len(losses),
        )


@dataclass(frozen=True, kw_only=True)
class ReplicasDrift(Rule):
    """The processes of a training no longer have the same weights.

    After each epoch's training steps every process hashes its parameters, bit for bit. Fires when at the end of any
    epoch a process had another hash than the first.
    """

    severity = "critical"
    looks_at = "at each epoch's end, how many processes have other weights than the first"
    remedy = "call the DistributedDataParallel wrapper, not the network in it; the same steps and seeds in each process"
    source = "ours; TrainCheck (OSDI 2025): replicas that drift apart"
    managed = None
    aspect = "learning"

    def judge(self, run: RunData) -> Finding:
        epochs = run.job.replicas
        if not epochs:
            return not_applicable("one process trains")
        bad = [(number, differing) for number, differing in enumerate(epochs, start=1) if differing]
        if not bad:
            return healthy(f"all processes had the same weights after each of {len(epochs)} epochs", len(epochs))
        first, differing = bad[0]
        return issue(
            f"after epoch {first} {differing} of {run.job.world_size} processes had other weights than the first",
            "call the DistributedDataParallel wrapper, not the network in it, and change weights in no process alone",
            [Evidence(step=None, name=f"processes that differ after epoch {n}", value=float(d)) for n, d in bad],
            len(epochs),
        )


def turning_points(means: Floats, least: float) -> list[int]:
    """The places at which a series turns after a move of more than `least`, from its first such move on."""
    found: list[int] = []
    extreme, direction = 0, 0
    low = high = 0
    for index in range(1, len(means)):
        if direction == 0:
            low, high = (index if means[index] < means[low] else low), (index if means[index] > means[high] else high)
            if means[high] - means[low] > least:
                direction, extreme = (1, high) if high > low else (-1, low)
        elif direction * (means[index] - means[extreme]) > 0:
            extreme = index
        elif direction * (means[extreme] - means[index]) > least:
            found.append(extreme)
            direction, extreme = -direction, index
    return found


def _variation(values: Floats) -> float:
    """How unsteadily it moves: the deviation of the second differences of the logarithm, as if each value had one of
    its own."""
    return float(np.diff(np.log(np.maximum(values, 1e-12)), 2).std() / math.sqrt(6))


def _beside_neighbours(values: Floats) -> Floats:
    """Each value beside the mean of the five around it, without the two at either end."""
    smooth = np.convolve(values, np.full(5, 0.2), mode="valid")
    return np.asarray(values[2:-2] - smooth)
