"""How far a training job is, read from what it logs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import work_by_epoch
from image_classifier.contract.metrics import parse_metric_line
from image_classifier.launch.view import Bar, Drawing, Live

STEP = re.compile(r"(?:^|\s)epoch=(\d+)/(\d+) step=(\d+)/(\d+)(?:\s|$)")
LOSS = re.compile(r"(?:^|\s)loss=([-+.0-9e]+)")
SPEED = re.compile(r"(?:^|\s)images/s=([.0-9e+]+)")


@dataclass
class JobProgress:
    """The state of one job. `epoch` epochs of `epochs` are done; `step` of `steps` in the one that runs.

    Args:
        work: of each epoch beside the others; as much in all of them where it is not told.
    """

    epochs: int
    work: Sequence[float] = ()
    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    _first: tuple[float, float] | None = None

    def feed(self, line: str, now: float | None = None) -> Literal["step", "epoch", "other"]:
        """Takes in one log line, at `now` seconds on the monotonic clock, and tells what it was."""
        now = time.monotonic() if now is None else now
        if parsed := parse_metric_line(line):
            epoch, values = parsed
            self.metrics |= values
            self.images_per_second = values.get("train:images_per_second", self.images_per_second)
            if "train:loss" not in values and "validation:loss" not in values:
                return "other"
            self.epoch, self.step = epoch, 0
            self._first = self._first or (now, self.worked)
            return "epoch"
        if match := STEP.search(line):
            epoch, self.epochs, self.step, self.steps = (int(text) for text in match.groups())
            self.epoch = epoch - 1
            self.loss = _number(LOSS, line, self.loss)
            self.images_per_second = _number(SPEED, line, self.images_per_second)
            self._first = self._first or (now, self.worked)
            return "step"
        return "other"

    @property
    def done(self) -> float:
        """Epochs done, with the share of the one that runs."""
        return self.epoch + (self.step / self.steps if self.steps else 0.0)

    @property
    def worked(self) -> float:
        """As `done`, each epoch counting by its work."""
        whole, part = int(self.done), self.done % 1
        return sum(self._all_work[:whole]) + part * sum(self._all_work[whole : whole + 1])

    @property
    def _all_work(self) -> Sequence[float]:
        return self.work if len(self.work) == self.epochs else (1.0,) * self.epochs

    def seconds_left(self, now: float | None = None) -> float | None:
        """Estimated from the pace since the first line; None until there is one."""
        if self._first is None:
            return None
        start, worked_then = self._first
        passed = (time.monotonic() if now is None else now) - start
        advanced = self.worked - worked_then
        return passed / advanced * (sum(self._all_work) - self.worked) if advanced > 0 else None

    def describe(self) -> str:
        """The last epoch in one line: `epoch 3/10  loss 0.81  accuracy 0.712  ...`."""
        names = {
            "train:loss": "loss",
            "validation:loss": "validation loss",
            "validation:accuracy": "validation accuracy",
        }
        parts = [f"epoch {self.epoch}/{self.epochs}"]
        parts += [f"{text} {_decimals(self.metrics[name])}" for name, text in names.items() if name in self.metrics]
        if self.images_per_second:
            parts.append(f"{self.images_per_second:.1f} images/s")
        left = self.seconds_left()
        if left is not None and self.epoch < self.epochs:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)


def _decimals(value: float) -> str:
    """Three decimals; the power of ten of what would be a row of digits that mean nothing."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


TOLD = (" warning: ", " device: ", "resuming from", "stopping early", "computing features")  # of a job's other lines


class ProgressView:
    """Reports a training from the lines it logs: its epochs stay, the one that runs is drawn below them."""

    def __init__(self, live: Live, config: TrainConfig) -> None:
        self._live = live
        self._progress = JobProgress(epochs=config.epochs, work=work_by_epoch(config))
        self._begun = time.monotonic()
        self._live.draw(self._drawing)

    def line(self, text: str) -> None:
        """Takes in one line of the job's log."""
        what = self._progress.feed(text)
        if what == "epoch":
            self._live.show(self._progress.describe())
        elif what == "other" and any(word in text for word in TOLD):
            self._live.show(text)

    def _drawing(self) -> Drawing:
        progress, left = self._progress, self._progress.seconds_left()
        at = f"step {progress.step}/{progress.steps}" if progress.steps else "starting"
        return [
            (
                f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}",
                Bar(done=progress.done, total=progress.epochs, width=32),
                at if progress.epoch < progress.epochs else "finishing: test, golden samples, model",
                "" if progress.loss is None else f"loss {_decimals(progress.loss)}",
                f"{progress.images_per_second:.1f} images/s" if progress.images_per_second else "",
                in_time(time.monotonic() - self._begun, left if progress.epoch < progress.epochs else None),
            )
        ]


class Counting:
    """How far something is that counts what it has done: `120 of 700 images read  12 s  58 s left`."""

    def __init__(self, live: Live, what: str) -> None:
        self._what = what
        self._begun = time.monotonic()
        self._done = self._total = 0
        live.draw(self._drawing)

    def count(self, done: int, total: int) -> None:
        """So many of `total` are done."""
        self._done, self._total = done, total

    def _drawing(self) -> Drawing:
        done, total, elapsed = self._done, self._total, time.monotonic() - self._begun
        left = elapsed / done * (total - done) if done else None
        return [[f"{done} of {total} {self._what}", in_time(elapsed, left)]] if total else []


class Lasting:
    """Something that shows nothing but that it goes on: `starting the endpoint  12 s`."""

    def __init__(self, live: Live, what: str) -> None:
        begun = time.monotonic()
        live.draw(lambda: [[f"{what}  {duration(time.monotonic() - begun)}"]])


def in_time(elapsed_s: float, left_s: float | None) -> str:
    """`12 s`, or `12 s, 3 min 20 s left`."""
    return duration(elapsed_s) + ("" if left_s is None else f", {duration(left_s)} left")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(pattern: re.Pattern[str], line: str, otherwise: float | None) -> float | None:
    match = pattern.search(line)
    try:
        return float(match.group(1)) if match else otherwise
    except ValueError:
        return otherwise
