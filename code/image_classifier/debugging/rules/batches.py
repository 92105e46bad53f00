"""Rules over what is made of a batch: its labels, its outputs, the loss of them, and the mode of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import has_learned, planned_steps
from image_classifier.debugging.rules.base import (
    Finding,
    Rule,
    first_run,
    healthy,
    insufficient,
    issue,
    not_applicable,
    percent,
    short,
)
from image_classifier.debugging.rundata import RunData, Series
from image_classifier.debugging.schema import Evidence


@dataclass(frozen=True, kw_only=True)
class LabelsOutside(Rule):
    """Labels lie outside of the classes that the network can name.

    Fires when, at a recorded step, a label is below 0 (but for -100, which losses leave out), or not below the number
    of classes, or of the network's outputs where these are two or more, or above 1 where there is one; whole numbers
    that one output is to learn, of a training that names no classes, are none, but in a logistic loss. A cross entropy
    cannot be negative: fires too when the training loss of a network with labels of classes is below 0 at `patience`
    steps in a row. Labels that are no integers count where the loss is a logistic one of them, at `patience` recorded
    steps or more and at all of them: it wants 0..1.
    """

    severity = "critical"
    looks_at = "the smallest and largest label, the number of outputs, the loss below 0"
    remedy = "number the labels from 0; give the last layer an output for each class; check how labels are read"
    source = "ours; DeepLocalize and TheDeepChecker (TOSEM 2022) have faults of labels"
    explains = (
        "WrongHead",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ClassImbalance",
        "ExplodingTensor",
        "ConstantOutput",
        "Overfit",
        "OscillatingLoss",
    )
    managed = None
    aspect = "classes"
    patience: int = 3
    close: float = 1e-3

    def judge(self, run: RunData) -> Finding:
        labels, outputs = of_batches(run, "labels"), of_batches(run, "outputs")
        if not labels:
            return self._of_a_logistic_loss(run) or without_batches(run, "the labels are no classes")
        columns = float(outputs["columns"].values.max())
        if columns == 1 and not run.job.classes:
            return self._of_a_logistic_loss(run) or without_batches(run, "the labels are numbers to be learned")
        most = 1.0 if columns == 1 else min(columns, len(run.job.classes) or columns) - 1
        least, largest = float(labels["min"].values.min()), float(labels["max"].values.max())
        losses = run.step("train", "loss")
        count = len(labels["min"])
        if least < 0 or largest > most:
            step = int(
                labels["min"].steps[np.flatnonzero((labels["min"].values < 0) | (labels["max"].values > most))[0]]
            )
            return issue(
                f"labels go from {short(least)} to {short(largest)}, the network has {int(columns)} outputs"
                + (f" and {len(run.job.classes)} classes" if most + 1 < columns else ""),
                "number the labels from 0, and give the last layer an output for each class",
                [
                    Evidence(step=step, name="labels min", value=least),
                    Evidence(step=step, name="labels max", value=largest),
                ],
                count,
            )
        at = first_run(losses.values < 0, self.patience)
        if at is not None:
            return issue(
                f"the training loss is below 0, {short(float(losses.values[at]))} at step {int(losses.steps[at])}: no "
                "cross entropy of classes can be",
                "check that the labels are what the loss expects, and the sign of the loss",
                [Evidence(step=int(losses.steps[at]), name="train loss", value=float(losses.values[at]))],
                count,
            )
        return healthy(f"labels go from {short(least)} to {short(largest)}, of {int(columns)} outputs", count)

    def _of_a_logistic_loss(self, run: RunData) -> Finding | None:
        pairs = of_batches(run, "pairs")
        if not pairs or len(pairs["logistic"]) < self.patience or not (pairs["logistic"].values < self.close).all():
            return None
        least, largest = float(pairs["low"].values.min()), float(pairs["high"].values.max())
        if least >= 0 and largest <= 1:
            return healthy(f"a logistic loss has labels from {short(least)} to {short(largest)}", len(pairs["low"]))
        return issue(
            f"labels go from {short(least)} to {short(largest)}, and the logistic loss of them wants 0..1",
            "name two classes 0 and 1; give more an output each, and a cross entropy",
            [
                Evidence(step=int(pairs["low"].steps[0]), name="labels min", value=least),
                Evidence(step=int(pairs["low"].steps[0]), name="labels max", value=largest),
            ],
            len(pairs["low"]),
        )


@dataclass(frozen=True, kw_only=True)
class ConstantOutput(Rule):
    """The network gives the same answer whatever it is shown.

    Fires when, at the `patience` latest recorded steps from `start_step` on, the outputs' deviation over the images of
    a batch is below `spread` times their largest absolute value, or 0; of batches of two images or more. Of outputs
    that no labels came with, as those of networks which learn to place images near each other, it fires too when the
    deviation at the two latest is below `collapsed` of both its largest at any recorded step and that value: all images
    were drawn to one place.
    """

    looks_at = "the deviation of the outputs over a batch, and their size"
    remedy = "look for layers that no signal passes: dead or saturated units, weights of zero; lower lr; scale inputs"
    source = "ours; TheDeepChecker's constant outputs (TOSEM 2022)"
    explains = ("LossNotDecreasing", "NoBetterThanGuessing", "ClassImbalance")
    managed = None
    aspect = "learning"
    spread: float = 1e-4
    collapsed: float = 0.1
    patience: int = 3
    start_step: int = 2

    def judge(self, run: RunData) -> Finding:
        outputs = of_batches(run, "outputs")
        if not outputs:
            return insufficient("no outputs were recorded")
        late = outputs["spread"].steps >= self.start_step
        several = outputs["images"].values > 1
        keep = late & several
        spread = outputs["spread"].values[keep]
        size = np.maximum(np.abs(outputs["min"].values), np.abs(outputs["max"].values))[keep]
        finite = np.isfinite(spread) & np.isfinite(size)
        if finite.sum() < self.patience or not finite[-1]:
            return insufficient(f"needs finite outputs of {self.patience} batches of two images or more", len(spread))
        constant = spread[finite] <= self.spread * size[finite]
        drawn = spread[finite] <= self.collapsed * np.minimum(size[finite], outputs["spread"].values[several].max())
        together = self._has_no_labels(run, outputs) and bool(drawn[-2:].all())
        if not constant[-self.patience :].all() and not together:
            return healthy(f"outputs differ by {short(float(spread[finite][-1]))} over a batch", len(spread))
        step = int(outputs["spread"].steps[keep][finite][-1])
        return issue(
            f"all images get the same answer: outputs of about {short(float(size[finite][-1]))} differ by "
            f"{short(float(spread[finite][-1]))} over a batch",
            f"look for dead or saturated units and weights of zero; lower lr (it is {run.job.config.get('lr', '?')})",
            [Evidence(step=step, name="outputs spread", value=float(spread[finite][-1]))],
            len(spread),
        )

    @staticmethod
    def _has_no_labels(run: RunData, outputs: Mapping[str, Series]) -> bool:
        """Whether the outputs were kept with themselves, for want of labels."""
        pairs = of_batches(run, "pairs")
        if not pairs or len(pairs["low"]) != len(outputs["min"]):
            return False
        ends = (("low", "min"), ("high", "max"))
        return all(bool(np.array_equal(pairs[one].values, outputs[other].values)) for one, other in ends)


@dataclass(frozen=True, kw_only=True)
class NormMode(Rule):
    """Batch norms or dropouts are in the wrong mode.

    Fires when, at the `patience` latest recorded steps, batch norms with trained weights are in evaluation mode (they
    divide by statistics that nothing adapts); or batch norms whose weights are frozen move their statistics, and the
    loss has not plainly gone down; or all of the network trains in evaluation mode, and it has dropouts. Fires too when
    `patience` validations began in training mode, of a network with batch norms or dropouts that ask for it.
    """

    looks_at = "how many batch norms and dropouts are in the wrong mode, and the mode of validations"
    remedy = "model.train() before each epoch's first step, after every evaluation; eval() for a body that is frozen"
    source = "ours; TrainCheck (OSDI 2025): batch norm unfrozen; Ioffe and Szegedy 2015"
    explains = ("LossNotDecreasing", "NoBetterThanGuessing", "Overfit")
    managed = None
    aspect = "learning"
    patience: int = 2

    def judge(self, run: RunData) -> Finding:
        norms = of_batches(run, "norms")
        if not norms:
            return insufficient("the modes of the layers were not recorded")
        if (found := self._of_validation(run) or self._of_dropouts(norms)) is not None:
            return found
        count = float(norms["count"].values.max())
        if count == 0:
            return not_applicable("there is no batch norm")
        steps = len(norms["count"])
        if steps < self.patience:
            return insufficient(f"needs {self.patience} recorded steps", steps)
        for kind, what, advice in (
            ("evaluating", "train their weights in evaluation mode", "call model.train() before the first step"),
            ("moving", "move their statistics though their weights are frozen", "put the frozen body into eval()"),
        ):
            bad = norms[kind].values
            harmless = kind == "moving" and has_learned(run)
            if (bad[-self.patience :] > 0).all() and not harmless:
                return issue(
                    f"{int(bad[-1])} of {int(count)} batch norms {what}",
                    advice,
                    [Evidence(step=int(norms[kind].steps[0]), name=f"norms {kind}", value=float(bad[0]))],
                    steps,
                )
        return healthy(f"{int(count)} batch norms are in the mode of their weights", steps)

    def _of_validation(self, run: RunData) -> Finding | None:
        wrong = run.job.validated_in_training
        if wrong < self.patience:
            return None
        return issue(
            f"{wrong} validations ran in training mode, of a network with batch norms or dropouts",
            "call model.eval() before each validation, and model.train() after it",
            [Evidence(step=None, name="validations in training mode", value=float(wrong))],
            wrong,
        )

    def _of_dropouts(self, norms: Mapping[str, Series]) -> Finding | None:
        idle = norms.get("idle")
        if idle is None or len(idle) < self.patience or not (idle.values[-self.patience :] > 0).all():
            return None
        return issue(
            f"the network trains in evaluation mode: {int(idle.values[-1])} dropouts do nothing",
            "call model.train() before each epoch's first step, after every evaluation",
            [Evidence(step=int(idle.steps[-1]), name="norms idle", value=float(idle.values[-1]))],
            len(idle),
        )


@dataclass(frozen=True, kw_only=True)
class HeavyDropout(Rule):
    """A dropout leaves hardly anything: what it is given is the share to drop, not the share to keep.

    Fires when, at `patience` recorded steps or more and at all of them, a dropout in training mode drops more than
    `most` of its inputs.
    """

    looks_at = "the largest share that a dropout in training mode drops"
    remedy = "a dropout of 0.1 to 0.5; torch's argument is the share to drop"
    source = "ours; UMLAUT (CHI 2021) asks for high dropout rates; Srivastava et al. 2014 keep 0.5 to 0.8"
    explains = (
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "ConstantOutput",
        "ClassImbalance",
        "AllZero",
        "DeadRelu",
        "UnchangedTensor",
        "VanishingGradient",
        "WeightUpdateRatio",
        "OscillatingLoss",
    )
    managed = None
    aspect = "learning"
    most: float = 0.9
    patience: int = 2

    def judge(self, run: RunData) -> Finding:
        norms = of_batches(run, "norms")
        shares = norms.get("heaviest")
        if shares is None or not norms["dropouts"].values.any():
            return not_applicable("there is no dropout")
        if len(shares) < self.patience:
            return insufficient(f"needs {self.patience} recorded steps", len(shares))
        least = float(shares.values.min())
        if least <= self.most:
            return healthy(f"a dropout drops {percent(least)} at most", len(shares))
        return issue(
            f"a dropout drops {percent(least)} of what it is given",
            f"drop less: {self.remedy}",
            [Evidence(step=int(shares.steps[0]), name="norms heaviest", value=least)],
            len(shares),
        )


@dataclass(frozen=True, kw_only=True)
class ShortTraining(Rule):
    """The training ends before it can have learned anything.

    Fires when fewer than `min_steps` optimiser steps are planned, or were made by a training that has ended, and the
    loss has not plainly gone down.
    """

    looks_at = "how many steps there are"
    remedy = "more epochs, a smaller batch_size, more images"
    source = "ours: no optimiser comes far in so few steps"
    explains = (
        "LossNotDecreasing",
        "NoBetterThanGuessing",
    )
    managed = None
    aspect = "learning"
    min_steps: int = 20

    def judge(self, run: RunData) -> Finding:
        made, planned = len(run.step("train", "loss")), planned_steps(run)
        if not made:
            return insufficient("needs a step")
        known = bool(run.job.steps_per_epoch and run.job.config.get("epochs"))
        if not known and not run.finished:
            return insufficient("how many steps there will be is not known", made)
        if planned >= self.min_steps or has_learned(run):
            return healthy(f"{planned} steps are planned", made)
        return issue(
            f"the training has {planned} steps only",
            f"more epochs, or a smaller batch_size (it is {run.job.config.get('batch_size', '?')}): at least "
            f"{self.min_steps} steps",
            [Evidence(step=None, name="planned steps", value=float(planned))],
            made,
        )


def of_batches(run: RunData, name: str) -> Mapping[str, Series]:
    """The recorded statistics of one part of the batches; empty where there are none."""
    return run.statistics("batch", name)


def without_batches(run: RunData, otherwise: str) -> Finding:
    """The answer where a part was not recorded: nothing was, or this training has none of it."""
    return not_applicable(otherwise) if of_batches(run, "outputs") else insufficient("no outputs were recorded")
