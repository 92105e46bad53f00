"""Whether a layer's weights are still what an initialisation made of them: nobody trained those."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from image_classifier.debugging.optimizerstats import NORMS

FEWEST_WEIGHTS = 1000  # a layer of fewer cannot be told from a trained one
MOST_WEIGHTS = 100_000  # of a layer are looked at
SIGMAS = 4.0  # of the sampling error of deviation and kurtosis
EDGE = 0.98  # of the bound that the largest of a thousand uniform numbers surely reaches


@torch.no_grad()
def fresh_layers(network: nn.Module) -> dict[str, Any]:
    """Of the filters and matrices that do not train: how many were looked at, and the names of those that nobody has
    trained, by their distribution; none where a norm tells of a training."""
    frozen = {n: p for n, p in network.named_parameters() if not p.requires_grad and p.ndim > 1}
    large = {name: p for name, p in frozen.items() if p.numel() >= FEWEST_WEIGHTS}
    norms = [
        m for m in network.modules() if isinstance(m, NORMS) and m.weight is not None and not m.weight.requires_grad
    ]
    if any(map(_has_been_trained, norms)):
        return {"looked_at": len(large), "fresh": []}
    return {"looked_at": len(large), "fresh": [name for name, p in large.items() if is_fresh(p, normal=bool(norms))]}


def _has_been_trained(norm: nn.Module) -> bool:
    """Whether a norm's parameters and statistics differ from those that it is made with."""
    made_with = {"weight": (0.0, 1.0), "bias": (0.0,), "running_mean": (0.0,), "running_var": (1.0,)}
    for name, values in made_with.items():
        tensor = getattr(norm, name, None)
        if tensor is not None and not any(bool((tensor == value).all()) for value in values):
            return True
    return False


@torch.no_grad()
def is_fresh(weights: torch.Tensor, *, normal: bool = True) -> bool:
    """Whether weights (out, in, ...) have the distribution of an initialisation.

    Uniform within a bound (Kaiming's with a = sqrt(5), which nn.Linear and nn.Conv2d have; for ReLU; Xavier's), or
    normal with a deviation (Kaiming's for ReLU over fan in or fan out; Xavier's): the deviation to within SIGMAS of its
    sampling error, sqrt((kurtosis - 1) / 4n), the mean to within as many of its own, and the kurtosis, 1.8 or 3,
    likewise. A bound is sharp: the first steps of a training cross it. A normal distribution has none, and a short
    training leaves it nearly as it was; without `normal` it does not count.
    """
    values = weights.detach().flatten()
    values = values[:: max(1, values.numel() // MOST_WEIGHTS)].double()
    n, std = values.numel(), float(values.std())
    if std == 0 or not math.isfinite(std):
        return False
    field = weights[0, 0].numel()
    fan_in, fan_out = weights.shape[1] * field, weights.shape[0] * field
    centred = (values - values.mean()) / std
    kurtosis = float(centred.pow(4).mean())
    if abs(float(values.mean())) > SIGMAS * std / math.sqrt(n):
        return False
    largest = float(values.abs().max())
    bounds = (1 / math.sqrt(fan_in), math.sqrt(6 / (fan_in + fan_out)), math.sqrt(6 / fan_in))
    for bound in bounds:
        near = abs(std * math.sqrt(3) / bound - 1) < SIGMAS * math.sqrt(0.8 / 4 / n) + 1e-4
        if near and EDGE * bound < largest <= bound * (1 + 1e-6) and abs(kurtosis - 1.8) < 0.2:
            return True
    deviations = (math.sqrt(2 / fan_out), math.sqrt(2 / fan_in), math.sqrt(2 / (fan_in + fan_out)))
    gaussian = normal and abs(kurtosis - 3) < SIGMAS * math.sqrt(24 / n) + 0.01
    return gaussian and any(abs(std / each - 1) < SIGMAS * math.sqrt(2 / 4 / n) + 1e-4 for each in deviations)
