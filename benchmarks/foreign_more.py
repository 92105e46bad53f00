"""More foreign programs: other shapes, losses and forms of labels than those of foreign_programs.py, and their faults.

Defaults and rules were made with MORE_FAULTS and these healthy programs, on seeds below 10; UNSEEN_FAULTS were written
afterwards, and nothing was changed for them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from benchmarks.foreign_faults import INIT, LABEL, RATE_HIGH, RATE_LOW, Fault, _fault, _mixed, _negative_biases
from benchmarks.foreign_programs import (
    CNN,
    CNN_NORM,
    MLP,
    MLP_ADAM,
    REGRESSION,
    Data,
    ForeignProgram,
    Patches,
    adam,
    convolutions,
    perceptron,
    sgd,
)
from torch import nn


def rings(seed: int, count: int = 800) -> Data:
    """Two rings around each other: (count, 2), labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    angle = 6.283 * torch.rand(count, generator=generator)
    radius = torch.where(labels == 0, 1.0, 0.5)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + 0.1 * torch.randn(count, 2, generator=generator), labels


def words(seed: int, count: int = 500, length: int = 12, vocabulary: int = 30) -> Data:
    """Rows of words; the label tells which end of the vocabulary there is more of."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, vocabulary, (count, length), generator=generator)
    return rows, ((rows < 8).sum(1) > (rows > 21).sum(1)).long()


def waves(seed: int, count: int = 500, length: int = 15) -> Data:
    """The beginnings of sine waves, (count, length, 1), and what comes next, (count, 1)."""
    generator = torch.Generator().manual_seed(seed)
    phase, rate = 6.3 * torch.rand(count, 1, generator=generator), 0.3 + 0.4 * torch.rand(count, 1, generator=generator)
    whole = torch.sin(phase + rate * torch.arange(length + 1))
    return whole[:, :length, None] + 0.05 * torch.randn(count, length, 1, generator=generator), whole[:, length:]


def squares(seed: int, count: int = 200, side: int = 16) -> Data:
    """A bright square under noise, (count, 1, side, side), and which pixels are of it."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, side, side, dtype=torch.long)
    for index in range(count):
        top, left = torch.randint(0, side - 6, (2,), generator=generator).tolist()
        mask[index, top : top + 6, left : left + 6] = 1
    return (mask.float() + 0.5 * torch.randn(count, side, side, generator=generator))[:, None], mask


def signs(seed: int, count: int = 800) -> Data:
    """Ten numbers, and for five pairs of them whether their sum is above zero: labels of five kinds at once."""
    points = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))
    return points, (points[:, :5] + 0.3 * points[:, 5:] > 0).float()


def exclusive(_seed: int) -> Data:
    """Four points twice, and whether one of their numbers is 1, but not both."""
    return torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(2, 1), torch.tensor([0, 1, 1, 0] * 2)


class Recurrent(nn.Module):
    """An embedding of words, or numbers as they are, a recurrent layer, a head on its last answer."""

    def __init__(self, outputs: int, *, vocabulary: int = 0, kind: type[nn.LSTM | nn.GRU] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 12) if vocabulary else nn.Identity()
        self.layer = kind(12 if vocabulary else 1, 24, batch_first=True)
        self.head = nn.Linear(24, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.layer(self.embed(x))[0][:, -1])
        return answer


class Segmenter(nn.Module):
    """Two scales, joined; two answers a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        answer: torch.Tensor = self.head(torch.cat([fine, torch.relu(self.up(self.coarse(fine)))], 1))
        return answer


class Unlisted(nn.Module):
    """Its first layers lie in a list of Python's, where nobody finds their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(20, 64), nn.Linear(64, 64)]
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        answer: torch.Tensor = self.head(x)
        return answer


class MixedPixels(nn.Module):
    """Puts the pixels of each batch in another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, torch.randperm(x[0].numel())].reshape(x.shape)


class Negated(nn.Module):
    """Cuts the answers off at zero, with the other sign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.relu(x)


def _column(labels: torch.Tensor) -> torch.Tensor:
    return labels.float()[:, None]


def _rows(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels).float()


def _straight(sizes: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def _nll_of_shares(shares: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.nll_loss((shares + 1e-9).log(), labels)


def _focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    each = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-each).exp()).square() * each).mean()


def _frozen_body(network: nn.Module) -> None:
    for parameter in list(network.parameters())[:-2]:
        parameter.requires_grad_(False)


def _times(factor: float) -> Callable[[nn.Module], None]:
    def spoil(network: nn.Module) -> None:
        for parameter in network.parameters():
            parameter.mul_(factor)

    return spoil


RINGS = ForeignProgram(
    data=rings,
    classes=2,
    network=lambda: perceptron((2, 32, 32, 1)),
    loss=F.binary_cross_entropy_with_logits,
    labels=_column,
    optimizer=adam(0.01),
    epochs=12,
    batch_size=32,
)
RINGS_SHARES = replace(
    RINGS, network=lambda: perceptron((2, 32, 32, 1), last=nn.Sigmoid()), loss=F.binary_cross_entropy
)
WORDS = ForeignProgram(
    data=words, classes=2, network=lambda: Recurrent(2, vocabulary=30), optimizer=adam(0.01), epochs=10, batch_size=32
)
WAVES = ForeignProgram(
    data=waves, classes=0, network=lambda: Recurrent(1), loss=F.mse_loss, optimizer=adam(0.01), epochs=10, batch_size=32
)
DROPOUT = replace(MLP_ADAM, network=lambda: perceptron((20, 64, 64, 5), dropout=0.5), epochs=10)
TRANSFORMER = replace(CNN, network=Patches, optimizer=adam(0.003), epochs=15)

MORE_HEALTHY: dict[str, ForeignProgram] = {
    "rings, logistic, labels of floats": RINGS,
    "rings, shares": RINGS_SHARES,
    "rings, shares, no classes told": replace(RINGS_SHARES, classes=0),
    "rings, hinge": replace(
        RINGS, loss=lambda o, y: (1 - o * y).clamp(min=0).mean(), labels=lambda y: (2.0 * y - 1)[:, None]
    ),
    "one-hot labels, squared shares": replace(
        MLP_ADAM, network=lambda: perceptron((20, 64, 5), last=nn.Softmax(1)), loss=F.mse_loss, labels=_rows, epochs=10
    ),
    "one-hot labels, logistic": replace(MLP_ADAM, loss=F.binary_cross_entropy_with_logits, labels=_rows),
    "label smoothing": replace(MLP_ADAM, loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "focal loss": replace(MLP_ADAM, loss=_focal),
    "five labels at once": replace(
        MLP_ADAM, data=signs, network=lambda: perceptron((10, 32, 5)), loss=F.binary_cross_entropy_with_logits
    ),
    "words, LSTM": WORDS,
    "words, mean of embeddings": replace(
        WORDS, network=lambda: nn.Sequential(nn.EmbeddingBag(30, 16), nn.Linear(16, 2)), optimizer=adam(0.02)
    ),
    "waves, LSTM": WAVES,
    "waves, GRU, Huber": replace(WAVES, network=lambda: Recurrent(1, kind=nn.GRU), loss=F.smooth_l1_loss),
    "segmentation": ForeignProgram(
        data=squares, classes=0, network=Segmenter, optimizer=adam(0.005), epochs=6, batch_size=16
    ),
    "regression, absolute": replace(REGRESSION, loss=F.l1_loss),
    "regression, large targets": replace(REGRESSION, labels=lambda y: 20 * y + 100, optimizer=adam(0.02), epochs=40),
    "dropout of one half": DROPOUT,
    "four points, XOR": replace(
        RINGS,
        data=exclusive,
        network=lambda: perceptron((2, 16, 1)),
        batch_size=1,
        epochs=60,
        optimizer=adam(0.02),
    ),
    "sums of losses": replace(MLP, loss=lambda o, y: F.cross_entropy(o, y, reduction="sum"), optimizer=sgd(0.001)),
    "one cycle": replace(
        MLP, schedule=lambda step: min((step + 1) / 50, max(0.01, (180 - step) / 130)), optimizer=sgd(0.2)
    ),
}

MORE_FAULTS: dict[str, Fault] = {
    "softmax over the batch": _fault(
        MLP_ADAM, "WrongHead", network=lambda: perceptron((20, 64, 5), last=nn.Softmax(0)), loss=_nll_of_shares
    ),
    "log softmax over the batch": _fault(
        MLP_ADAM, "WrongHead", network=lambda: perceptron((20, 64, 5), last=nn.LogSoftmax(0)), loss=F.nll_loss
    ),
    "logits into a loss of log-probabilities": _fault(MLP_ADAM, "WrongHead", loss=F.nll_loss),
    "probabilities into a loss of log-probabilities": _fault(
        MLP_ADAM, "WrongHead", network=lambda: perceptron((20, 64, 5), last=nn.Softmax(1)), loss=F.nll_loss
    ),
    "sigmoid before a logistic loss": _fault(
        RINGS, "WrongHead", network=lambda: perceptron((2, 32, 32, 1), last=nn.Sigmoid())
    ),
    "ReLU before a logistic loss": _fault(
        RINGS, "WrongHead", network=lambda: perceptron((2, 32, 32, 1), last=nn.ReLU())
    ),
    "ReLU at the end of a regression": _fault(
        REGRESSION, "WrongHead", network=lambda: perceptron((4, 48, 1), last=nn.ReLU())
    ),
    "sigmoid at the end of a regression": _fault(
        REGRESSION, "WrongHead", network=lambda: perceptron((4, 48, 1), last=nn.Sigmoid()), labels=lambda y: 5 * y + 20
    ),
    "(n, 1) against (n,), squared": _fault(REGRESSION, "LossForm", labels=lambda y: y[:, 0]),
    "(n, 1) against (n,), absolute": _fault(REGRESSION, "LossForm", labels=lambda y: y[:, 0], loss=F.l1_loss),
    "(n, 1) against (n,), Huber, LSTM": _fault(WAVES, "LossForm", labels=lambda y: y[:, 0], loss=F.smooth_l1_loss),
    "the squared loss is maximised": _fault(REGRESSION, "LossForm", loss=lambda o, y: -F.mse_loss(o, y)),
    "one output for five classes": _fault(
        MLP_ADAM, "WrongHead", "LabelsOutside", network=lambda: perceptron((20, 64, 1)), loss=F.mse_loss, labels=_column
    ),
    "labels from 1": _fault(MLP_ADAM, "LabelsOutside", network=lambda: perceptron((20, 64, 6)), labels=lambda y: y + 1),
    "labels -1 and 1 of floats": _fault(RINGS, "LabelsOutside", labels=lambda y: (2.0 * y - 1)[:, None]),
    "no activation, rings": _fault(RINGS, "NoActivation", network=lambda: _straight((2, 32, 32, 1))),
    "no activation": _fault(MLP, "NoActivation", network=lambda: _straight((20, 64, 64, 5))),
    "layers in a list": _fault(MLP, "LeftOutParameters", network=Unlisted),
    "body frozen untrained": _fault(
        CNN, "FrozenUntrained", network=lambda: convolutions(norm=False, width=24), spoil=_frozen_body
    ),
    "dropout in evaluation mode": _fault(DROPOUT, "NormMode", mode=nn.Module.eval),
    "decay of 5, convolutions": _fault(
        CNN,
        "Regulariser",
        "LossNotDecreasing",
        "WeightUpdateRatio",
        "ConstantOutput",
        optimizer=sgd(0.03, weight_decay=5.0),
    ),
    "no zero_grad, LSTM": _fault(WORDS, "StaleGradient", zero=False),
    "learning rate too high, LSTM": _fault(WORDS, *RATE_HIGH, optimizer=adam(1.0)),
    "learning rate too low, regression": _fault(REGRESSION, *RATE_LOW, optimizer=adam(1e-7)),
    "weights of zero, regression": _fault(REGRESSION, *INIT, spoil=_times(0)),
    "minus a ReLU at the end of a regression": _fault(
        REGRESSION, "WrongHead", network=lambda: perceptron((4, 48, 1), last=Negated())
    ),
    "dropout of 98 %, regression": _fault(
        REGRESSION, "HeavyDropout", network=lambda: perceptron((4, 48, 48, 1), dropout=0.98)
    ),
}

UNSEEN_FAULTS: dict[str, Fault] = {
    "sigmoid before a logistic loss, one-hot": _fault(
        MLP_ADAM,
        "WrongHead",
        network=lambda: perceptron((20, 64, 5), last=nn.Sigmoid()),
        loss=F.binary_cross_entropy_with_logits,
        labels=_rows,
    ),
    "tanh at the end of a regression": _fault(
        REGRESSION, "WrongHead", network=lambda: perceptron((4, 48, 1), last=nn.Tanh()), labels=lambda y: 6 * y
    ),
    "no activation, convolutions": _fault(
        CNN,
        "NoActivation",
        network=lambda: nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 4)),
    ),
    "pixels in another order in each batch": _fault(
        CNN, *LABEL, "NoBetterThanGuessing", network=lambda: nn.Sequential(MixedPixels(), convolutions(norm=False))
    ),
    "labels mixed up anew in each batch": _fault(
        MLP_ADAM, *LABEL, "NoBetterThanGuessing", loss=lambda o, y: F.cross_entropy(o, _mixed(y))
    ),
    "labels mixed up, few rings": _fault(
        RINGS,
        *LABEL,
        "NoBetterThanGuessing",
        data=lambda seed: rings(seed, 200),
        labels=lambda y: _column(_mixed(y)),
        epochs=60,
    ),
    "momentum of 0.9999": _fault(MLP, *RATE_HIGH, "OscillatingLoss", optimizer=sgd(0.05, momentum=0.9999)),
    "learning rate too high, transformer": _fault(TRANSFORMER, *RATE_HIGH, optimizer=adam(1.0)),
    "learning rate too high, regression": _fault(REGRESSION, *RATE_HIGH, optimizer=sgd(1.0)),
    "rate halved at each step": _fault(CNN, *RATE_LOW, schedule=lambda step: 0.5**step),
    "only biases in the optimiser": _fault(
        CNN_NORM,
        "LeftOutParameters",
        optimizer=lambda n: torch.optim.SGD([p for p in n.parameters() if p.ndim < 2], lr=0.05),
    ),
    "no zero_grad, transformer": _fault(TRANSFORMER, "StaleGradient", zero=False),
    "no backward pass, regression": _fault(
        REGRESSION, "LeftOutParameters", "UnchangedTensor", "AllZero", backward=False
    ),
    "dead from the start, regression": _fault(
        REGRESSION,
        "DeadRelu",
        *INIT,
        spoil=_negative_biases,
    ),
    "infinite numbers in the targets": _fault(
        REGRESSION, "ExplodingTensor", labels=lambda y: torch.where(torch.rand(y.shape) < 0.02, math.inf, y)
    ),
    "words of one kind only": _fault(
        WORDS,
        "CheckInputImages",
        "ConstantOutput",
        *LABEL,
        "NoBetterThanGuessing",
        inputs=lambda x: torch.full_like(x, 3),
    ),
    "weights a hundred times too large, convolutions": _fault(CNN, *INIT, *RATE_HIGH, spoil=_times(100)),
}
