"""Trains a case of rule_cases.py like the trainer does, observed by a job's recorder: momentum, warm-up, cosine.

A run is 80 to 1,200 steps of a network of a few layers.
"""

from __future__ import annotations

import math
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from benchmarks.rule_cases import Case, conv_net
from torch import nn

from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts
from image_classifier.debugging.sinks import Sink
from image_classifier.vision.folders import find_channels, scan
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.sample_data import make_sample_data

SIDE = 32
WARMUP_EPOCHS = 0.5
INTERVAL = 50  # of statistics
ALL_CLASSES = 8  # of the sample data
Images = tuple[torch.Tensor, torch.Tensor]  # (n, 3, SIDE, SIDE) float32 and labels (n,) int64


@cache
def pictures(photos: Path | None = None) -> tuple[Images, Images]:
    """Training and validation images of a folder; without one, of the sample data: 120 and 32 of each class."""
    with TemporaryDirectory() as folder:
        if photos is None:
            make_sample_data(Path(folder), num_classes=ALL_CLASSES, train_per_class=120, valid_per_class=32, size=40)
        folders = scan(find_channels(photos or Path(folder)), valid_fraction=0.2, seed=0)
        preprocessing = Preprocessing.for_image_size(SIDE)
        train, valid = (
            (
                torch.from_numpy(np.stack([load(path, preprocessing) for path in split.paths])),
                torch.tensor(split.labels),
            )
            for split in (folders.train, folders.valid)
        )
    return train, valid


def images_of(case: Case, photos: Path | None, generator: torch.Generator) -> tuple[Images, Images]:
    """The case's training and validation images; the latter the same number of each class, as far as there are."""
    (images, labels), (valid_images, valid_labels) = pictures(photos if case.photographs else None)
    classes = num_classes(case, photos)
    order = torch.randperm(len(labels), generator=generator)
    chosen = order[labels[order] < classes][: case.images]
    if case.keep is not None:
        chosen = chosen[case.keep(labels[chosen])]
    order = torch.randperm(len(valid_labels), generator=generator)
    each = case.valid_images // classes
    chosen_valid = torch.cat([order[valid_labels[order] == label][:each] for label in range(classes)])
    train, valid = images[chosen], valid_images[chosen_valid]
    if case.pixels is not None:
        train, valid = case.pixels(train), case.pixels(valid)
    return (train, labels[chosen]), (valid, (valid_labels[chosen_valid] + case.valid_classes_shift) % classes)


def num_classes(case: Case, photos: Path | None) -> int:
    """Classes of a case."""
    return int(pictures(photos)[0][1].max()) + 1 if case.photographs else case.classes


@cache
def trunk() -> dict[str, torch.Tensor]:
    """The weights of a `conv_net` that has learned the sample data's other four classes; without its last layer."""
    torch.manual_seed(0)
    images, labels = pictures()[0]
    known = ALL_CLASSES // 2
    images, labels = images[labels >= known], labels[labels >= known] - known
    network = conv_net(known)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(8):
        for batch in torch.randperm(len(labels)).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    last = len(network) - 1  # type: ignore[arg-type]  # a Sequential
    return {name: value for name, value in network.state_dict().items() if not name.startswith(f"{last}.")}


def make_network(case: Case, classes: int) -> nn.Module:
    """The network as it starts, some of it frozen if the case says so."""
    network = case.network(classes)
    if case.trained:
        network.load_state_dict(trunk(), strict=False)
    if case.spoil is not None:
        case.spoil(network)
    if case.head_only:
        head = list(network.parameters())[-2:]
        for parameter in network.parameters():
            parameter.requires_grad = any(parameter is each for each in head)
    return network


def train(case: Case, seed: int, sinks: tuple[Sink, ...] = (), photos: Path | None = None) -> RunData:
    """Trains one case with one seed."""
    generator = torch.Generator().manual_seed(seed)
    if case.trained:
        trunk()  # before the seed, which it would change
    torch.manual_seed(seed)
    (images, true_labels), valid = images_of(case, photos, generator)
    labels = case.labels(true_labels, generator) if case.labels else true_labels
    classes = num_classes(case, photos)
    network = make_network(case, classes)
    steps = len(labels) // case.batch_size
    run = RunData(facts(case, steps, classes))
    recorder = Recorder(
        run,
        sinks,
        network,
        torch.device("cpu"),
        num_classes=classes,
        debug_interval=INTERVAL,
        activation_interval=INTERVAL,
    )
    trained = [
        p
        for n, p in network.named_parameters()
        if p.requires_grad and not (case.left_out and n.startswith(case.left_out))
    ]
    optimizer, schedule = optimization(trained, case, steps)
    for epoch in range(1, case.epochs + 1):
        if case.relabel and case.labels:
            labels = case.labels(true_labels, generator)
        network.train()
        recorder.begin("train", epoch, (epoch - 1) * steps)
        order = order_of(case, labels, generator)[: steps * case.batch_size]
        for step, batch in enumerate(order.split(case.batch_size)):
            time.sleep(case.wait_s)
            inputs = images[batch].flip(3) if case.flips and torch.rand(1, generator=generator) < 0.5 else images[batch]
            recorder.mark("data_wait_s")
            if case.pause_s and ((epoch - 1) * steps + step) % case.pause_every == case.pause_every - 1:
                time.sleep(case.pause_s)
            train_step(network, optimizer, inputs, labels[batch], recorder, case.penalty)
            schedule.step()
        recorder.end_epoch()
        evaluate(network, *valid, recorder, epoch)
    recorder.close()
    return run


def order_of(case: Case, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The order of the training images in the next epoch."""
    if case.order == "by class":
        return labels.argsort()
    fixed = torch.Generator().manual_seed(0)
    return torch.randperm(len(labels), generator=generator if case.order == "shuffled" else fixed)


def facts(case: Case, steps: int, classes: int) -> JobFacts:
    """What a job of this case says of itself."""
    config = {
        "lr": case.lr,
        "epochs": case.epochs,
        "batch_size": case.batch_size,
        "warmup_epochs": WARMUP_EPOCHS,
        "image_size": SIDE,
    }
    names = [str(label) for label in range(classes)]
    return JobFacts(config=config, classes=names, steps_per_epoch=steps, started=time.time(), cores=2)


def optimization(
    trained: list[nn.Parameter], case: Case, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD with momentum or AdamW, with the trainer's schedule."""
    if case.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=case.lr, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(trained, lr=case.lr)
    warmup, total = round(WARMUP_EPOCHS * steps), case.epochs * steps

    def share(step: int) -> float:
        if case.constant:
            return 1.0
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def train_step(  # noqa: PLR0917  # what a step is made of
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    recorder: Recorder,
    penalty: float = 0.0,
) -> None:
    """One step, told to the recorder as the trainer does."""
    recorder.before_forward(images)
    logits = network(images)
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    if penalty:
        loss = loss + penalty * sum(each.square().sum() for each in network.parameters())
    recorder.mark("forward_s")
    optimizer.zero_grad()
    loss.backward()
    recorder.mark("backward_s")
    recorder.after_backward()
    optimizer.step()
    recorder.mark("optimizer_s")
    recorder.after_update()
    recorder.end_step(loss, logits, labels)


@torch.no_grad()
def evaluate(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, recorder: Recorder, epoch: int) -> None:
    """The validation after an epoch."""
    network.eval()
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    recorder.begin("eval", epoch, (epoch - 1) * len(batches))
    for batch, truth in batches:
        logits = network(batch)
        recorder.mark("forward_s")
        recorder.end_step(nn.functional.cross_entropy(logits, truth), logits, truth)
    recorder.end_epoch()
