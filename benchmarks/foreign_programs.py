"""Small PyTorch programs that are not this project's, all healthy; `foreign_faults.py` plants faults into them.

Every program goes through `image_classifier.debugging.door.watch`, with default parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.debugging.door import Watch, watch

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Data = tuple[torch.Tensor, torch.Tensor]


def blobs(seed: int, count: int = 1500, classes: int = 5, size: int = 20, spread: float = 1.3) -> Data:
    """Points around centres: (count, size) float32 of about unit deviation, labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, size, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    points = centres[labels] + spread * torch.randn(count, size, generator=generator)
    return points / points.std(), labels


def gratings(seed: int, count: int = 400, classes: int = 4, side: int = 12) -> Data:
    """Oriented waves under noise: (count, 1, side, side), labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    angle = labels * math.pi / classes
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phase = 6.3 * torch.rand(count, generator=generator)
    wave = torch.sin(
        1.2 * (torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y) + phase[:, None, None]
    )
    images = (wave + 0.8 * torch.randn(count, side, side, generator=generator))[:, None]
    return images / images.std(), labels


def curve(seed: int, count: int = 500) -> Data:
    """A smooth function of four numbers, with noise: (count, 4), (count, 1)."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, generator=generator)
    target = torch.sin(points[:, :1]) + 0.5 * points[:, 1:2] * points[:, 2:3]
    return points, target + 0.1 * torch.randn(count, 1, generator=generator)


def perceptron(
    sizes: tuple[int, ...],
    activation: type[nn.Module] = nn.ReLU,
    *,
    dropout: float = 0.0,
    last: nn.Module | None = None,
) -> nn.Module:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(before, after))
        if index < len(sizes) - 2:
            layers += [activation(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, *([last] if last is not None else []))


def convolutions(*, norm: bool, classes: int = 4, width: int = 12, last: nn.Module | None = None) -> nn.Module:
    """Three convolutions and a linear layer."""
    layers: list[nn.Module] = []
    channels = 1
    for index in range(3):
        layers.append(nn.Conv2d(channels, width, 3, stride=1 + index % 2, padding=1, bias=not norm))
        layers += [*([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        channels = width
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(*layers, *head, *([last] if last is not None else []))


class Skip(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def residual() -> nn.Module:
    """A stem, two blocks, a head."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), Skip(12), nn.MaxPool2d(2), Skip(12), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


class Patches(nn.Module):
    """A little vision transformer: nine patches of 4 x 4 pixels, two layers of attention."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, stride=4)
        layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.0, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.place = nn.Parameter(0.1 * torch.randn(1, 9, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        answer: torch.Tensor = self.head(self.layers(tokens).mean(1))
        return answer


def sgd(lr: float, **more: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """SGD with momentum 0.9 by default."""
    return lambda network: torch.optim.SGD(network.parameters(), lr=lr, **({"momentum": 0.9} | more))


def adam(lr: float, **more: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Adam."""
    return lambda network: torch.optim.Adam(network.parameters(), lr=lr, **more)


@dataclass(frozen=True, kw_only=True)
class ForeignProgram:
    """A training: what it is made of, and the places at which a fault can be planted.

    Args:
        data: seed -> inputs and labels; a fifth is kept to validate.
        classes: 0 for no classifier.
        spoil: changes the network once it is made.
        optimizer: makes it; given the network.
        swap: changes the network after its optimiser was made.
        labels: changes the labels once the data is made.
        inputs: changes inputs.
        before_backward: adds to the loss.
        zero, backward, update: whether these are called.
        schedule: step -> factor of the learning rate.
        shuffle: whether the order of the data is random.
        mode: called with the network before each training step.
        each_epoch: called with the network at the start of an epoch.
        clip: largest norm of the gradients, 0 for any.
    """

    data: Callable[[int], Data] = blobs
    classes: int = 5
    network: Callable[[], nn.Module] = lambda: perceptron((20, 64, 64, 5))
    loss: Loss = F.cross_entropy
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd(0.05)  # noqa: RUF009  # the same for all is meant
    epochs: int = 6
    batch_size: int = 40
    spoil: Callable[[nn.Module], None] | None = None
    swap: Callable[[nn.Module], None] | None = None
    labels: Callable[[torch.Tensor], torch.Tensor] | None = None
    inputs: Callable[[torch.Tensor], torch.Tensor] | None = None
    before_backward: Callable[[torch.Tensor, nn.Module], torch.Tensor] | None = None
    zero: bool = True
    backward: bool = True
    update: bool = True
    schedule: Callable[[int], float] | None = None
    shuffle: bool = True
    mode: Callable[[nn.Module], object] = nn.Module.train
    each_epoch: Callable[[nn.Module], None] | None = None
    clip: float = 0.0
    limit: int = 0


def run_program(program: ForeignProgram, seed: int) -> Watch:
    """Trains it through the public door."""
    torch.manual_seed(seed)
    inputs, labels = program.data(seed)
    labels = labels if program.labels is None else program.labels(labels)
    inputs = inputs if program.inputs is None else program.inputs(inputs)
    kept = len(inputs) // 5
    network = program.network()
    if program.spoil is not None:
        with torch.no_grad():
            program.spoil(network)
    optimizer = program.optimizer(network)
    if program.swap is not None:
        program.swap(network)
    steps = (len(inputs) - kept) // program.batch_size
    planned = (program.epochs, steps) if not program.limit else (1, program.limit)
    with watch(network, optimizer, classes=program.classes, epochs=planned[0], steps_per_epoch=planned[1],
               config={"batch_size": program.batch_size}) as seen:  # fmt: skip
        made = 0
        for _ in range(program.epochs):
            if program.each_epoch is not None:
                with torch.no_grad():
                    program.each_epoch(network)
            order = torch.randperm(len(inputs) - kept) if program.shuffle else torch.arange(len(inputs) - kept)
            for batch in order[: steps * program.batch_size].split(program.batch_size):
                if program.limit and made == program.limit:
                    break
                _step(program, network, optimizer, inputs[kept:][batch], labels[kept:][batch], made, seen)
                made += 1
            network.eval()
            with torch.no_grad():
                logits = network(inputs[:kept])
                seen.validation(program.loss(logits, labels[:kept]), logits, labels[:kept])
    return seen


def _step(  # noqa: PLR0917  # a loop's body
    program: ForeignProgram,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    made: int,
    seen: Watch,
) -> None:  # fmt: skip
    program.mode(network)
    if program.schedule is not None:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("first", group["lr"]) * program.schedule(made)
    logits = network(inputs)
    loss = program.loss(logits, labels)
    loss = loss if program.before_backward is None else program.before_backward(loss, network)
    if program.zero:
        optimizer.zero_grad()
    if program.backward:
        loss.backward()  # type: ignore[no-untyped-call]
    if program.clip:
        nn.utils.clip_grad_norm_(network.parameters(), program.clip)
    if program.update:
        optimizer.step()
    seen.step(loss, logits, labels)


# the healthy bases
MLP = ForeignProgram()
MLP_ADAM = replace(MLP, optimizer=adam(0.002))
CNN = ForeignProgram(
    data=gratings, classes=4, network=lambda: convolutions(norm=False), optimizer=adam(0.004), epochs=12
)
CNN_NORM = replace(CNN, network=lambda: convolutions(norm=True), optimizer=sgd(0.05))
DEEP = replace(MLP, network=lambda: perceptron((20, *[32] * 6, 5)), optimizer=adam(0.003), epochs=14)


def _binary(seed: int) -> Data:
    points, labels = blobs(seed, classes=2, size=10)
    return points, labels


def _logistic(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())


BINARY = ForeignProgram(
    data=_binary, classes=2, network=lambda: perceptron((10, 32, 1)), loss=_logistic, optimizer=adam(0.005)
)
REGRESSION = ForeignProgram(
    data=curve, classes=0, network=lambda: perceptron((4, 48, 48, 1)), loss=F.mse_loss, optimizer=adam(0.004), epochs=14
)


def _thinned(seed: int, share: float) -> Data:
    points, labels = blobs(seed, count=800)
    kept = (labels > 0) | (torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < share)
    return points[kept], labels[kept]


def _encode(width: int) -> ForeignProgram:
    return ForeignProgram(
        data=lambda seed: (blobs(seed)[0],) * 2, classes=0, network=lambda: perceptron((20, width, 6, width, 20)),
        loss=F.mse_loss, optimizer=adam(0.004), epochs=14,
    )  # fmt: skip


def _zero_head(network: nn.Module) -> None:
    list(network.parameters())[-2].zero_()


HEALTHY_PROGRAMS: dict[str, ForeignProgram] = {
    "perceptron, SGD": MLP,
    "perceptron, Adam": MLP_ADAM,
    "perceptron, small batches": replace(MLP, batch_size=8, optimizer=sgd(0.01)),
    "perceptron, batches of one": replace(MLP, batch_size=1, optimizer=sgd(0.005, momentum=0.0), epochs=2),
    "perceptron, large batches": replace(MLP, batch_size=200, epochs=20),
    "perceptron, whole data": replace(MLP, batch_size=1200, epochs=60, optimizer=adam(0.005)),
    "perceptron, tanh": replace(MLP, network=lambda: perceptron((20, 48, 48, 5), nn.Tanh)),
    "perceptron, sigmoid, Adam": replace(MLP_ADAM, network=lambda: perceptron((20, 48, 5), nn.Sigmoid), epochs=20),
    "perceptron, GELU": replace(MLP_ADAM, network=lambda: perceptron((20, 48, 48, 5), nn.GELU)),
    "perceptron, dropout": replace(MLP_ADAM, network=lambda: perceptron((20, 128, 128, 5), dropout=0.4), epochs=20),
    "perceptron, weight decay": replace(MLP, optimizer=sgd(0.05, weight_decay=1e-3)),
    "perceptron, cosine": replace(MLP, schedule=lambda step: 0.5 * (1 + math.cos(math.pi * min(1, step / 150)))),
    "perceptron, warm-up": replace(MLP, schedule=lambda step: min(1.0, (step + 1) / 30)),
    "perceptron, clipped": replace(MLP, clip=1.0),
    "perceptron, zero head": replace(MLP, spoil=_zero_head),
    "perceptron, long": replace(MLP, epochs=30, optimizer=sgd(0.003)),
    "perceptron, very long, Adam": replace(MLP_ADAM, epochs=60, optimizer=adam(0.0002)),
    "perceptron, few data": replace(MLP, data=lambda seed: blobs(seed, count=75, spread=0.9), batch_size=6, epochs=10),
    "perceptron, few data, Adam": replace(
        MLP_ADAM, data=lambda seed: blobs(seed, count=120, spread=0.9), batch_size=16, epochs=10, optimizer=adam(0.005)
    ),
    "perceptron, two classes": replace(MLP, data=_binary, classes=2, network=lambda: perceptron((10, 32, 2))),
    "perceptron, twelve classes": replace(
        MLP_ADAM, data=lambda seed: blobs(seed, count=1500, classes=12, size=24), classes=12,
        network=lambda: perceptron((24, 64, 12)), epochs=8,
    ),
    "perceptron, hard classes": replace(MLP_ADAM, data=lambda seed: blobs(seed, spread=3.5), epochs=12),
    "perceptron, one label in five wrong": replace(
        MLP_ADAM, labels=lambda y: torch.where(torch.rand(len(y)) < 0.2, torch.randint(5, y.shape), y), epochs=8
    ),
    "perceptron, a class four times smaller": replace(
        MLP, data=lambda seed: _thinned(seed, 0.25)
    ),
    "deep perceptron": DEEP,
    "deep perceptron, SELU": replace(
        DEEP, network=lambda: perceptron((20, *[32] * 5, 5), nn.SELU), optimizer=sgd(0.02)
    ),
    "logistic": BINARY,
    "linear": replace(MLP, network=lambda: perceptron((20, 5)), optimizer=sgd(0.02)),
    "log softmax and NLL": replace(
        MLP, network=lambda: perceptron((20, 64, 64, 5), last=nn.LogSoftmax(1)), loss=F.nll_loss
    ),
    "softmax and its own loss": replace(
        MLP_ADAM, network=lambda: perceptron((20, 64, 64, 5), last=nn.Softmax(1)),
        loss=lambda shares, labels: F.nll_loss(shares.clamp(min=1e-7).log(), labels),
    ),
    "convolutions": CNN,
    "convolutions, SGD": replace(CNN, optimizer=sgd(0.03)),
    "convolutions, batch norm": CNN_NORM,
    "convolutions, batch norm, Adam": replace(CNN_NORM, optimizer=adam(0.003)),
    "convolutions, batches of four": replace(CNN_NORM, batch_size=4, optimizer=sgd(0.01), epochs=4),
    "convolutions, pixels of 0 to 1": replace(CNN, inputs=lambda x: (0.15 * x + 0.5).clamp(0, 1), epochs=20),
    "residual": replace(CNN, network=residual, optimizer=sgd(0.03), epochs=8),
    "residual, AdamW": replace(
        CNN, network=residual, optimizer=lambda n: torch.optim.AdamW(n.parameters(), lr=0.003), epochs=8
    ),
    "transformer": replace(CNN, network=Patches, optimizer=adam(0.003), epochs=15),
    "regression": REGRESSION,
    "regression, SGD": replace(REGRESSION, optimizer=sgd(0.02)),
    "autoencoder": _encode(24),
    "wide autoencoder": _encode(64),
}  # fmt: skip
