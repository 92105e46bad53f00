"""Networks and batches that the look before the first step is proved on: what is wrong in each, and healthy ones.

Those of foreign_programs.py and foreign_faults.py as they stand before their first step, and pictures of the sample
data, 32 pixels, on networks of rule_cases.py: untrained, or with a trunk that has learned other classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from benchmarks.foreign_faults import FAULTS
from benchmarks.foreign_programs import HEALTHY_PROGRAMS, ForeignProgram
from benchmarks.rule_cases import conv_net, raw
from benchmarks.rule_runs import ALL_CLASSES, SIDE, pictures, trunk
from torch import nn

from image_classifier.training.crops import random_view
from image_classifier.training.data import seed_of
from image_classifier.vision.preprocess import Preprocessing, scale_and_shift

CLASSES = ALL_CLASSES // 2  # the trunk has learned the others
SAMPLE = 32


@dataclass(frozen=True)
class Look:
    """What `look_ahead` is given."""

    network: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor
    criterion: Any = F.cross_entropy
    plain: torch.Tensor | None = None


def of_program(program: ForeignProgram, seed: int) -> Look:
    """A foreign program before its first step."""
    torch.manual_seed(seed)
    inputs, labels = program.data(seed)
    labels = labels if program.labels is None else program.labels(labels)
    inputs = inputs if program.inputs is None else program.inputs(inputs)
    network = program.network()
    if program.spoil is not None:
        with torch.no_grad():
            program.spoil(network)
    program.mode(network)
    return Look(network, inputs[-SAMPLE:], labels[-SAMPLE:], program.loss)


@cache
def _trunk() -> dict[str, torch.Tensor]:
    return trunk()


def of_pictures(
    seed: int,
    *,
    trained: bool = False,
    own: bool = False,
    frozen: bool = False,
    network: Callable[[], nn.Module] | None = None,
    inputs: Callable[[torch.Tensor], torch.Tensor] | None = None,
    augmented: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Look:
    """A few pictures of four classes and a convolutional network.

    Args:
        trained: it has learned four other classes before, and has a new last layer.
        own: the pictures are of those classes.
        frozen: only that one trains.
        network: makes another one.
        inputs: changes them.
        augmented: crops, and the same normalised -> what is trained on, where there is augmentation.
    """
    weights = _trunk() if trained else {}
    torch.manual_seed(seed)
    made = conv_net(CLASSES) if network is None else network()
    made.load_state_dict(weights, strict=False)
    if frozen:
        made.requires_grad_(False)
        list(made.children())[-1].requires_grad_(True)
        made.eval()
    images, labels = pictures()[0]
    chosen = torch.randperm(len(labels))
    chosen = chosen[(labels[chosen] >= CLASSES) == own][:SAMPLE]
    plain = images[chosen]
    if augmented is not None:
        crops = _crops(plain, seed)
        return Look(made, augmented(crops, _normalised(crops)), labels[chosen] % CLASSES, plain=plain)
    return Look(made, plain if inputs is None else inputs(plain), labels[chosen] % CLASSES)


def _crops(normalised: torch.Tensor, seed: int) -> torch.Tensor:
    """(n, 3, SIDE, SIDE) uint8: the trainer's own random crops of pictures."""
    scale, shift = (torch.from_numpy(array) for array in scale_and_shift(Preprocessing.for_image_size(SIDE)))
    pixels = ((normalised + shift) / scale).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    views = [random_view(image, SIDE, "standard", seed_of(seed, 1, index)) for index, image in enumerate(pixels)]
    return torch.stack(views).permute(0, 3, 1, 2)


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    scale, shift = (torch.from_numpy(array) for array in scale_and_shift(Preprocessing.for_image_size(SIDE)))
    return pixels * scale - shift


class NoisyHead(nn.Module):
    """Dropout that does not ask in which mode the network is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3, training=True)


class OtherScale(nn.Module):
    """A layer that is left out in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(x)
        return normed if self.training else x


def _before_the_head(extra: Callable[[], nn.Module]) -> nn.Module:
    layers = list(conv_net(CLASSES).children())
    return nn.Sequential(*layers[:-1], extra(), layers[-1])


def _large_head() -> nn.Module:
    network = conv_net(CLASSES)
    list(network.parameters())[-2].data *= 50
    return network


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES)


Case = tuple[tuple[str, ...], Callable[[int], Look]]


def _of(fault: str) -> Callable[[int], Look]:
    return lambda seed: of_program(FAULTS[fault].sick, seed)


SICK_STARTS: dict[str, Case] = {
    "weights 60 times too large": (("InitialLoss",), _of("weights far too large")),
    "numbers of a million": (("InitialLoss",), _of("numbers of a million")),
    "a head 50 times too large": (("InitialLoss",), lambda seed: of_pictures(seed, network=_large_head)),
    "softmax over one unit": (("OneBatch", "GradientReach"), _of("softmax over one unit")),
    "inputs all zero": (("OneBatch", "GradientReach"), _of("inputs all zero")),
    "biases that kill every ReLU": (("GradientReach",), _of("biases that kill every ReLU")),
    "detach in the middle": (("GradientReach",), _of("detach in the middle")),
    "augmented images not normalised": (
        ("AugmentedInputs",),
        lambda seed: of_pictures(seed, augmented=lambda crops, _: crops / 255),
    ),
    "augmented images of 0 to 255": (
        ("AugmentedInputs",),
        lambda seed: of_pictures(seed, augmented=lambda crops, _: crops.float()),
    ),
    "augmented images normalised twice": (
        ("AugmentedInputs",),
        lambda seed: of_pictures(seed, augmented=lambda _, images: (images - 0.45) / 0.226),
    ),
    "dropout in both modes": (
        ("ModesAgree",),
        lambda seed: of_pictures(seed, network=lambda: _before_the_head(NoisyHead)),
    ),
    "a layer of training mode only": (
        ("ModesAgree",),
        lambda seed: of_pictures(seed, network=lambda: _before_the_head(OtherScale)),
    ),
    "channels reversed, of pictures like those learned": (
        ("InputsForWeights",),
        lambda seed: of_pictures(seed, trained=True, own=True, inputs=lambda images: images.flip(1)),
    ),
    "pixels of 0 to 255": (
        ("InputsForWeights",),
        lambda seed: of_pictures(seed, trained=True, inputs=lambda images: raw(images) * 255),
    ),
    "a frozen trunk that nobody trained": (("FrozenUntrained",), lambda seed: of_pictures(seed, frozen=True)),
    "a frozen ResNet18 that nobody trained": (
        ("FrozenUntrained",),
        lambda seed: of_pictures(seed, frozen=True, network=_resnet18),
    ),
}
HEALTHY_STARTS: dict[str, Callable[[int], Look]] = {
    **{name: lambda seed, program=each: of_program(program, seed) for name, each in HEALTHY_PROGRAMS.items()},  # type: ignore[misc]
    "pictures": of_pictures,
    "pictures, a trained trunk": lambda seed: of_pictures(seed, trained=True),
    "pictures, a trained trunk, frozen": lambda seed: of_pictures(seed, trained=True, frozen=True),
    "pictures like those learned": lambda seed: of_pictures(seed, trained=True, own=True),
    "pictures, the trainer's crops": lambda seed: of_pictures(seed, augmented=lambda _, images: images),
    "pictures, crops, a trained trunk": lambda seed: of_pictures(
        seed, trained=True, augmented=lambda _, images: images
    ),
    "pictures, ResNet18": lambda seed: of_pictures(seed, network=_resnet18),
}
