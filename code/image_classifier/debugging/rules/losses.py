"""Rules over losses, and over the time without any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from image_classifier.debugging.rules.base import Finding, Rule, healthy, insufficient, issue, short
from image_classifier.debugging.rundata import Floats, RunData, of_epochs
from image_classifier.debugging.schema import Evidence


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


@dataclass(frozen=True, kw_only=True)
class Overfit(Rule):
    """The network learns the training images by heart: validation gets worse while training gets better.

    On mean losses of epochs against true labels (no smoothing). Fires when in each of any `patience` epochs in a row,
    all ended after step `start_step`, the validation loss lies more than `rise` above its best so far and more than
    `ratio` above the training loss, while the training loss has gone down since that best epoch; and the rise, summed
    over the n validation images, is above sqrt(k + 1) ln(classes), k of the n being wrong in that epoch: as much as
    chance, which moves k by about its square root, could make of so few images. A learning rate that ends at zero may
    bring the validation loss back down; that takes nothing back.

    Early in a training, while batch norms' running statistics lag behind, validation may be bad and recover.

    With `literal` it is the managed rule: (validation - training) / training > `ratio`. Any network that fits its
    training images well has that.
    """

    start_step: int = 100
    patience: int = 3
    ratio: float = 0.1
    rise: float = 0.1
    literal: bool = False

    def judge(self, run: RunData) -> Finding:
        epochs, train, valid = both_losses(run)
        if len(epochs) < self.patience + (0 if self.literal else 1):
            return insufficient(f"needs {self.patience + 1} epochs with a validation", len(epochs))
        gap = valid > (1 + self.ratio) * train
        best = np.array([int(np.argmin(valid[: index + 1])) for index in range(len(valid))])
        rise = valid - valid[best]
        worse = gap & (rise > self.rise * valid[best]) & (rise > self._by_chance(run, epochs)) & (train < train[best])
        if self.literal:
            worse = gap
        else:
            late = self._steps_by(run, epochs) >= self.start_step
            if late.sum() < self.patience:
                return insufficient(f"needs {self.patience} epochs after step {self.start_step}", len(epochs))
            worse &= late
        at = first_run(worse, self.patience)
        if at is None:
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

    @staticmethod
    def _by_chance(run: RunData, epochs: Floats) -> Floats:
        """What the mean validation loss of each epoch may rise by without meaning anything; 0 where no classes were
        counted."""
        rises = {}
        for counts in run.classes:
            if counts.mode == "eval" and (num_images := sum(counts.labels)):
                num_wrong = num_images - sum(counts.hits)
                rises[counts.epoch] = math.sqrt(num_wrong + 1) * math.log(len(counts.labels)) / num_images
        return np.array([rises.get(int(epoch), 0.0) for epoch in epochs])

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
    `patience_valid` epochs in a row, and the training loss not below its best for `patience_train` epochs in a row.
    The model is not harmed, the best epoch's weights are kept; time is lost.
    """

    severity: ClassVar[Literal["info", "warning", "critical"]] = "info"
    patience_train: int = 5
    patience_valid: int = 10
    delta: float = 0.01

    def judge(self, run: RunData) -> Finding:
        epochs, train, valid = both_losses(run)
        if len(epochs) <= self.patience_valid:
            return insufficient(f"needs more than {self.patience_valid} epochs with a validation", len(epochs))
        since_train, since_valid = self._since_gain(train), self._since_gain(valid)
        idle = (since_train >= self.patience_train) & (since_valid >= self.patience_valid)
        if not idle.any():
            return healthy(
                f"the validation loss last improved {int(since_valid[-1])} epochs before the end", len(epochs)
            )
        at = int(np.argmax(idle))
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

    def _since_gain(self, losses: Floats) -> Floats:
        """For each epoch, how many epochs ago the best loss so far, of gains above delta, was reached."""
        best, at, since = math.inf, 0, []
        for index, loss in enumerate(losses):
            if loss < best * (1 - self.delta):
                best, at = float(loss), index
            since.append(index - at)
        return np.array(since, np.float64)


@dataclass(frozen=True, kw_only=True)
class StalledTraining(Rule):
    """No step ended for a long time.

    Fires when more than `threshold_s` seconds lie between the ends of two steps (of any mode), or between the last
    step's end and the newest observation. The time between two attempts of a job does not count, and that to the first
    step of one is MaxInitializationTime's.
    """

    severity: ClassVar[Literal["info", "warning", "critical"]] = "critical"
    about: ClassVar[Literal["tensors", "system"]] = "system"
    threshold_s: float = 1800.0

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


def both_losses(run: RunData) -> tuple[Floats, Floats, Floats]:
    """Epochs that have been validated, and their mean training and validation losses against true labels."""
    train_epochs, train = of_epochs(run, "train", "clean_loss")
    valid_epochs, valid = of_epochs(run, "eval", "clean_loss")
    common, left, right = np.intersect1d(train_epochs, valid_epochs, return_indices=True)
    return common.astype(np.float64), train[left], valid[right]


def first_run(bad: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], patience: int) -> int | None:
    """Index at which `bad` has held `patience` times in a row for the first time."""
    length = 0
    for index, value in enumerate(bad):
        length = length + 1 if value else 0
        if length == patience:
            return index
    return None
