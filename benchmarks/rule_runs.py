"""Small real trainings, sick and healthy, observed by the recorder of a job: what the rules are proved on.

A run is a few hundred steps of a network of six layers on pictures of four textures (the sample data's, 32 pixels).
Each disease changes one thing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
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
CLASSES = 4
Network = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of run.

    Args:
        rules: that should fire; empty for a healthy run. Others may fire too in a sick one.
        network: makes it, with the random state of the seed.
        spoil: changes the network after it is made.
        optimizer: `sgd` or `adamw`.
        epochs: passes over 480 training images (or `images` of them).
        labels: changes the training labels, given the generator.
        pixels: changes the normalised images.
        left_out: parameters whose names start so are not handed to the optimiser.
        wait_s, pause_s: seconds each step waits for data; seconds some steps pause.
    """

    rules: tuple[str, ...] = ()
    network: Network = field(default_factory=lambda: conv_net)
    spoil: Callable[[nn.Module], None] | None = None
    optimizer: str = "sgd"
    lr: float = 0.02
    epochs: int = 8
    batch_size: int = 16
    images: int = 480
    labels: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None
    pixels: Callable[[torch.Tensor], torch.Tensor] | None = None
    left_out: str = ""
    wait_s: float = 0.0
    pause_s: float = 0.0


def conv_net(*, batch_norm: bool = True, activation: type[nn.Module] = nn.ReLU, width: int = 8) -> nn.Module:
    """Six convolutions and a linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for index in range(6):
        out = width * 2 ** (index // 2)
        layers.append(nn.Conv2d(channels, out, 3, stride=1 + index % 2, padding=1, bias=not batch_norm))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
        layers += [nn.BatchNorm2d(out)] if batch_norm else []
        layers.append(activation())
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Residual(nn.Module):
    """Two convolutions whose last batch norm starts at zero, as in the project's ResNet50."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, h, w) in and out."""
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def residual_net() -> nn.Module:
    """A stem, three residual blocks, a head."""
    stem = [nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    blocks = [nn.Sequential(Residual(32), nn.MaxPool2d(2)) for _ in range(3)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def sigmoid_tower() -> nn.Module:
    """Twelve linear layers with sigmoids between them."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(8), nn.Flatten()]
    size = 3 * 64
    for _ in range(12):
        layers += [nn.Linear(size, 64), nn.Sigmoid()]
        size = 64
    return nn.Sequential(*layers, nn.Linear(size, CLASSES))


def scaled(factor: float) -> Callable[[nn.Module], None]:
    """Multiplies all filters and matrices."""

    def spoil(network: nn.Module) -> None:
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data *= factor

    return spoil


def negative_bias(network: nn.Module) -> None:
    """A bias in the third convolution that no input overcomes: most units are dead."""
    bias = [m for m in network.modules() if isinstance(m, nn.Conv2d)][2].bias
    assert bias is not None
    bias.data[: len(bias) * 3 // 4] = -50.0


def zeroed(network: nn.Module) -> None:
    """The fourth convolution and what would wake it up again are zero."""
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for layer in convs[3:5]:
        layer.weight.data.zero_()
        if layer.bias is not None:
            layer.bias.data.zero_()


def imbalanced(labels: torch.Tensor, _generator: torch.Generator) -> torch.Tensor:
    """Nearly all images become class 0's or 1's."""
    rare = (labels > 1) & (torch.arange(len(labels)) % 25 != 0)
    return torch.where(rare, labels % 2, labels)


def one_class_wrong(labels: torch.Tensor, _generator: torch.Generator) -> torch.Tensor:
    """Two in three images of class 3 carry the label of class 2."""
    wrong = (labels == 3) & (torch.arange(len(labels)) % 3 != 0)
    return torch.where(wrong, 2, labels)


def shuffled(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """No label belongs to its image."""
    return labels[torch.randperm(len(labels), generator=generator)]


def new_labels(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same; and `train` shuffles them again before each epoch."""
    return shuffled(labels, generator)


def plain() -> nn.Module:
    """Without batch norm."""
    return conv_net(batch_norm=False)


CASES: Mapping[str, Case] = {
    "healthy: batch norm, SGD": Case(),
    "healthy: batch norm, AdamW": Case(optimizer="adamw", lr=0.002),
    "healthy: no batch norm": Case(network=plain, lr=0.005),
    "healthy: residual, zero init": Case(network=residual_net),
    "healthy: low learning rate": Case(lr=0.003, epochs=8),
    "healthy: many epochs": Case(lr=0.001, epochs=14, images=240),
    "learning rate 0": Case(rules=("LossNotDecreasing", "UnchangedTensor", "WeightUpdateRatio"), lr=0.0),
    "learning rate far too high": Case(rules=("ExplodingTensor",), network=plain, lr=1e5),
    "learning rate too high for AdamW": Case(rules=("WeightUpdateRatio",), optimizer="adamw", lr=1.0),
    "sigmoid tower": Case(rules=("VanishingGradient",), network=sigmoid_tower),
    "weights too small": Case(rules=("PoorWeightInitialization",), network=plain, spoil=scaled(0.05)),
    "weights too large": Case(rules=("PoorWeightInitialization",), network=plain, spoil=scaled(5.0), lr=1e-4),
    "dead units": Case(rules=("DeadRelu",), network=plain, spoil=negative_bias, lr=0.005),
    "zeroed layers": Case(rules=("AllZero",), network=plain, spoil=zeroed, lr=0.005),
    "layer not given to the optimiser": Case(rules=("UnchangedTensor",), left_out="3."),
    "new random labels every epoch": Case(rules=("LossNotDecreasing",), labels=new_labels, lr=0.003),
    "few images, shuffled labels": Case(
        rules=("Overfit",), labels=shuffled, images=64, epochs=40, optimizer="adamw", lr=0.003
    ),
    "trained for far too long": Case(rules=("Overtraining",), images=160, epochs=40),
    "two classes nearly without images": Case(rules=("ClassImbalance",), labels=imbalanced),
    "a class under another's label": Case(rules=("ClassImbalance",), labels=one_class_wrong),
    "pixels not normalised": Case(rules=("CheckInputImages",), pixels=lambda x: (x * 0.226 + 0.45) * 255),
    "black images": Case(rules=("CheckInputImages",), pixels=lambda x: (x * 0.226 + 0.45) * 0.05 / 0.226 - 2.0),
    "slow storage": Case(rules=("Dataloader",), wait_s=0.02, epochs=2),
    "a step pauses now and then": Case(rules=("StepOutlier",), pause_s=0.15, epochs=8),
}


@cache
def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images (480, 3, 32, 32) float32 and labels (480,), validation images (128, ...) and labels."""
    with TemporaryDirectory() as folder:
        make_sample_data(Path(folder), num_classes=CLASSES, train_per_class=120, valid_per_class=32, size=40)
        folders = scan(find_channels(Path(folder)), valid_fraction=0.2, seed=0)
        preprocessing = Preprocessing.for_image_size(SIDE)
        parts: list[torch.Tensor] = []
        for split in (folders.train, folders.valid):
            images = np.stack([load(path, preprocessing) for path in split.paths])
            parts += [torch.from_numpy(images), torch.tensor(split.labels)]
    return parts[0], parts[1], parts[2], parts[3]


def train(case: Case, seed: int, sinks: tuple[Sink, ...] = ()) -> RunData:
    """Trains one case with one seed, like the trainer's loop: momentum, warm-up of half an epoch, cosine."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels, valid_images, valid_labels = pictures()
    chosen = torch.randperm(len(labels), generator=generator)[: case.images]
    images, labels = images[chosen], labels[chosen]
    if case.pixels is not None:
        images, valid_images = case.pixels(images), case.pixels(valid_images)
    if case.labels is not None:
        labels = case.labels(labels, generator)
    network = case.network()
    if case.spoil is not None:
        case.spoil(network)
    steps = len(labels) // case.batch_size
    run = RunData(facts(case, steps))
    recorder = Recorder(
        run,
        sinks,
        network,
        torch.device("cpu"),
        num_classes=CLASSES,
        debug_interval=INTERVAL,
        activation_interval=INTERVAL,
    )
    trained = [p for n, p in network.named_parameters() if not (case.left_out and n.startswith(case.left_out))]
    optimizer, schedule = optimization(trained, case, steps)
    for epoch in range(1, case.epochs + 1):
        if case.labels is new_labels:
            labels = shuffled(labels, generator)
        network.train()
        recorder.begin("train", epoch, (epoch - 1) * steps)
        order = torch.randperm(len(labels), generator=generator)[: steps * case.batch_size]
        for step, batch in enumerate(order.split(case.batch_size)):
            time.sleep(case.wait_s)
            recorder.mark("data_wait_s")
            if case.pause_s and step % 13 == 12:
                time.sleep(case.pause_s)
            train_step(network, optimizer, images[batch], labels[batch], recorder)
            schedule.step()
        recorder.end_epoch()
        evaluate(network, valid_images, valid_labels, recorder, epoch)
    recorder.close()
    return run


def facts(case: Case, steps: int) -> JobFacts:
    """What a job of this case says of itself."""
    config = {
        "lr": case.lr,
        "epochs": case.epochs,
        "batch_size": case.batch_size,
        "warmup_epochs": WARMUP_EPOCHS,
        "workers": 0,
    }
    names = [str(label) for label in range(CLASSES)]
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
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    recorder: Recorder,
) -> None:
    """One step, told to the recorder as the trainer does."""
    recorder.before_forward(images)
    logits = network(images)
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
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
