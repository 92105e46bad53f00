"""What comes between the training steps of an epoch, so that the step itself is as everybody knows it.

Waiting for the batch, telling the other processes of it, unreadable images, the learning rate, a stop, the sums and the
progress lines: `steps` sees to all of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import ChainMap, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobError
from image_classifier.debugging.host_copy import HostCopy
from image_classifier.debugging.observer import Observer
from image_classifier.training.checkpoint import Progress
from image_classifier.training.data import Batch
from image_classifier.training.optim import learning_rate, set_learning_rate
from image_classifier.training.state import Training
from image_classifier.training.stop import Interrupted, StopFlag

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Step:
    """One step to be trained.

    Args:
        batch: this process's images of it.
        share: this process's images over the mean of all processes, so that every image weighs the same.
        result: to be filled in by who trains it: the mean loss of this process's images, and its number of correct
            answers, both on the device.
    """

    batch: Batch
    share: float
    result: tuple[torch.Tensor, torch.Tensor] = field(init=False)


def steps(training: Training, hook: Observer) -> Iterator[Step]:
    """The steps that are left of the current epoch, each with its learning rate set.

    A batch that is too small in any process is left out. `progress` ends with `step` at the epoch's last step.

    Raises:
        Interrupted: between two steps, when a stop is asked for, also while a batch does not come.
        JobError: the loss is not finite.
        DataError: too many images cannot be read.
    """
    config, progress, num_steps = training.config, training.progress, training.train.num_steps
    sums = EpochSums(training)
    batches = training.train.epoch(progress.epoch, first_step=progress.step, stop=training.stop)
    window = Window()
    clock = time.perf_counter()
    while progress.step < num_steps:
        ends = progress.step == num_steps - 1 and training.setup.early
        if ends:
            training.valid.begin_early()
        with hook.phase("data_wait"):
            batch = next_batch(batches, training.stop)
        if ends and batch is not None and progress.epoch < config.epochs:
            training.train.begin_early(progress.epoch + 1)
        waited = time.perf_counter() - clock
        counts = tell_of_batch(training, batch)
        if training.group.size > 1:
            hook.mark("sync_s")
        if batch is None or min(counts) < 0:  # all processes give up the same step
            break
        if min(counts) >= min_images(config.fine_tune):
            rate = learning_rate(config, (progress.epoch - 1) * num_steps + progress.step, num_steps)
            set_learning_rate(training.optimizer, rate)
            step = Step(batch, len(batch.labels) * training.group.size / sum(counts))
            yield step
            sums.add(*step.result, images=len(batch.labels), of_all=sum(counts))
        else:
            hook.skip_step()
        progress.step += 1
        report = progress.step % config.log_interval == 0 or progress.step == num_steps
        if report:
            sums.look()
        spent, clock = time.perf_counter() - clock, time.perf_counter()
        progress.seconds += spent
        window.add(sum(counts), spent, waited)
        if report:
            log_step(training, window, sums.mean_loss)
    sums.finish()
    if progress.step < num_steps or stop_agreed(training):
        raise Interrupted


def tell_of_batch(training: Training, batch: Batch | None) -> list[int]:
    """Every process's number of images in this step, by rank; negative where it has no batch, because of a stop.

    One exchange of two numbers; what is to be said of images is sent only by a step in which there is something.

    Raises:
        DataError: too many images cannot be read.
    """
    group, split = training.group, training.train.split
    told = batch is not None and bool(batch.unreadable or batch.contrast)
    numbers = group.gather((-1 if batch is None else len(batch.labels), int(told)))
    if any(told for _, told in numbers):
        shares = group.exchange(None if batch is None else (batch.unreadable, batch.contrast))
        known = [share for share in shares if share is not None]
        for reason in training.bad.add(split, dict(ChainMap(*(unreadable for unreadable, _ in known)))):
            log.warning("skipped: %s", reason)
        training.bad.note(split, dict(ChainMap(*(contrast for _, contrast in known))))
    return [count for count, _ in numbers]


def next_batch(batches: Iterator[Batch], stop: StopFlag) -> Batch | None:
    """The next batch; None when a stop is asked for, also while it does not come."""
    if stop:
        return None
    try:
        return next(batches)
    except Interrupted:
        return None


def stop_agreed(training: Training) -> bool:
    """Whether any process of the group has been asked to stop: all of them stop between the same two steps."""
    return bool(training.group.largest(int(bool(training.stop))))


def min_images(fine_tune: str) -> int:
    """The smallest batch that can train: one image has no variance for a batch norm to divide by."""
    return 2 if fine_tune == "full" else 1


class EpochSums:
    """Loss and right answers of the current epoch, added up where they are computed.

    The host reads them at every progress line. From a GPU it takes those that set out a line before: they have come, so
    that it need not wait until the GPU has made the steps which it was just given. An epoch's first line shows the loss
    of the epoch before; only that of the first epoch waits.
    """

    def __init__(self, training: Training) -> None:
        progress = training.progress
        self._training = training
        self._sums = torch.tensor(
            [progress.loss_sum, progress.correct], dtype=torch.float64, device=training.setup.device
        )
        self._sums *= training.group.is_main  # what is known already counts once
        self._late = training.setup.device.type != "cpu"
        self._sent: deque[tuple[HostCopy, int]] = deque()
        self._known = bool(progress.images or progress.history)
        before = progress.history[-1]["train:loss"] if progress.history else 0.0
        self.mean_loss: float = progress.loss_sum / progress.images if progress.images else before

    def add(self, loss: torch.Tensor, correct: torch.Tensor, *, images: int, of_all: int) -> None:
        """One step more.

        Args:
            loss, correct: as of `Step.result`.
            images: of this process; `of_all`: of all processes.
        """
        self._sums += torch.stack([loss.detach().double() * images, correct.double()])
        self._training.progress.images += of_all

    def look(self) -> None:
        """Brings `mean_loss` up to date, on a GPU to the last look. Raises JobError when a loss was not finite."""
        first = not self._sent
        self._sent.append((HostCopy(self._sums), self._training.progress.images))
        if first and self._late:
            if self._known:
                return
            self._sent.append(self._sent[0])
        self._read_one()

    def finish(self) -> None:
        """Puts the sums of all processes into the progress. Raises JobError when a loss was not finite."""
        self._sent.clear()
        self._sent.append((HostCopy(self._sums), self._training.progress.images))
        self._training.progress.loss_sum, correct = self._read_one()
        self._training.progress.correct = int(correct)

    def _read_one(self) -> tuple[float, float]:
        copy, images = self._sent.popleft()
        loss_sum, correct = self._training.group.sum(copy.read()).tolist()
        if not math.isfinite(loss_sum):
            raise not_finite("training loss", loss_sum, self._training.progress, self._training.config)
        self.mean_loss = loss_sum / max(1, images)
        return loss_sum, correct


def not_finite(what: str, value: float, progress: Progress, config: TrainConfig) -> JobError:
    """The error of a training that has diverged."""
    return JobError(
        f"the {what} became {value} in epoch {progress.epoch}, by step {progress.step}: the training has diverged",
        f"lower lr (it was {config.lr:g}) or raise warmup_epochs",
    )


@dataclass
class Window:
    """Sums since the last progress line."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, images: int, seconds: float, waited: float) -> None:
        """One step more."""
        self.images, self.seconds, self.waited = self.images + images, self.seconds + seconds, self.waited + waited


def log_step(training: Training, window: Window, loss: float) -> None:
    """The progress line; `loss` is the epoch's mean, the speed is since the last line."""
    progress, rate = training.progress, training.optimizer.param_groups[0]["lr"]
    seconds = max(window.seconds, 1e-9)
    log.info(
        f"epoch={progress.epoch}/{training.config.epochs} step={progress.step}/{training.train.num_steps} "
        f"loss={loss:.4f} lr={rate:.3g} "
        f"images/s={window.images / seconds:.1f} data_wait={window.waited / seconds:.0%}"
    )
    window.images, window.seconds, window.waited = 0, 0.0, 0.0
