"""What comes between the training steps of an epoch, so that the step itself is as everybody knows it.

Waiting for the batch, telling the other processes of it, unreadable images, the learning rate, a stop, the sums and the
progress lines: `steps` sees to all of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobError
from image_classifier.debugging.observer import Observer
from image_classifier.training.checkpoint import Progress
from image_classifier.training.data import Batch
from image_classifier.training.optim import learning_rate, set_learning_rate
from image_classifier.training.state import Training
from image_classifier.training.stop import Interrupted

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
    config, progress, group, num_steps = training.config, training.progress, training.group, training.train.num_steps
    several = group.size > 1
    # (loss sum, correct answers) stay on the device: reading them every step would make the GPU wait for Python
    sums = torch.tensor([progress.loss_sum, progress.correct], dtype=torch.float64, device=training.setup.device)
    sums *= group.is_main  # what is known already counts once
    batches = training.train.epoch(progress.epoch, first_step=progress.step, stop=training.stop)
    window = Window()
    clock = time.perf_counter()
    while progress.step < num_steps and not stop_agreed(training):
        if several:
            hook.mark("sync_s")
        with hook.phase("data_wait"):
            batch = next_batch(batches)
        waited = time.perf_counter() - clock
        shares = group.exchange(None if batch is None else (len(batch.labels), batch.unreadable, batch.contrast))
        counted = [share for share in shares if share is not None]
        if batch is None or len(counted) < group.size:  # all processes give up the same step
            break
        if several:
            hook.mark("sync_s")
        for reason in training.bad.add(training.train.split, dict(ChainMap(*(bad for _, bad, _ in counted)))):
            log.warning("skipped: %s", reason)
        training.bad.note(training.train.split, dict(ChainMap(*(contrast for _, _, contrast in counted))))
        num_images = sum(count for count, _, _ in counted)
        if min(count for count, _, _ in counted) >= min_images(config.fine_tune):
            rate = learning_rate(config, (progress.epoch - 1) * num_steps + progress.step, num_steps)
            set_learning_rate(training.optimizer, rate)
            step = Step(batch, len(batch.labels) * group.size / num_images)
            yield step
            loss, correct = step.result
            sums += torch.stack([loss.detach().double() * len(batch.labels), correct.double()])
            progress.images += num_images
        else:
            hook.skip_step()
        progress.step += 1
        report = progress.step % config.log_interval == 0 or progress.step == num_steps
        if report:
            read_sums(training, sums)
        spent, clock = time.perf_counter() - clock, time.perf_counter()
        progress.seconds += spent
        window.add(num_images, spent, waited)
        if report:
            log_step(progress, config, num_steps, training.optimizer.param_groups[0]["lr"], window)
    read_sums(training, sums)
    if progress.step < num_steps or stop_agreed(training):
        raise Interrupted


def next_batch(batches: Iterator[Batch]) -> Batch | None:
    """The next batch; None when a stop is asked for while it does not come."""
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


def read_sums(training: Training, sums: torch.Tensor) -> None:
    """Fetches the sums of all processes. Raises JobError when the loss of any step so far was not finite."""
    progress = training.progress
    loss_sum, correct = training.group.sum(sums).tolist()
    if not math.isfinite(loss_sum):
        raise not_finite("training loss", loss_sum, progress, training.config)
    progress.loss_sum, progress.correct = loss_sum, int(correct)


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


def log_step(progress: Progress, config: TrainConfig, num_steps: int, rate: float, window: Window) -> None:
    """The progress line; `loss` is the epoch's mean so far, the speed is since the last line."""
    seconds = max(window.seconds, 1e-9)
    log.info(
        f"epoch={progress.epoch}/{config.epochs} step={progress.step}/{num_steps} "
        f"loss={progress.loss_sum / max(1, progress.images):.4f} lr={rate:.3g} "
        f"images/s={window.images / seconds:.1f} data_wait={window.waited / seconds:.0%}"
    )
    window.images, window.seconds, window.waited = 0, 0.0, 0.0
