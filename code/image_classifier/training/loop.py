"""The training loop, top to bottom. What happens between two steps is in `steps.py`."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time

import torch
from torch import nn

from image_classifier.contract.errors import DataError, JobStopped
from image_classifier.contract.metrics import metric_line, with_best
from image_classifier.contract.outputs import best_epoch
from image_classifier.debugging.host_copy import HostCopy
from image_classifier.debugging.observer import Observer
from image_classifier.training.balance import make_loss
from image_classifier.training.checkpoint import Progress, Weights
from image_classifier.training.crops import size_news
from image_classifier.training.distributed import Group
from image_classifier.training.evaluate import Evaluation, evaluate
from image_classifier.training.setup import Setup
from image_classifier.training.state import Training
from image_classifier.training.step_graph import StepGraph
from image_classifier.training.steps import Step, not_finite, steps
from image_classifier.training.stop import Interrupted
from image_classifier.vision.network import HEAD
from image_classifier.vision.resnet import ResNet, convolve, end_layer

log = logging.getLogger(__name__)


def fit(training: Training, hook: Observer) -> None:
    """Trains until the last epoch or until patience ends.

    Raises:
        JobStopped: a stop was asked for; the state is in the checkpoint folder.
        JobError: the loss is not finite.
        DataError: too many images cannot be read, or none of a class.
    """
    progress = training.progress
    try:
        while not progress.finished:
            started = time.perf_counter()
            try:
                train_epoch(training, hook)
                hook.begin("eval", progress.epoch, (progress.epoch - 1) * training.valid.num_steps)
                evaluation = validate(training, hook)
            finally:
                progress.total_seconds += time.perf_counter() - started
            end_epoch(training, evaluation)
        training.stop.forget_rule()  # there is nothing left to stop
    except Interrupted:
        raise saved_and_stopped(training) from None


def train_epoch(training: Training, hook: Observer) -> None:
    """Trains what is left of the current epoch. Raises as `steps`."""
    config, progress = training.config, training.progress
    if news := "" if training.on_features else size_news(config, progress.epoch):
        log.info("%s", news)
    criterion = make_loss(config, training.train.split, training.step_setup.device)
    train_mode(training.model, config.fine_tune)
    setup = training.step_setup
    if training.step_graph is None and wants_graph(training):
        training.step_graph = StepGraph(training.trained, criterion, setup, given_up=lambda: layers_by_torch(training))
    hook.begin("train", progress.epoch, (progress.epoch - 1) * training.train.num_steps + progress.step)
    for step in steps(training, hook):
        step.result = train_step(training, step, criterion, hook, setup)
    compare_replicas(training, hook)
    hook.end_epoch()


def wants_graph(training: Training) -> bool:
    """Whether to try to replay steps from a CUDA graph: where one process computes them from images on a GPU."""
    on_gpu = training.setup.device.type == "cuda"
    return training.config.cuda_graph == "auto" and on_gpu and training.group.size == 1 and not training.on_features


def layers_by_torch(training: Training) -> None:
    """Has layers computed by torch's operations: launching our own one by one takes the host longer."""
    if isinstance(training.model, ResNet):
        training.model.end_layers_by(end_layer)
        training.model.convolve_by(convolve)


def compare_replicas(training: Training, hook: Observer) -> None:
    """Tells how many processes have other weights than the first, where there are several."""
    if training.group.size > 1:
        first, *others = training.group.exchange(weights_digest(training.trained))
        hook.replicas(sum(each != first for each in others))


def weights_digest(model: nn.Module) -> bytes:
    """A hash of the parameters, bit for bit. Statistics of batch norms are each process's own until the next step."""
    digest = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def train_step(
    training: Training, step: Step, criterion: nn.Module, hook: Observer, setup: Setup
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the optimiser. Returns what `Step.result` is."""
    with hook.phase("h2d"):
        inputs, labels = training.train.on_device(step.batch, setup.device)
    training.train.show(step.batch, inputs, hook)
    graph = training.step_graph
    if graph is not None and graph.serves(inputs, labels):
        with hook.phase("backward"):  # and forward: they are one
            loss, logits = graph.replay(inputs, labels)
    else:
        with hook.phase("forward"):
            with setup.autocast():
                logits = training.replica(inputs)
            loss = criterion(logits.float(), labels)
        with hook.phase("backward"):
            training.optimizer.zero_grad(set_to_none=True)
            (loss * step.share).backward()
            loss, logits = loss.detach(), logits.detach()  # a recording fails while older passes are held by them
    hook.after_backward()
    with hook.phase("optimizer"):
        training.optimizer.step()
    hook.after_update()
    hook.end_step(loss, logits, labels)
    return loss, (logits.argmax(1) == labels).sum()


def validate(training: Training, hook: Observer) -> Evaluation:
    """The network's answers to the validation images after the current epoch, the same in every process: each has its
    share of the images, or, where only rows of features are left to look at, the main process all of them."""

    def run(group: Group) -> Evaluation:
        watched = (training.trained, training.valid, hook, training.bad, training.stop)
        return evaluate(*watched, setup=training.step_setup, group=group)

    if training.on_features:
        return training.group.from_main(lambda: run(Group()))
    return run(training.group)


def saved_and_stopped(training: Training) -> JobStopped:
    """Saves the state of a training that is asked to stop; what to raise then, the same in every process."""
    progress = training.progress
    reasons = training.group.exchange(training.stop.reason)
    training.stop.reason = next(filter(None, reasons), None)
    progress.unreadable, progress.contrast = training.bad.found, training.bad.contrast
    training.checkpoints.save(progress, training.model, training.optimizer, training.best)
    return training.stop.error(
        f"in epoch {progress.epoch} of {training.config.epochs}, step {progress.step} of "
        f"{training.train.num_steps}; the state is saved",
        "start again with the same checkpoint folder to resume",
    )


def end_epoch(training: Training, evaluation: Evaluation) -> None:
    """Reports the epoch, keeps its weights if it is the best, decides whether to go on, writes a due checkpoint."""
    config, progress = training.config, training.progress
    if progress.images == 0:
        raise DataError("no image of the train split can be read", "bad_images.json names the reasons")
    training.bad.require_classes(training.train.split)
    for finding in training.bad.new_findings():
        log.warning("%s", finding.line)
    for news in filter(None, (training.train.cache_news(), training.valid.cache_news())):
        log.info("cache: %s", news)
    values = epoch_metrics(progress) | evaluation.metrics("validation")
    if not math.isfinite(evaluation.loss):
        raise not_finite("validation loss", evaluation.loss, progress, config)
    log.info(metric_line(progress.epoch, with_best(values, progress.history)))
    progress.history.append({"epoch": progress.epoch, **values, "seconds": progress.seconds})
    if is_best(progress):
        progress.best_epoch = progress.epoch
        training.best = best_weights(training)
    if evaluation.loss < progress.lowest_loss:
        progress.lowest_loss, progress.epochs_without_gain = evaluation.loss, 0
    else:
        progress.epochs_without_gain += 1
    progress.unreadable, progress.contrast = training.bad.found, training.bad.contrast
    out_of_patience = 0 < config.patience <= progress.epochs_without_gain
    if out_of_patience and progress.epoch < config.epochs:
        log.info("no better validation loss in %d epochs: stopping early", config.patience)
    progress.finished = out_of_patience or progress.epoch == config.epochs
    if progress.finished:
        training.checkpoints.finish(progress, training.best)
    else:
        progress.start_epoch(progress.epoch + 1)
        if training.checkpoints.due:
            training.checkpoints.save_behind(progress, training.model, training.optimizer, training.best)
    training.on_epoch(copy.deepcopy(progress))


def best_weights(training: Training) -> Weights:
    """A copy of the weights on the CPU; what is frozen is copied from a device once, and never where it lies there."""
    copies: dict[str, HostCopy] = {}
    found: Weights = {}
    for name, value in training.model.state_dict().items():
        if training.config.fine_tune == "full" or name.startswith(f"{HEAD}."):
            copies[name] = HostCopy(value)
        else:
            found[name] = training.best[name] if name in training.best else value.detach().cpu()
    return found | {name: copy.read() for name, copy in copies.items()}


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
    """Training mode; what is frozen stays in evaluation mode, so that its batch norms keep the statistics they have."""
    model.train(fine_tune == "full")
    for module in model.modules():
        trains = [parameter.requires_grad for parameter in module.parameters()]
        if trains and not any(trains):
            module.eval()
