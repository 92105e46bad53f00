"""Rules over the statistics of gradients, weights and activations by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import aligned, has_learned, has_mastered
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
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rules.rows import equal_weights, finite_part, in_a_row, unique_names, until_the_last
from image_classifier.debugging.rundata import Floats, RunData, Series
from image_classifier.debugging.schema import Evidence

ROUNDING = 1e-7  # the deviation that float32 leaves of numbers of about 1 that are all the same
FIRST_ACTIVATION = 5  # the first step after step 0 at which activations are recorded


@dataclass(frozen=True, kw_only=True)
class VanishingGradient(Rule):
    """Some layers learn nothing because their gradients are far smaller than the others'.

    A layer's gradient vanishes at a recorded step when its mean absolute value is below `threshold` and below
    `relative` times the largest layer's. Fires when a layer's gradient vanishes at `patience` recorded steps in a row,
    all after `start_step`.

    `threshold` is the managed rule's. It fires on any layer below it; the second condition keeps quiet at the end of a
    good training, where all gradients shrink together, and while residual branches that start at zero
    (zero_init_residual) come to life: from step 5 on, theirs were above 1e-6 of the largest in a ResNet50, those of
    twelve layers of sigmoids below 1e-9.
    """

    explains = (
        "ConstantOutput",
        "PoorWeightInitialization",
        "UnchangedTensor",
        "WeightUpdateRatio",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ClassImbalance",
    )
    looks_at = "the mean absolute gradient of each layer that vanishes, with the step"
    remedy = "batch norm or residual connections instead of saturating activations; weights=imagenet"
    source = "AWS Debugger's VanishingGradient; Glorot and Bengio 2010"
    managed = Managed(reads="tensors", collections=("gradients",), fields={"threshold": "threshold"})
    aspect = "learning"
    threshold: float = 1e-7
    relative: float = 1e-7
    patience: int = 2
    start_step: int = 5

    def judge(self, run: RunData) -> Finding:
        layers = dict(run.tensors("gradients", "abs_mean"))
        steps, table = finite_part(*aligned(layers, self.start_step))
        if len(steps) < self.patience:
            return insufficient(
                f"needs finite gradients of {self.patience} steps from step {self.start_step} on", table.size
            )
        largest = table.max(axis=0)
        vanished = (table < self.threshold) & (table < self.relative * largest)
        evidence = in_a_row(vanished, self.patience, steps, table, [f"gradient {name} abs_mean" for name in layers])
        if not evidence:
            return healthy(f"the smallest gradient's mean is {short(float(table.min()))}", table.size)
        names = unique_names(evidence)
        return issue(
            f"the gradients of {len(names)} of {len(layers)} layers vanish: {listed(names)}",
            "use ReLU with batch norm or residual connections instead of saturating activations; with weights=none "
            "check the initialisation, else start from weights=imagenet",
            evidence,
            table.size,
        )


@dataclass(frozen=True, kw_only=True)
class PoorWeightInitialization(Rule):
    """The initial weights let the signal die out or blow up from layer to layer.

    Fires when, at the first recorded step, if that is among the first `steps`, the standard deviation of what enters
    the activations (over images and positions, mean over units) differs between layers by more than a factor of
    `std_ratio`; a layer without any deviation counts as infinitely far. What comes later, the training has made. Fires
    too when two layers or more begin with all their weights equal. A network that learns all the same takes the finding
    back, but for equal weights. One image has no deviation: where no layer has more to look at, nothing is said.

    The managed rule takes variances apart by a factor of 10 (a deviation of 3.2), which the sum over the residual
    blocks of a healthy ResNet50 exceeds. Its second test, the smallest gradient, fires on every network whose residual
    branches start at zero; VanishingGradient looks at gradients once these have come to life.
    """

    explains = (
        "ConstantOutput",
        "VanishingGradient",
        "AllZero",
        "DeadRelu",
        "UnchangedTensor",
        "WeightUpdateRatio",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ClassImbalance",
    )
    looks_at = "the largest over the smallest deviation of what enters the activations, by step"
    remedy = "weights=imagenet; He initialisation and batch norm in layers of your own"
    source = "AWS Debugger's PoorWeightInitialization; He et al. 2015 (arXiv 1502.01852)"
    managed = Managed(
        reads="tensors",
        collections=("losses", "gradients", "relu_input"),
        patterns={"activation_inputs_regex": "relu_input"},
    )
    aspect = "learning"
    steps: int = 10
    std_ratio: float = 30.0

    def judge(self, run: RunData) -> Finding:
        equal = equal_weights(run)
        if equal:
            return issue(
                f"all weights of {len(equal)} layers are equal, so their units learn the same: "
                f"{listed(unique_names(equal))}",
                "initialise weights at random",
                equal,
                len(equal),
            )
        layers = dict(run.tensors("activations", "input_std"))
        steps, table = finite_part(*aligned(layers, 0, self.steps))
        steps, table = steps[:1], table[:, :1]
        if not table.size:
            return insufficient(f"needs finite activations of the first {self.steps} steps, of two images or more")
        if has_learned(run):
            return healthy("whatever the signal does from layer to layer, the network learns", table.size)
        with np.errstate(divide="ignore", invalid="ignore"):  # infinities and zeros are what it looks for
            nothing = table.min(axis=0) <= ROUNDING
            spread = np.where(nothing, math.inf, table.max(axis=0) / table.min(axis=0))
        evidence = [
            Evidence(step=int(step), name="activations largest / smallest input_std", value=float(value))
            for step, value in zip(steps, spread, strict=True)
            if value > self.std_ratio
        ]
        if not evidence:
            return healthy(f"the signal's deviation differs by a factor of {short(float(spread.max()))}", table.size)
        return issue(
            f"the deviation of what enters the activations {self._words(evidence[0].value)} at step "
            f"{evidence[0].step}: the signal dies out or blows up",
            "start from weights=imagenet; for layers of your own use He initialisation and batch norm",
            evidence,
            table.size,
        )

    @staticmethod
    def _words(spread: float) -> str:
        if math.isinf(spread):
            return "is 0 in some layers"
        return f"differs by a factor of {short(spread)} between layers"


@dataclass(frozen=True, kw_only=True)
class DeadRelu(Rule):
    """Units of a ReLU that are never above zero learn nothing.

    A unit (channel) is dead at a recorded step when less than 1 % of its outputs, over images and positions, are above
    0. Fires when more than `threshold` of a layer's units are dead at the `patience` latest recorded steps, from
    `start_step` on. Only for activations with zeros: ReLU and its like. Of fewer than `looks` images and positions it
    says nothing: a unit that is active now and then has not been seen to be. A network that answers nearly everything
    rightly (a loss below a fifth of what guessing has) has units to spare.
    """

    explains = (
        "ConstantOutput",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ClassImbalance",
        "AllZero",
        "UnchangedTensor",
    )
    looks_at = "the share of dead units of each layer, with the step"
    remedy = "lower lr or raise warmup_epochs; dead units do not come back"
    source = "AWS Debugger's DeadRelu; Lu et al. 2019 (arXiv 1903.06733)"
    managed = Managed(reads="tensors", collections=("relu_output",), patterns={"tensor_regex": "relu_output"})
    threshold: float = 0.5
    patience: int = 2
    start_step: int = 1
    looks: int = 48

    def judge(self, run: RunData) -> Finding:
        layers = self._layers(run)
        if isinstance(layers, Finding):
            return layers
        steps, table = finite_part(*aligned(layers, self.start_step))
        if len(steps) < self.patience:
            return insufficient(
                f"needs finite activations of {self.patience} steps from step {self.start_step} on", table.size
            )
        labels = [f"activation {name} dead_share" for name in layers]
        evidence = until_the_last(table > self.threshold, self.patience, steps, table, labels)
        if evidence and has_mastered(run):
            worst = max(each.value for each in evidence)
            return healthy(
                f"{percent(worst)} of a layer's units are dead, and the network needs none of them", table.size
            )
        if not evidence:
            worst = float(table[:, -1].max())
            return healthy(f"at most {percent(worst)} of a layer's units are dead", table.size)
        worst_one = max(evidence, key=lambda each: each.value)
        return issue(
            f"{percent(worst_one.value)} of the units of {unique_names([worst_one])[0]} are dead, "
            f"and more than {percent(self.threshold)} in {len(evidence)} of {len(layers)} layers",
            f"lower lr (it is {run.job.config.get('lr', '?')}) or raise warmup_epochs; dead units do not come back",
            evidence,
            table.size,
        )

    def _layers(self, run: RunData) -> dict[str, Series] | Finding:
        """The dead share of the layers that can be judged; why there is none."""
        recorded = dict(run.tensors("activations", "dead_share"))
        if not recorded:
            return insufficient("no activations were recorded")
        zeros = [name for name in recorded if run.statistics("activations", name)["zero_share"].values.any()]
        if not zeros:
            return not_applicable("no activation of this network gives zeros")
        found = {name: recorded[name] for name in zeros if self._seen_enough(run, name)}
        return found or insufficient(f"needs {self.looks} images or positions of each unit: larger batches show them")

    def _seen_enough(self, run: RunData, name: str) -> bool:
        looks = run.statistics("activations", name).get("looks")
        return looks is None or not len(looks) or float(looks.values.max()) >= self.looks


@dataclass(frozen=True, kw_only=True)
class UnchangedTensor(Rule):
    """A tensor that should change does not.

    Fires when all statistics of a gradient or weight are the same, within `rtol` and `atol`, at `patience` recorded
    steps in a row that lie at least `min_steps` steps apart in all.

    The managed rule compares elements with rtol 1e-5. Statistics differ far less than elements (a norm hardly feels a
    rotation), hence 1e-7, one unit in the last place of a float32.
    """

    explains = ("WeightUpdateRatio", "LossNotDecreasing", "NoBetterThanGuessing", "ClassImbalance")
    looks_at = "the norm of each tensor that stays the same, with the step"
    remedy = "raise lr; hand the layer to the optimiser, and use it"
    source = "AWS Debugger's UnchangedTensor"
    managed = Managed(reads="tensors", collections=("weights",), told=True)
    rtol: float = 1e-7
    atol: float = 1e-12
    patience: int = 3
    min_steps: int = 10

    def judge(self, run: RunData) -> Finding:
        evidence: list[Evidence] = []
        datapoints, num_tensors, seen = 0, 0, 0
        for kind in ("gradients", "weights"):
            for name, first in run.tensors(kind, "abs_mean"):
                statistics = run.statistics(kind, name)
                rows = np.array([statistics[each].values for each in ("abs_mean", "l2", "abs_max")])
                steps, rows = finite_part(first.steps, rows)
                datapoints += rows.size
                num_tensors += 1
                seen = max(seen, len(steps) if len(steps) and steps[-1] - steps[0] >= self.min_steps else 0)
                end = self._unchanged_until(rows, steps)
                if end is not None:
                    label = f"{kind[:-1]} {name} l2"
                    evidence.append(Evidence(step=int(steps[end]), name=label, value=float(rows[1, end])))
        if seen < self.patience:
            return insufficient(f"needs {self.patience} recorded steps over {self.min_steps} steps", datapoints)
        if not evidence:
            return healthy(f"all {num_tensors} recorded tensors change", datapoints)
        names = unique_names(evidence)
        return issue(
            f"{len(evidence)} of {num_tensors} recorded tensors did not change in {self.patience} recorded steps: "
            f"{listed(names)}",
            f"raise lr (it is {run.job.config.get('lr', '?')}), and check that the layer is used and handed to the "
            "optimiser",
            evidence,
            datapoints,
        )

    def _unchanged_until(self, rows: Floats, steps: Floats) -> int | None:
        """Index of the step at which the tensor has been the same for long enough, None if it changes."""
        same = (np.abs(np.diff(rows, axis=1)) <= self.atol + self.rtol * np.abs(rows[:, :-1])).all(axis=0)
        start = 0
        for index, unchanged in enumerate(same, start=1):
            if not unchanged:
                start = index
            elif index - start + 1 >= self.patience and steps[index] - steps[start] >= self.min_steps:
                return index
        return None


@dataclass(frozen=True, kw_only=True)
class AllZero(Rule):
    """A tensor holds nothing but zeros.

    Fires when the largest absolute value of a gradient, weight or activation is 0 at the `patience` latest recorded
    steps, from `start_step` on (residual branches that start at zero have no gradient at step 0). A network that
    answers nearly everything rightly (a loss below a fifth of what guessing has) has no use for every gradient: of one
    image they may all be 0.
    """

    explains = (
        "PoorWeightInitialization",
        "ConstantOutput",
        "VanishingGradient",
        "DeadRelu",
        "UnchangedTensor",
        "WeightUpdateRatio",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ClassImbalance",
    )
    looks_at = "each tensor whose largest absolute value is 0, with the step"
    remedy = "check the initialisation and what feeds the layer; lower lr"
    source = "AWS Debugger's AllZero"
    managed = Managed(reads="tensors", collections=("gradients", "weights"), told=True)
    patience: int = 2
    start_step: int = 2

    def judge(self, run: RunData) -> Finding:
        evidence: list[Evidence] = []
        datapoints, recorded = 0, 0
        for kind in ("gradients", "weights", "activations"):
            layers = dict(run.tensors(kind, "abs_max"))
            steps, table = finite_part(*aligned(layers, self.start_step))
            datapoints += table.size
            recorded = max(recorded, len(steps))
            labels = [f"{kind[:-1]} {name} abs_max" for name in layers]
            evidence += until_the_last(table == 0, self.patience, steps, table, labels)
        if recorded < self.patience:
            return insufficient(f"needs {self.patience} recorded steps from step {self.start_step} on", datapoints)
        if not evidence or has_mastered(run):
            return healthy("no recorded tensor is all zeros", datapoints)
        names, begun = listed(unique_names(evidence)), min(each.step or 0 for each in evidence)
        lr = run.job.config.get("lr", "?")
        if begun > FIRST_ACTIVATION or self._were_alive(run, evidence):
            return issue(
                f"{len(evidence)} recorded tensors have become all zeros, the first by step {begun}: {names}",
                f"lower lr (it is {lr}): the steps were too large, and dead units do not come back",
                evidence,
                datapoints,
            )
        return issue(
            f"{len(evidence)} recorded tensors are all zeros: {names}",
            "the layer learns nothing: check its initialisation and what feeds it; with weights=none lower lr, dead "
            "units do not come back",
            evidence,
            datapoints,
        )

    @staticmethod
    def _were_alive(run: RunData, evidence: list[Evidence]) -> bool:
        """Whether all that is zero was something else at the first recorded step."""
        for each in evidence:
            kind, name, _ = each.name.split(" ")
            if not run.statistics(f"{kind}s", name)["abs_max"].values[0] > 0:
                return False
        return True
