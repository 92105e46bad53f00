"""The training loop, top to bottom. Knows nothing of files: batches come in, a checkpoint folder takes the state."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import DataError, JobError
from image_classifier.contract.metrics import metric_line, with_best
from image_classifier.contract.outputs import best_epoch
from image_classifier.debugging.observer import Observer
from image_classifier.training.checkpoint import Checkpoints, Progress, Weights
from image_classifier.training.data import BadImages, Batch, Loader
from image_classifier.training.distributed import Group
from image_classifier.training.evaluate import Evaluation, Interrupted, evaluate
from image_classifier.training.optim import learning_rate, set_learning_rate
from image_classifier.training.setup import Setup
from image_classifier.training.stop import StopFlag

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Training:
    """Everything a training needs; `progress` and `best` change as it goes on.

    Args:
        model: the network; `replica` is the same as the training step calls it, averaging gradients over the group.
        best: weights of the best epoch so far, on the CPU; empty before the first validation.
        on_epoch: called after each epoch.
    """

    config: TrainConfig
    group: Group = field(default_factory=Group)
    model: nn.Module
    replica: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer
    setup: Setup
    train: Loader
    valid: Loader
    bad: BadImages
    checkpoints: Checkpoints
    stop: StopFlag
    progress: Progress
    best: Weights = field(default_factory=dict)
    on_epoch: Callable[[Progress], None]

    def __post_init__(self) -> None:
        self.replica = self.group.wrap(self.model, self.setup.device)


def fit(training: Training, hook: Observer) -> None:
    """Trains until the last epoch or until patience ends.

    Raises:
        JobStopped: a stop was asked for; the state is in the checkpoint folder.
        JobError: the loss is not finite.
        DataError: too many images cannot be read.
    """
    progress = training.progress
    try:
        while not progress.finished:
            started = time.perf_counter()
            try:
                train_epoch(training, hook)
                hook.begin("eval", progress.epoch, (progress.epoch - 1) * training.valid.num_steps)
                evaluation = training.group.from_main(
                    lambda: evaluate(
                        training.model,
                        training.valid,
                        hook,
                        training.bad,
                        training.stop,
                        setup=training.setup,
                    )
                )
            finally:
                progress.total_seconds += time.perf_counter() - started
            end_epoch(training, evaluation)
        training.stop.forget_rule()  # there is nothing left to stop
    except Interrupted:
        reasons = training.group.exchange(training.stop.reason)
        training.stop.reason = next(filter(None, reasons), None)
        progress.unreadable = training.bad.found
        training.checkpoints.save(progress, training.model, training.optimizer, training.best)
        raise training.stop.error(
            f"in epoch {progress.epoch} of {training.config.epochs}, step {progress.step} of "
            f"{training.train.num_steps}; the state is saved",
            "start again with the same checkpoint folder to resume",
        ) from None


def train_epoch(training: Training, hook: Observer) -> None:
    """Trains what is left of the current epoch; `progress` ends with `step` at the epoch's last step.

    Raises Interrupted between two steps when a stop is asked for.
    """
    config, progress, num_steps = training.config, training.progress, training.train.num_steps
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    train_mode(training.model, config.fine_tune)
    hook.begin("train", progress.epoch, (progress.epoch - 1) * num_steps + progress.step)
    # (loss sum, correct answers) stay on the device: reading them every step would make the GPU wait for Python
    sums = torch.tensor([progress.loss_sum, progress.correct], dtype=torch.float64, device=training.setup.device)
    sums *= training.group.is_main  # what is known already counts once
    batches = training.train.epoch(progress.epoch, first_step=progress.step)
    window = Window()
    clock = time.perf_counter()
    several = training.group.size > 1
    while progress.step < num_steps and not stop_agreed(training):
        if several:
            hook.mark("sync_s")
        batch = next(batches)
        hook.mark("data_wait_s")
        waited = time.perf_counter() - clock
        shares = training.group.exchange((len(batch.labels), batch.unreadable))
        if several:
            hook.mark("sync_s")
        for reason in training.bad.add(training.train.split, dict(ChainMap(*(bad for _, bad in shares)))):
            log.warning("skipped: %s", reason)
        num_images = sum(count for count, _ in shares)
        if min(count for count, _ in shares) >= min_images(config.fine_tune):
            rate = learning_rate(config, (progress.epoch - 1) * num_steps + progress.step, num_steps)
            set_learning_rate(training.optimizer, rate)
            share = len(batch.labels) * training.group.size / num_images
            loss, correct = train_step(training, batch, criterion, hook, share=share)
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
    if stop_agreed(training):
        raise Interrupted
    hook.end_epoch()


def stop_agreed(training: Training) -> bool:
    """Whether any process of the group has been asked to stop: all of them stop between the same two steps."""
    return bool(training.group.largest(int(bool(training.stop))))


def train_step(
    training: Training, batch: Batch, criterion: nn.Module, hook: Observer, *, share: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the optimiser.

    Args:
        share: this process's images over the mean of all processes, so that every image weighs the same.

    Returns:
        The mean loss of this process's images and its number of correct answers, on the device.
    """
    images, labels = training.train.on_device(batch, training.setup.device)
    hook.mark("h2d_s")
    hook.before_forward(images)
    with training.setup.autocast():
        logits = training.replica(images)
    loss: torch.Tensor = criterion(logits.float(), labels)
    hook.mark("forward_s")
    training.optimizer.zero_grad(set_to_none=True)
    (loss * share).backward()  # type: ignore[no-untyped-call]
    hook.mark("backward_s")
    hook.after_backward()
    training.optimizer.step()
    hook.mark("optimizer_s")
    hook.after_update()
    hook.end_step(loss, logits, labels)
    return loss, (logits.argmax(1) == labels).sum()


def end_epoch(training: Training, evaluation: Evaluation) -> None:
    """Reports the epoch, keeps its weights if it is the best, decides whether to go on, writes a due checkpoint."""
    config, progress = training.config, training.progress
    if progress.images == 0:
        raise DataError("no image of the train split can be read", "bad_images.json names the reasons")
    values = epoch_metrics(progress) | evaluation.metrics("validation")
    if not math.isfinite(evaluation.loss):
        raise not_finite("validation loss", evaluation.loss, progress, config)
    log.info(metric_line(progress.epoch, with_best(values, progress.history)))
    progress.history.append({"epoch": progress.epoch, **values, "seconds": progress.seconds})
    if is_best(progress):
        progress.best_epoch = progress.epoch
        training.best = {name: value.detach().cpu().clone() for name, value in training.model.state_dict().items()}
    if evaluation.loss < progress.lowest_loss:
        progress.lowest_loss, progress.epochs_without_gain = evaluation.loss, 0
    else:
        progress.epochs_without_gain += 1
    progress.unreadable = training.bad.found
    out_of_patience = 0 < config.patience <= progress.epochs_without_gain
    if out_of_patience and progress.epoch < config.epochs:
        log.info("no better validation loss in %d epochs: stopping early", config.patience)
    progress.finished = out_of_patience or progress.epoch == config.epochs
    if progress.finished:
        training.checkpoints.finish(progress, training.best)
    else:
        progress.start_epoch(progress.epoch + 1)
        if training.checkpoints.due:
            training.checkpoints.save(progress, training.model, training.optimizer, training.best)
    training.on_epoch(copy.deepcopy(progress))


def is_best(progress: Progress) -> bool:
    """Whether the newest row of the history is its best epoch."""
    best = best_epoch(progress.history)
    return best is not None and best.epoch == len(progress.history)


def epoch_metrics(progress: Progress) -> dict[str, float]:
    """The training side of an epoch's metrics, means over the images that were trained on."""
    return {
        "train:loss": progress.loss_sum / progress.images,
        "train:accuracy": progress.correct / progress.images,
        "train:images_per_second": progress.images / max(progress.seconds, 1e-9),
    }


def train_mode(model: nn.Module, fine_tune: str) -> None:
    """Training mode; a frozen body stays in evaluation mode, so that its batch norms keep the statistics they have."""
    model.train(fine_tune == "full")


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
