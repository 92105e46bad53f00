"""Rules over what the optimiser has and gets: parameters, gradients, learning rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import has_learned
from image_classifier.debugging.rules.base import (
    Finding,
    Rule,
    healthy,
    insufficient,
    issue,
    not_applicable,
    percent,
    short,
)
from image_classifier.debugging.rules.batches import of_batches
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import Evidence

UNSEEN = "the optimiser was not looked at: the project's own trainer makes it from the network"


@dataclass(frozen=True, kw_only=True)
class LeftOutParameters(Rule):
    """Parameters that should train do not: the optimiser has not got them, or no gradient reaches them.

    Fires when, at all of `patience` or more recorded steps, a filter or matrix that requires a gradient is not among
    the optimiser's parameters, or has no gradient at all; or when the outputs are computed with one that neither the
    network's nor the optimiser's parameters hold (layers in a list that is no nn.ModuleList).
    """

    severity = "critical"
    explains = (
        "UnchangedTensor",
        "AllZero",
        "VanishingGradient",
        "WeightUpdateRatio",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ConstantOutput",
        "ClassImbalance",
        "PoorWeightInitialization",
    )
    looks_at = "how many filters and matrices train, how many the optimiser lacks, how many get no gradient"
    remedy = "make the optimiser after the network is complete, of model.parameters(); look for detach() and no_grad()"
    source = "ours; TrainCheck (OSDI 2025)"
    managed = None
    aspect = "learning"
    patience: int = 2

    def judge(self, run: RunData) -> Finding:
        outside = of_batches(run, "graph").get("outside")
        if outside is not None and len(outside) >= self.patience and (outside.values > 0).all():
            return issue(
                f"{int(outside.values[-1])} filters and matrices that the outputs come from belong to no registered "
                "layer: nobody trains them",
                "keep layers in nn.ModuleList or as attributes, and hand the optimiser their parameters",
                [Evidence(step=int(outside.steps[0]), name="graph outside", value=float(outside.values[0]))],
                len(outside),
            )
        seen = of_batches(run, "optimizer")
        if not seen:
            return not_applicable(UNSEEN)
        steps = len(seen["trained"])
        if steps < self.patience:
            return insufficient(f"needs {self.patience} recorded steps", steps)
        trained = int(seen["trained"].values[-1])
        for kind, what, advice in (
            (
                "strangers",
                "are not among the optimiser's parameters",
                "make the optimiser of this network's parameters, after its last layer has been put in",
            ),
            (
                "without_gradient",
                "get no gradient",
                "look for detach(), no_grad(), .item() or a part that the loss does not use",
            ),
        ):
            bad = seen[kind].values
            if (bad > 0).all():
                return issue(
                    f"{int(bad[-1])} of {trained} filters and matrices {what}",
                    advice,
                    [Evidence(step=int(seen[kind].steps[0]), name=f"optimizer {kind}", value=float(bad[-1]))],
                    steps,
                )
        return healthy(f"the optimiser has all {trained} filters and matrices", steps)


@dataclass(frozen=True, kw_only=True)
class StaleGradient(Rule):
    """Gradients pile up from step to step: nothing sets them to zero.

    Fires when, at all of `patience` or more recorded steps after the first, more than `share` of the last layer's
    gradient points elsewhere than what the backward passes of the step gave.
    """

    severity = "critical"
    explains = (
        "ExplodingTensor",
        "WeightUpdateRatio",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "DeadRelu",
        "ConstantOutput",
        "ClassImbalance",
        "Overfit",
        "PoorWeightInitialization",
        "UnchangedTensor",
        "VanishingGradient",
        "AllZero",
        "OscillatingLoss",
    )
    looks_at = "the share of the last layer's gradient that this step's backward passes do not explain"
    remedy = "call optimizer.zero_grad() once a step, before the backward pass"
    source = "ours; TrainCheck (OSDI 2025): missing zero_grad"
    managed = None
    aspect = "learning"
    share: float = 0.1
    patience: int = 3

    def judge(self, run: RunData) -> Finding:
        stale = of_batches(run, "gradient").get("stale")
        if stale is None:
            return not_applicable(UNSEEN)
        values, steps = stale.values[stale.steps > 0], stale.steps[stale.steps > 0]
        finite = np.isfinite(values)
        values, steps = values[finite], steps[finite]
        if len(values) < self.patience:
            return insufficient(
                f"needs finite gradients of {self.patience} recorded steps after the first", len(values)
            )
        if not (values > self.share).all():
            return healthy(f"{percent(float(values.min()))} of a gradient is from before the step", len(values))
        return issue(
            f"{percent(float(np.median(values)))} of the last layer's gradient is left from earlier steps",
            self.remedy,
            [Evidence(step=int(steps[0]), name="gradient stale", value=float(values[0]))],
            len(values),
        )


@dataclass(frozen=True, kw_only=True)
class LearningRate(Rule):
    """The learning rate is nothing, or never left its warm-up.

    Fires when, at all of `patience` or more recorded steps, the largest learning rate of the optimiser is 0; or when a
    training that has ended, or has made all planned steps, had its largest rate last, after it rose all the way to more
    than `risen` times the first, and the loss has not plainly gone down.
    """

    explains = ("UnchangedTensor", "WeightUpdateRatio", "LossNotDecreasing", "NoBetterThanGuessing", "ClassImbalance")
    looks_at = "the optimiser's largest learning rate at the recorded steps"
    remedy = "lr; a schedule that knows how many steps there are"
    source = "ours; TrainCheck (OSDI 2025)"
    managed = None
    aspect = "learning"
    patience: int = 3
    risen: float = 5.0

    def judge(self, run: RunData) -> Finding:
        rates = of_batches(run, "optimizer").get("lr_max")
        if rates is None:
            return not_applicable(UNSEEN)
        values = rates.values
        if len(values) < self.patience:
            return insufficient(f"needs {self.patience} recorded steps", len(values))
        evidence = [Evidence(step=int(rates.steps[0]), name="optimizer lr_max", value=float(values[0]))]
        if not values.any():
            return issue(
                "the learning rate is 0", "set lr, and look at what the schedule makes of it", evidence, len(values)
            )
        rising = bool((np.diff(values) > 0).all()) and values[-1] > self.risen * max(values[0], 1e-30)
        if rising and run.finished and not has_learned(run):
            return issue(
                f"the learning rate rose from {short(float(values[0]))} to {short(float(values[-1]))} without an end: "
                "it did not leave its warm-up",
                "shorten the warm-up, or train for more steps",
                evidence,
                len(values),
            )
        return healthy(f"learning rate from {short(float(values.min()))} to {short(float(values.max()))}", len(values))


@dataclass(frozen=True, kw_only=True)
class DecayedNorms(Rule):
    """Weight decay pulls on biases and on the parameters of norms, where it regularises nothing.

    Fires when, at the latest recorded step, the optimiser decays a bias or a parameter of a norm.
    """

    severity = "info"  # many trainings come through it unharmed
    looks_at = "how many biases and parameters of norms are in a group with weight decay"
    remedy = "two groups of parameters: weight_decay for filters and matrices, 0 for all with one dimension"
    source = "ours; He et al. 2019, Bag of Tricks for Image Classification, 3.1: no bias decay"
    managed = None

    def judge(self, run: RunData) -> Finding:
        decayed = of_batches(run, "optimizer").get("decayed")
        if decayed is None:
            return not_applicable(UNSEEN)
        if not decayed.values[-1]:
            return healthy("no bias or norm is decayed", len(decayed))
        count = int(decayed.values[-1])
        return issue(
            f"{count} biases and parameters of norms are decayed",
            "give the optimiser two groups of parameters, and weight_decay 0 for those with one dimension",
            [Evidence(step=int(decayed.steps[-1]), name="optimizer decayed", value=float(count))],
            len(decayed),
        )
