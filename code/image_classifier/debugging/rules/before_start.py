"""Rules over what was looked at before the first step, on a copy of the network: see debugging/preflight.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from image_classifier.debugging.rules.base import (
    Finding,
    Rule,
    healthy,
    insufficient,
    issue,
    listed,
    not_applicable,
    short,
)
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import Evidence

NOT_LOOKED = "there was no preflight"
NEVER_LEARNS = ("LossNotDecreasing", "NoBetterThanGuessing", "ClassImbalance")


def part_of(run: RunData, name: str) -> Mapping[str, Any] | Finding:
    """What was found in a part of the preflight, or why nothing can be said of it."""
    part = run.job.preflight.get(name)
    if part is None:
        return not_applicable(NOT_LOOKED)
    if "failed" in part:
        return insufficient(f"the preflight could not look: {part['failed']}")
    return part  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class InitialLoss(Rule):
    """Before the first step the loss is far above that of not knowing.

    A network that knows nothing gives all classes the same share: a cross entropy of ln(classes). Fires when the copy's
    first cross entropy is not finite, or more than `times` that. One far below has learned before, and is no finding.
    """

    looks_at = "the cross entropy of a batch before the first step, and ln(outputs)"
    remedy = "a last layer with small weights; scale the inputs; look at how the layers before it are initialised"
    source = "Karpathy 2019, A Recipe for Training Neural Networks: verify loss @ init; the factor is ours"
    explains = ("WeightUpdateRatio",)
    managed = None
    aspect = "learning"
    times: float = 2.0

    def judge(self, run: RunData) -> Finding:
        part = part_of(run, "initial")
        if isinstance(part, Finding):
            return part
        if "cross_entropy" not in part or part["columns"] < 2:
            return not_applicable("the outputs are no answers to classes")
        loss, ignorant = part["cross_entropy"], math.log(part["columns"])
        if loss is not None and loss <= self.times * ignorant:
            return healthy(f"before the first step the loss is {short(loss)}; ln(classes) is {short(ignorant)}", 1)
        value = math.nan if loss is None else loss
        said = "not finite" if loss is None else short(loss)
        return issue(
            f"before the first step the loss is {said}: not to know is {short(ignorant)}",
            "begin with a last layer of small weights, scale the inputs, and look at the initialisation of the layers",
            [Evidence(step=None, name="preflight cross_entropy", value=value)],
            1,
        )


@dataclass(frozen=True, kw_only=True)
class OneBatch(Rule):
    """A copy of the network does not even learn one batch by heart.

    A copy, without dropout, is trained on eight images for twelve steps of Adam (a network without norms: sixty) at
    0.001, then, from the same weights, at 0.01. Fires when the lowest loss is still above `share` of the first, or was
    never finite; not when the first was below `learned` of ln(classes), or all eight have one label.
    """

    severity = "critical"
    looks_at = "the copy's first and lowest loss"
    remedy = "the head and the loss must fit; look for layers that pass no signal, detach(), inputs that are all alike"
    source = "Karpathy 2019, A Recipe for Training Neural Networks: overfit one batch; TheDeepChecker (TOSEM 2022)"
    explains = (*NEVER_LEARNS, "ConstantOutput", "Overtraining")
    managed = None
    aspect = "learning"
    share: float = 0.8
    learned: float = 0.1

    def judge(self, run: RunData) -> Finding:
        part, initial = part_of(run, "one_batch"), part_of(run, "initial")
        if isinstance(part, Finding) or isinstance(initial, Finding):
            return part if isinstance(part, Finding) else initial  # type: ignore[return-value]
        first, best = part["first"], part["best"]
        if part["distinct"] < 2:
            return not_applicable("the images of the preflight all have one label")
        if part.get("cut"):
            return not_applicable("the steps of the preflight took too long")
        known = self.learned * math.log(max(2, initial.get("columns", 2)))
        if first is not None and best is not None and (best <= self.share * first or abs(first) <= known):
            return healthy(f"a copy brings the loss of one batch from {short(first)} to {short(best)}", 1)
        if first is None or best is None:
            went = "the loss of one batch is not finite"
        else:
            went = f"a copy brings the loss of one batch from {short(first)} to {short(best)} only, in steps enough"
        return issue(
            f"{went}: this network does not learn eight images by heart",
            "see that head and loss fit, that a gradient reaches the layers, and that the inputs differ",
            [Evidence(step=None, name="preflight best loss", value=math.nan if best is None else best)],
            1,
        )


@dataclass(frozen=True, kw_only=True)
class GradientReach(Rule):
    """Layers that should train get no gradient.

    Fires when the preflight's copy gave a filter or matrix that requires a gradient none other than 0, in any of its
    steps on one batch (see OneBatch). What starts behind a zero (a residual branch, a head) has got one by its third.
    """

    severity = "critical"
    looks_at = "the filters and matrices that no step of the copy gave a gradient"
    remedy = "look for detach(), no_grad(), a layer that the loss does not use, units that are all dead"
    source = "ours; TrainCheck (OSDI 2025)"
    explains = (
        *NEVER_LEARNS,
        "OneBatch",
        "UnchangedTensor",
        "AllZero",
        "VanishingGradient",
        "WeightUpdateRatio",
        "ConstantOutput",
        "PoorWeightInitialization",
        "DeadRelu",
    )
    managed = None
    aspect = "learning"

    def judge(self, run: RunData) -> Finding:
        part = part_of(run, "gradients")
        if isinstance(part, Finding):
            return part
        names, trained = part["unreached"], int(part["trained"])
        if not names:
            return healthy(f"a gradient reaches all {trained} filters and matrices", trained)
        return issue(
            f"no gradient reaches {len(names)} of {trained} filters and matrices: {listed(names)}",
            "look for detach(), no_grad(), a layer that the loss does not use, or units that are all dead; freeze what "
            "is not to train",
            [Evidence(step=None, name=f"gradient {name} abs_max", value=0.0) for name in names],
            trained,
        )


@dataclass(frozen=True, kw_only=True)
class AugmentedInputs(Rule):
    """Augmentation makes other pictures than those the network will be asked about.

    The channels' means and deviations of a few images are compared with and without augmentation. Fires when a mean
    moves by more than `shift` of the channel's deviation, or a deviation changes by more than a factor of `stretch`.
    """

    looks_at = "the channel whose mean moves most, and the one whose deviation changes most"
    remedy = "normalise augmented and other images alike, and once; augment=light"
    source = "ours"
    managed = None
    aspect = "generalization"
    shift: float = 0.6
    stretch: float = 1.8

    def judge(self, run: RunData) -> Finding:
        part = part_of(run, "augmentation")
        if isinstance(part, Finding):
            return part
        if not part:
            return not_applicable("there is no augmentation to look at")
        shift, stretch = (math.inf if part[name] is None else part[name] for name in ("shift", "stretch"))
        said = f"by {short(shift)} deviations, and changes a deviation by a factor of {short(stretch)}"
        if abs(shift) <= self.shift and 1 / self.stretch <= stretch <= self.stretch:
            return healthy(f"augmentation moves a channel's mean {said}", 1)
        return issue(
            f"augmentation moves a channel's mean {said}: what is trained on is not what will be asked",
            "normalise augmented and other images alike, and once; look at a batch of both",
            [
                Evidence(step=None, name="augmentation shift", value=shift),
                Evidence(step=None, name="augmentation stretch", value=stretch),
            ],
            1,
        )


@dataclass(frozen=True, kw_only=True)
class ModesAgree(Rule):
    """Training and evaluation mode compute different things of the same batch.

    In a copy without dropout the batch norms' running statistics are set to those of the batch itself: then both modes
    must give the same. Fires when the outputs differ by more than `most` of their deviation over the batch. Not asked
    where a batch norm is used more than once: it has one memory for two inputs.
    """

    looks_at = "the largest difference of an output between the modes, over the outputs' deviation"
    remedy = "F.dropout(..., training=self.training); batch norms and branches that ask self.training, not a constant"
    source = "ours; TheDeepChecker (TOSEM 2022) and UMLAUT (CHI 2021) have faults of modes"
    managed = None
    aspect = "generalization"
    most: float = 0.1

    def judge(self, run: RunData) -> Finding:
        part = part_of(run, "modes")
        if isinstance(part, Finding):
            return part
        if part["several"]:
            return not_applicable("a batch norm is used more than once")
        difference = math.inf if part["difference"] is None else part["difference"]
        if difference <= self.most:
            return healthy(f"both modes agree to {short(difference)} of the outputs' deviation", 1)
        return issue(
            f"training and evaluation mode disagree by {short(difference)} times the outputs' deviation on the same "
            "batch, with the same statistics and without dropout",
            "look for dropout or noise that does not ask self.training, and for a batch norm called with a constant",
            [Evidence(step=None, name="preflight modes difference", value=difference)],
            1,
        )


@dataclass(frozen=True, kw_only=True)
class InputsForWeights(Rule):
    """The inputs are not what the weights have seen: another order of the channels, another scale.

    Looks at what reaches the first batch norm, where its running statistics are of an earlier training: the median over
    its channels of |mean - running mean| in deviations, plus |ln(variance / running variance)|. Fires when that is
    above `far`; or above `least` while the same inputs with their three channels reversed come to less than `better` of
    it. The order of the channels can be told only where the images are like those that the weights have seen: other
    subjects move the statistics as far.
    """

    looks_at = "the distance from the first batch norm's running statistics, as given and with the channels reversed"
    remedy = "give the network what its weights were trained on: RGB or BGR, the same normalisation, the same layout"
    source = "ours"
    managed = None
    aspect = "learning"
    far: float = 3.0
    least: float = 0.1
    better: float = 0.5

    def judge(self, run: RunData) -> Finding:
        part = part_of(run, "inputs")
        if isinstance(part, Finding):
            return part
        if not part:
            return not_applicable("no batch norm has statistics of an earlier training")
        given = math.inf if part["as_given"] is None else part["as_given"]
        turned = part.get("reversed")
        what = "another scale, normalisation or layout"
        if turned is not None and given > self.least and turned < self.better * given:
            what = f"with the channels reversed they would lie {short(turned)} from it: their order is wrong"
        elif given <= self.far:
            return healthy(f"the inputs lie {short(given)} from what the first batch norm has seen", 1)
        values = {"as given": given, **({} if turned is None else {"reversed": turned})}
        return issue(
            f"the inputs lie {short(given)} from what the weights' first batch norm has seen; {what}",
            "give the network what its weights were trained on: the order of the channels, the normalisation",
            [Evidence(step=None, name=f"first batch norm {name}", value=value) for name, value in values.items()],
            1,
        )


@dataclass(frozen=True, kw_only=True)
class FrozenUntrained(Rule):
    """Layers are frozen whose weights nobody has trained.

    Fires when two or more frozen filters and matrices of a thousand weights or more, and at least `share` of all such,
    are distributed as an initialisation makes them, uniform or normal with the deviation that their shape gives, while
    no norm that is frozen with them has been trained either; see debugging/fresh_weights.py.
    """

    severity = "critical"
    looks_at = "the frozen layers whose weights have the distribution of an initialisation"
    remedy = "load trained weights before freezing (weights=imagenet), or train all of it (fine_tune=full)"
    source = "ours; TrainCheck (OSDI 2025) has faults of what is frozen"
    explains = (*NEVER_LEARNS,)
    managed = None
    aspect = "learning"
    share: float = 0.5

    def judge(self, run: RunData) -> Finding:
        part = part_of(run, "frozen")
        if isinstance(part, Finding):
            return part
        names, count = part["fresh"], int(part["looked_at"])
        if count < 2:
            return not_applicable("nothing large is frozen")
        if len(names) < max(2, self.share * count):
            return healthy(f"{count - len(names)} of {count} frozen layers have been trained", count)
        return issue(
            f"{len(names)} of {count} frozen layers have the weights of an initialisation: {listed(names)}",
            "load trained weights (weights=imagenet) before freezing, or train all of it (fine_tune=full)",
            [Evidence(step=None, name="frozen layers untrained", value=float(len(names)))],
            count,
        )
