"""What the rules are proved on: little trainings, sick and healthy. Each disease changes one thing.

The pictures are the sample data's, 32 pixels, or a folder of photographs; rule_runs.py trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.classes import CheckInputImages, ClassImbalance, LabelsPermuted
from image_classifier.debugging.rules.dynamics import OscillatingLoss, Regulariser, RepeatedOrder
from image_classifier.debugging.rules.framework import StepOutlier
from image_classifier.debugging.rules.losses import ExplodingTensor, LossNotDecreasing
from image_classifier.debugging.rules.overfitting import Overfit, Overtraining
from image_classifier.debugging.rules.tensors import (
    AllZero,
    DeadRelu,
    PoorWeightInitialization,
    UnchangedTensor,
    VanishingGradient,
)
from image_classifier.debugging.rules.waiting import Dataloader
from image_classifier.debugging.rules.weights import WeightUpdateRatio

Network = Callable[[int], nn.Module]  # number of classes -> network
Labels = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of run.

    Args:
        rules: that should fire; empty for a healthy run. Others may fire too in a sick one.
        network: makes it for a number of classes, with the random state of the seed.
        spoil: changes the network after it is made.
        trained: the network has learned the other classes before, and starts with a new last layer.
        head_only: only the last layer trains, the others are frozen.
        optimizer: `sgd` or `adamw`.
        epochs: passes over the training images.
        images, valid_images: how many of those there are, 120 and 32 a class, are used.
        classes: of the sample data; photographs have their own.
        photographs: instead of the sample data.
        flips: mirror every other batch.
        labels: changes the training labels, given the generator.
        relabel: `labels` is asked again before each epoch.
        keep: which training images are kept, given their labels.
        pixels: changes the normalised images.
        left_out: parameters whose names start so are not handed to the optimiser.
        order: of the training images; `fixed` is one shuffle for all epochs.
        penalty: of the sum of the squared weights, that is added to the loss.
        constant: the learning rate, without warm-up and cosine.
        valid_classes_shift: the classes of the validation images have numbers so much higher.
        wait_s: seconds each step waits for data.
        pause_s, pause_every: seconds that every so many steps pause.
    """

    rules: tuple[type[Rule], ...] = ()
    network: Network = field(default_factory=lambda: conv_net)
    spoil: Callable[[nn.Module], None] | None = None
    trained: bool = False
    head_only: bool = False
    optimizer: str = "sgd"
    lr: float = 0.02
    epochs: int = 8
    batch_size: int = 16
    images: int = 480
    valid_images: int = 128
    classes: int = 4
    photographs: bool = False
    flips: bool = False
    labels: Labels | None = None
    relabel: bool = False
    keep: Callable[[torch.Tensor], torch.Tensor] | None = None
    pixels: Callable[[torch.Tensor], torch.Tensor] | None = None
    left_out: str = ""
    order: Literal["shuffled", "fixed", "by class"] = "shuffled"
    penalty: float = 0.0
    constant: bool = False
    valid_classes_shift: int = 0
    wait_s: float = 0.0
    pause_s: float = 0.0
    pause_every: int = 13


def conv_net(classes: int, *, batch_norm: bool = True, width: int = 8, dropout: float = 0.0) -> nn.Module:
    """Six convolutions and a linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for index in range(6):
        out = width * 2 ** (index // 2)
        layers.append(nn.Conv2d(channels, out, 3, stride=1 + index % 2, padding=1, bias=not batch_norm))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
        layers += [nn.BatchNorm2d(out)] if batch_norm else []
        layers.append(nn.ReLU())
        channels = out
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, classes))


def plain(classes: int) -> nn.Module:
    """Without batch norm."""
    return conv_net(classes, batch_norm=False)


def wide(classes: int) -> nn.Module:
    """Three times the channels, and dropout."""
    return conv_net(classes, width=24, dropout=0.3)


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


def residual_net(classes: int) -> nn.Module:
    """A stem, three residual blocks, a head."""
    stem = [nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    blocks = [nn.Sequential(Residual(32), nn.MaxPool2d(2)) for _ in range(3)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def sigmoid_tower(classes: int) -> nn.Module:
    """Twelve linear layers with sigmoids between them."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(8), nn.Flatten()]
    size = 3 * 64
    for _ in range(12):
        layers += [nn.Linear(size, 64), nn.Sigmoid()]
        size = 64
    return nn.Sequential(*layers, nn.Linear(size, classes))


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


def few_of_the_last(one_in: int, num_classes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of the last `num_classes` classes, one image in `one_in` is kept."""

    def keep(labels: torch.Tensor) -> torch.Tensor:
        rare = labels > labels.max() - num_classes
        return ~rare | (torch.arange(len(labels)) % one_in == 0)

    return keep


def one_class_wrong(labels: torch.Tensor, _generator: torch.Generator) -> torch.Tensor:
    """Two in three images of class 3 carry the label of class 2."""
    wrong = (labels == 3) & (torch.arange(len(labels)) % 3 != 0)
    return torch.where(wrong, 2, labels)


def some_wrong(share: float) -> Labels:
    """That share of the images gets any label."""

    def labels(right: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.rand(len(right), generator=generator) < share
        return torch.where(chosen, torch.randint(int(right.max()) + 1, right.shape, generator=generator), right)

    return labels


def shuffled(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """No label belongs to its image."""
    return labels[torch.randperm(len(labels), generator=generator)]


def raw(pixels: torch.Tensor) -> torch.Tensor:
    """Normalised images back to 0..1, roughly."""
    return pixels * 0.226 + 0.45


HEALTHY: dict[str, Case] = {
    "healthy: batch norm, SGD": Case(),
    "healthy: batch norm, AdamW": Case(optimizer="adamw", lr=0.002),
    "healthy: no batch norm": Case(network=plain, lr=0.005),
    "healthy: residual, zero init": Case(network=residual_net),
    "healthy: low learning rate": Case(lr=0.003),
    "healthy: many epochs": Case(lr=0.003, epochs=14, images=240),
    "healthy: batches of 4": Case(batch_size=4, lr=0.005, images=320),
    "healthy: batches of 64": Case(batch_size=64, lr=0.04, epochs=12),
    "healthy: eight classes": Case(classes=8, images=960, valid_images=256, batch_size=32, lr=0.05, epochs=10),
    "healthy: 12 validation images": Case(valid_images=12, images=240, epochs=14),
    "healthy: eight classes, 24 validation images": Case(classes=8, images=480, valid_images=24, epochs=12),
    "healthy: wide, with dropout": Case(network=wide, images=320, flips=True),
    "healthy: one label in ten wrong": Case(labels=some_wrong(0.1), flips=True),
    "healthy: a class five times smaller": Case(keep=few_of_the_last(5, 1)),
    "healthy: new head on a frozen trunk": Case(trained=True, head_only=True, lr=0.05),
    "healthy: fine-tuned": Case(trained=True, lr=0.005, images=160, epochs=12),
}
PHOTOGRAPHS: dict[str, Case] = {
    "healthy: photographs, SGD": Case(photographs=True, flips=True, epochs=12),
    "healthy: photographs, AdamW": Case(photographs=True, flips=True, optimizer="adamw", lr=0.002, epochs=10),
    "healthy: photographs, 25 to validate": Case(photographs=True, flips=True, valid_images=25, epochs=12),
    "100 photographs, shuffled labels": Case(
        rules=(Overfit,), labels=shuffled, photographs=True, images=100, epochs=60, optimizer="adamw", lr=0.01
    ),
}
SICK: dict[str, Case] = {
    "learning rate 0": Case(rules=(LossNotDecreasing, UnchangedTensor, WeightUpdateRatio), lr=0.0),
    "learning rate far too high": Case(rules=(ExplodingTensor,), network=plain, lr=1e5),
    "learning rate too high for AdamW": Case(rules=(WeightUpdateRatio,), optimizer="adamw", lr=1.0),
    "sigmoid tower": Case(rules=(VanishingGradient,), network=sigmoid_tower),
    "weights too small": Case(rules=(PoorWeightInitialization,), network=plain, spoil=scaled(0.05)),
    "weights too large": Case(rules=(PoorWeightInitialization,), network=plain, spoil=scaled(5.0), lr=1e-4),
    "dead units": Case(rules=(DeadRelu,), network=plain, spoil=negative_bias, lr=0.005),
    "zeroed layers": Case(rules=(AllZero,), network=plain, spoil=zeroed, lr=0.005),
    "layer not given to the optimiser": Case(rules=(UnchangedTensor,), left_out="3."),
    "new random labels every epoch": Case(rules=(LossNotDecreasing,), labels=shuffled, relabel=True, lr=0.003),
    "few images, shuffled labels": Case(
        rules=(Overfit,), labels=shuffled, images=64, epochs=60, optimizer="adamw", lr=0.01
    ),
    "few images, every other label wrong": Case(
        rules=(Overfit,), labels=some_wrong(0.67), images=96, valid_images=48, epochs=60, optimizer="adamw", lr=0.01
    ),
    "mild: few images, every other label wrong": Case(  # validation gets worse in some of them only
        rules=(Overfit,), labels=some_wrong(0.67), images=96, valid_images=48, epochs=40, optimizer="adamw", lr=0.003
    ),
    "trained for far too long": Case(rules=(Overtraining,), images=160, epochs=40),
    "two classes nearly without images": Case(rules=(ClassImbalance,), keep=few_of_the_last(25, 2)),
    "a class under another's label": Case(rules=(ClassImbalance,), labels=one_class_wrong),
    "the same, 48 validation images": Case(rules=(ClassImbalance,), labels=one_class_wrong, valid_images=48),
    "pixels not normalised": Case(rules=(CheckInputImages,), pixels=lambda x: raw(x) * 255),
    "black images": Case(rules=(CheckInputImages,), pixels=lambda x: raw(x) * 0.05 / 0.226 - 2.0),
    "images by class, one after the other": Case(
        rules=(OscillatingLoss,), order="by class", constant=True, lr=0.01, batch_size=8
    ),
    "a penalty of the weights larger than the loss": Case(rules=(Regulariser,), penalty=1.0),
    "the same order in every epoch": Case(rules=(RepeatedOrder,), order="fixed"),
    "validation under other numbers": Case(rules=(LabelsPermuted,), valid_classes_shift=1),
    "slow storage": Case(rules=(Dataloader,), wait_s=0.02, epochs=2),
    "a step pauses now and then": Case(rules=(StepOutlier,), pause_s=0.15),
    "a shorter pause, more rarely": Case(rules=(StepOutlier,), pause_s=0.12, pause_every=18),
}
CASES: dict[str, Case] = HEALTHY | SICK
