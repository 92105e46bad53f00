"""Rules over training and validation losses by epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import (
    HALF_OF_SECOND_DIFFERENCES,
    LEARNED,
    both_losses,
    guessing_loss,
    planned_steps,
)
from image_classifier.debugging.rules.base import Finding, Rule, first_run, healthy, insufficient, issue, short
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rundata import Floats, RunData
from image_classifier.debugging.schema import Evidence


@dataclass(frozen=True, kw_only=True)
class Overfit(Rule):
    """The network learns the training images by heart: validation gets worse while training gets better.

    On mean losses of epochs against true labels (no smoothing). Fires when in each of any `patience` epochs in a row,
    all ended after step `start_step`, or after a quarter of a short training, the validation loss lies more than `rise`
    above its best so far (that share of it, and of the loss of guessing where there are classes, else of all that it
    has fallen by) and more than `ratio` above the training loss, while the training loss has gone down since
    that best epoch; and the rise, summed over the n validation images, is above sqrt(k + 1) ln(classes), k of the n
    being wrong in that epoch: as much as chance, which moves k by about its square root, could make of so few images.
    Without classes it is above `sigmas` deviations of an epoch's validation loss from the line of its neighbours.
    A learning rate that ends at zero may bring the validation loss back down; that takes nothing back, unless it ends
    below its best from before.

    Early in a training, while batch norms' running statistics lag behind, validation may be bad and recover.

    With `literal` it is the managed rule: (validation - training) / training > `ratio`. Any network that fits its
    training images well has that.
    """

    explains = ("Overtraining",)
    looks_at = "training and validation losses of the epochs that made it fire"
    remedy = "stop earlier, augment=standard, raise weight_decay, add images; look for wrong labels"
    source = "AWS Debugger's Overfit; the rise beyond chance is ours"
    managed = Managed(
        reads="tensors", collections=("losses",), fields={"patience": "patience", "ratio_threshold": "ratio"}
    )
    aspect = "generalization"
    start_step: int = 100
    patience: int = 3
    ratio: float = 0.1
    rise: float = 0.1
    sigmas: float = 3.0
    literal: bool = False

    def judge(self, run: RunData) -> Finding:
        epochs, train, valid = both_losses(run)
        if not np.isfinite([*train, *valid]).all():
            return insufficient("the losses are not finite", len(epochs))
        if len(epochs) < self.patience + (0 if self.literal else 1):
            return insufficient(f"needs {self.patience + 1} epochs with a validation", len(epochs))
        gap = valid - train > self.ratio * np.abs(train)
        best = np.array([int(np.argmin(valid[: index + 1])) for index in range(len(valid))])
        rise = valid - valid[best]
        guessing = guessing_loss(run)  # what is nothing beside ignorance harms nobody
        least = self.rise * (np.maximum.accumulate(valid) - valid[best] if math.isnan(guessing) else guessing)
        worse = (
            gap
            & (rise > np.maximum(self.rise * np.abs(valid[best]), least))
            & (rise > self._by_chance(run, epochs, valid))
            & (train < train[best])
        )
        if self.literal:
            worse = gap
        else:
            start = min(self.start_step, planned_steps(run) // 4)
            late = self._steps_by(run, epochs) >= start
            if late.sum() < self.patience:
                return insufficient(f"needs {self.patience} epochs after step {start}", len(epochs))
            worse &= late
        at = first_run(worse, self.patience)
        if at is None or (not self.literal and valid[at:].min() < valid[best[at]]):
            return healthy(
                f"validation loss {short(valid[-1])}, at best {short(valid.min())}; training loss {short(train[-1])}",
                len(epochs),
            )
        since = int(epochs[best[at]])
        evidence = [
            Evidence(step=int(epoch), name=f"{name} loss of epoch", value=float(value))
            for epoch, *pair in zip(
                epochs[at + 1 - self.patience : at + 1],
                train[at + 1 - self.patience : at + 1],
                valid[at + 1 - self.patience : at + 1],
                strict=True,
            )
            for name, value in zip(("train", "eval"), pair, strict=True)
        ]
        return issue(
            f"validation loss rose from {short(valid[best[at]])} (epoch {since}) to {short(valid[at])} while training "
            f"loss fell to {short(train[at])}",
            f"stop earlier (patience={self.patience} or epochs={since + 1}), augment=standard, raise weight_decay, or "
            "add images; check for wrong labels",
            evidence,
            len(epochs),
        )

    def _by_chance(self, run: RunData, epochs: Floats, valid: Floats) -> Floats:
        """What the mean validation loss of each epoch may rise by without meaning anything."""
        rises = {}
        for counts in run.classes:
            if counts.mode == "eval" and (num_images := sum(counts.labels)):
                num_wrong = num_images - sum(counts.hits)
                rises[counts.epoch] = math.sqrt(num_wrong + 1) * math.log(len(counts.labels)) / num_images
        # a trend has no second differences
        usual = 0.0 if rises else self.sigmas * float(np.median(np.abs(np.diff(valid, 2)))) / HALF_OF_SECOND_DIFFERENCES
        return np.array([rises.get(int(epoch), usual) for epoch in epochs])

    @staticmethod
    def _steps_by(run: RunData, epochs: Floats) -> Floats:
        """The number of training steps that had been made by the end of each epoch."""
        steps = run.epochs("train")
        last = np.searchsorted(steps.values, epochs, side="right") - 1  # epochs come in order
        return np.asarray(steps.steps[last] + 1, np.float64)


@dataclass(frozen=True, kw_only=True)
class Overtraining(Rule):
    """The training goes on although nothing gets better.

    Fires when the validation loss has not gone below its best by more than `delta` (a share of it) for
    `patience_valid` epochs in a row, and the training loss not below its best for `patience_train` epochs in a row;
    when these epochs are more than `idle` of the training so far, and something was learned before. The model is not
    harmed, the best epoch's weights are kept; time is lost. A gain later takes the finding back.
    """

    looks_at = "for how many epochs neither loss had improved"
    remedy = "fewer epochs, or patience"
    source = "AWS Debugger's Overtraining; Prechelt 1998, Early Stopping - But When?"
    severity = "info"
    managed = Managed(
        reads="tensors",
        collections=("losses",),
        fields={"patience_train": "patience_train", "patience_validation": "patience_valid", "delta": "delta"},
    )
    aspect = "generalization"
    patience_train: int = 5
    patience_valid: int = 10
    delta: float = 0.01
    idle: float = 0.67

    def judge(self, run: RunData) -> Finding:
        epochs, train, valid = both_losses(run)
        if not np.isfinite([*train, *valid]).all():
            return insufficient("the losses are not finite", len(epochs))
        if len(epochs) <= self.patience_valid:
            return insufficient(f"needs more than {self.patience_valid} epochs with a validation", len(epochs))
        since_train, since_valid = self._since_gain(train), self._since_gain(valid)
        idle = (since_train >= self.patience_train) & (since_valid >= self.patience_valid)
        lost = since_valid[-1] / len(epochs)
        if not idle[-1] or lost < self.idle or not self._learned(run, train):
            return healthy(
                f"the validation loss last improved {int(since_valid[-1])} epochs before the end", len(epochs)
            )
        at = len(epochs) - 1
        useful = int(epochs[at - int(since_valid[at])])
        evidence = [
            Evidence(step=int(epochs[at]), name="epochs without a better eval loss", value=float(since_valid[at])),
            Evidence(step=int(epochs[at]), name="epochs without a better train loss", value=float(since_train[at])),
        ]
        return issue(
            f"by epoch {int(epochs[at])} nothing had improved since epoch {useful}, of {int(epochs[-1])}",
            f"set epochs={useful + 1} or patience={self.patience_valid // 2}",
            evidence,
            len(epochs),
        )

    @staticmethod
    def _learned(run: RunData, train: Floats) -> bool:
        """Whether there is anything to have too much of: not where the loss stayed at that of guessing."""
        return not train.min() >= LEARNED * guessing_loss(run)

    def _since_gain(self, losses: Floats) -> Floats:
        """For each epoch, how many epochs ago the best loss so far, of gains above delta, was reached."""
        best, at, since = math.inf, 0, []
        for index, loss in enumerate(losses):
            if loss < best * (1 - self.delta):
                best, at = float(loss), index
            since.append(index - at)
        return np.array(since, np.float64)
