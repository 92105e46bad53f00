"""The faults planted into `foreign_programs`: each a change to a healthy twin, with the rules that name its cause.

The kinds are those of published collections (TheDeepChecker, TOSEM 2022; AUTOTRAINER; DeepLocalize; UMLAUT; TrainCheck,
OSDI 2025), written here as changes to programs of our own: facts, not code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from benchmarks.foreign_programs import (
    BINARY,
    CNN,
    CNN_NORM,
    DEEP,
    MLP,
    MLP_ADAM,
    Data,
    ForeignProgram,
    adam,
    blobs,
    convolutions,
    gratings,
    perceptron,
    sgd,
)
from torch import nn


def _all(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[nn.Module], None]:
    """Applies to every filter and matrix."""

    def spoil(network: nn.Module) -> None:
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(change(parameter))

    return spoil


def _negative_biases(network: nn.Module) -> None:
    for module in list(network.modules())[:-1]:
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            module.bias.fill_(-8.0)


def _new_head(network: nn.Module) -> None:
    assert isinstance(network, nn.Sequential)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    network[-1] = nn.Linear(last.in_features, last.out_features)


def _of_a_copy(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda network: make(copy.deepcopy(network))


class Cut(nn.Module):
    """Lets no gradient through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()


def _with_cut() -> nn.Module:
    network = perceptron((20, 64, 64, 5))
    assert isinstance(network, nn.Sequential)
    return nn.Sequential(*network[:2], Cut(), *network[2:])


def _reset(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()


def _penalty(factor: float) -> Callable[[torch.Tensor, nn.Module], torch.Tensor]:
    return lambda loss, network: loss + factor * sum(each.square().sum() for each in network.parameters())


def _sorted(seed: int) -> Data:
    points, labels = blobs(seed)
    order = torch.cat([torch.arange(300), 300 + labels[300:].argsort()])
    return points[order], labels[order]


def _few(seed: int) -> Data:
    return blobs(seed, count=120)


def _imbalanced(seed: int) -> Data:
    points, labels = blobs(seed, count=1200)
    kept = (labels > 0) | (torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < 0.03)
    return points[kept], labels[kept]


def _bce_of_shares(shares: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    share = shares[:, 0].clamp(1e-6, 1 - 1e-6)
    truth = labels.float()
    return -(truth * share.log() + (1 - truth) * (1 - share).log()).mean()


def _mixed(labels: torch.Tensor) -> torch.Tensor:
    return labels[torch.randperm(len(labels))]


def _index_as_number(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(logits[:, 0], labels.float())


@dataclass(frozen=True)
class Fault:
    """A planted change.

    Args:
        base: the healthy twin.
        sick: the same with the change.
        causes: rules that name the cause: hyperparameter, layer or data.
    """

    base: ForeignProgram
    sick: ForeignProgram
    causes: tuple[str, ...]


def _fault(base: ForeignProgram, *causes: str, **changes: Any) -> Fault:
    return Fault(base, replace(base, **changes), causes)


RATE_LOW = ("LearningRate", "WeightUpdateRatio", "UnchangedTensor", "LossNotDecreasing")
RATE_HIGH = ("ExplodingTensor", "WeightUpdateRatio", "LossNotDecreasing", "DeadRelu")
INIT = ("PoorWeightInitialization", "AllZero", "VanishingGradient", "ConstantOutput")
INPUT = ("CheckInputImages", "ExplodingTensor")
LABEL = ("LossNotDecreasing", "Overfit", "LabelsOutside")

FAULTS: dict[str, Fault] = {
    "learning rate 0": _fault(MLP, *RATE_LOW, optimizer=sgd(0.0)),
    "learning rate far too low": _fault(MLP, *RATE_LOW, optimizer=sgd(1e-9)),
    "learning rate too low, Adam": _fault(CNN, *RATE_LOW, optimizer=adam(1e-8)),
    "learning rate far too high": _fault(MLP, *RATE_HIGH, optimizer=sgd(30.0)),
    "learning rate too high, Adam": _fault(MLP_ADAM, *RATE_HIGH, optimizer=adam(1.0)),
    "learning rate too high, convolutions": _fault(CNN, *RATE_HIGH, optimizer=sgd(20.0)),
    "momentum above 1": _fault(MLP, *RATE_HIGH, optimizer=sgd(0.05, momentum=1.2)),
    "no zero_grad, SGD": _fault(MLP, "StaleGradient", zero=False),
    "no zero_grad, Adam": _fault(CNN, "StaleGradient", zero=False),
    "no zero_grad, batch norm": _fault(CNN_NORM, "StaleGradient", zero=False),
    "softmax before cross entropy": _fault(
        MLP, "WrongHead", network=lambda: perceptron((20, 64, 64, 5), last=nn.Softmax(1))
    ),
    "softmax before cross entropy, convolutions": _fault(
        CNN, "WrongHead", network=lambda: convolutions(norm=False, last=nn.Softmax(1))
    ),
    "sigmoid before cross entropy": _fault(
        MLP, "WrongHead", network=lambda: perceptron((20, 64, 64, 5), last=nn.Sigmoid())
    ),
    "ReLU before cross entropy": _fault(MLP, "WrongHead", network=lambda: perceptron((20, 64, 64, 5), last=nn.ReLU())),
    "tanh before cross entropy": _fault(MLP, "WrongHead", network=lambda: perceptron((20, 64, 64, 5), last=nn.Tanh())),
    "softmax over one unit": _fault(
        BINARY,
        "WrongHead",
        "ConstantOutput",
        network=lambda: perceptron((10, 32, 1), last=nn.Softmax(1)),
        loss=_bce_of_shares,
    ),
    "labels -1 and 1 in a logistic loss": _fault(BINARY, "LabelsOutside", labels=lambda labels: 2 * labels - 1),
    "labels of five classes in a logistic loss": _fault(
        BINARY, "LabelsOutside", labels=lambda labels: torch.randint(5, labels.shape)
    ),
    "class index as a number to regress": _fault(
        MLP, "WrongHead", "LossNotDecreasing", "NoBetterThanGuessing", loss=_index_as_number
    ),
    "labels mixed up": _fault(MLP, *LABEL, labels=_mixed),
    "labels mixed up, convolutions": _fault(CNN_NORM, *LABEL, labels=_mixed),
    "pixels of 0 to 255": _fault(CNN, *INPUT, inputs=lambda x: 60 * x + 128),
    "numbers of a million": _fault(MLP, *INPUT, inputs=lambda x: 1e6 * x),
    "inputs all zero": _fault(MLP, "CheckInputImages", "ConstantOutput", inputs=torch.zeros_like),
    "a NaN in the inputs": _fault(
        MLP, "ExplodingTensor", "CheckInputImages", inputs=lambda x: x.masked_fill(torch.rand(x.shape) < 1e-3, math.nan)
    ),
    "weights of zero": _fault(MLP, *INIT, "UnchangedTensor", spoil=_all(torch.zeros_like)),
    "all weights equal": _fault(DEEP, *INIT, "UnchangedTensor", spoil=_all(lambda p: torch.full_like(p, 0.01))),
    "weights far too small": _fault(DEEP, *INIT, spoil=_all(lambda p: p * 0.01)),
    "weights far too large": _fault(DEEP, *INIT, "ExplodingTensor", "DeadRelu", spoil=_all(lambda p: p * 60)),
    "biases that kill every ReLU": _fault(MLP, "DeadRelu", *INIT, spoil=_negative_biases),
    "ten layers of sigmoids": _fault(
        DEEP, *INIT, "UnchangedTensor", network=lambda: perceptron((20, *[32] * 10, 5), nn.Sigmoid), optimizer=sgd(0.05)
    ),
    "saturated tanh": _fault(
        DEEP, *INIT, network=lambda: perceptron((20, *[32] * 6, 5), nn.Tanh), spoil=_all(lambda p: p * 80)
    ),
    "head changed after the optimiser was made": _fault(MLP, "LeftOutParameters", "UnchangedTensor", swap=_new_head),
    "optimiser of another copy": _fault(MLP, "LeftOutParameters", "UnchangedTensor", optimizer=_of_a_copy(sgd(0.05))),
    "detach in the middle": _fault(MLP, "LeftOutParameters", "AllZero", network=_with_cut),
    "no backward pass": _fault(MLP, "LeftOutParameters", "UnchangedTensor", "AllZero", backward=False),
    "no optimiser step": _fault(MLP, "LossNotDecreasing", "UnchangedTensor", update=False),
    "the loss is maximised": _fault(
        MLP, "LossNotDecreasing", "ExplodingTensor", "LabelsOutside", before_backward=lambda loss, network: -loss
    ),
    "batch norm in evaluation mode": _fault(CNN_NORM, "NormMode", mode=nn.Module.eval),
    "dropout of 99 %": _fault(MLP, "HeavyDropout", network=lambda: perceptron((20, 64, 64, 5), dropout=0.99)),
    "weight decay of 5": _fault(
        MLP, "LossNotDecreasing", "ConstantOutput", "WeightUpdateRatio", optimizer=sgd(0.05, weight_decay=5.0)
    ),
    "penalty larger than the loss": _fault(
        MLP, "Regulariser", "LossNotDecreasing", "ConstantOutput", before_backward=_penalty(3.0)
    ),
    "five steps": _fault(MLP, "ShortTraining", limit=5),
    "learning rate decays at once": _fault(MLP, *RATE_LOW, schedule=lambda step: 0.1**step),
    "warm-up longer than the training": _fault(MLP, *RATE_LOW, schedule=lambda step: 1e-5 * (step + 1)),
    "gradients clipped to nothing": _fault(MLP, *RATE_LOW, clip=1e-7),
    "weights made anew each epoch": _fault(MLP, "StartsAnew", each_epoch=_reset),
    "few images, mixed labels": _fault(MLP_ADAM, *LABEL, data=_few, labels=_mixed, epochs=60, optimizer=adam(0.01)),
    "a class with hardly an image": _fault(MLP, "ClassImbalance", data=_imbalanced),
    "data sorted by class": _fault(
        MLP, "LossNotDecreasing", "ClassImbalance", data=_sorted, shuffle=False, optimizer=sgd(0.2)
    ),
}
NAMES = list(FAULTS)
# of the half that is held out, those of which a run, or one of a kind like them, was looked at since
LOOKED_AT = ("softmax over one unit", "weights of zero", "dropout of 99 %")
# defaults may be chosen with the first half only
FROZEN_ON, HELD_OUT = NAMES[::2], [name for name in NAMES[1::2] if name not in LOOKED_AT]


# sixty examples, ten epochs: thirty steps
SHORT = replace(MLP, data=lambda seed: blobs(seed, count=60, spread=0.6), epochs=10, batch_size=16)
SHORT_NORM = replace(
    CNN_NORM,
    data=lambda seed: gratings(seed, count=60, classes=2),
    classes=2,
    network=lambda: convolutions(norm=True, classes=2),
    epochs=10,
    batch_size=16,
)
SHORT_FAULTS: dict[str, Fault] = {
    "short: learning rate 0": _fault(SHORT, *RATE_LOW, optimizer=sgd(0.0)),
    "short: learning rate far too low": _fault(SHORT, *RATE_LOW, optimizer=sgd(1e-7)),
    "short: learning rate far too high": _fault(SHORT, *RATE_HIGH, optimizer=sgd(100.0)),
    "short: no optimiser step": _fault(SHORT, "LossNotDecreasing", "UnchangedTensor", update=False),
    "short: no zero_grad": _fault(SHORT, "StaleGradient", zero=False),
    "short: softmax before cross entropy": _fault(
        SHORT, "WrongHead", network=lambda: perceptron((20, 64, 64, 5), last=nn.Softmax(1))
    ),
    "short: learning rate 0, convolutions": _fault(SHORT_NORM, *RATE_LOW, optimizer=sgd(0.0)),
    "short: a layer that is not trained": _fault(SHORT, "LeftOutParameters", "UnchangedTensor", swap=_new_head),
    "short: biases that kill every ReLU": _fault(SHORT, "DeadRelu", *INIT, spoil=_negative_biases),
}
