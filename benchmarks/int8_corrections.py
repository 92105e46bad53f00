"""What was tried for int8 and is not built in: ranges of the least error, and corrected biases (results/int8.md).

A range is the one with the least squared error: what is larger is cut off, and all else rounded more finely. A bias is
corrected by what rounding takes from the mean of a channel (Nagel et al. 2019, arXiv 1906.04721, section 4.2), here as
it is seen on photographs, layer after layer, each behind layers that are rounded and corrected already.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from torch import Tensor

from image_classifier.training.number_formats import Folded, Int8, to_int8
from image_classifier.vision import network

SHARES = tuple(0.2 * 5 ** (step / 15) for step in range(16))  # of the largest value, that are tried as the range
SAMPLES = 8192  # of a tensor's values, by which ranges are compared


def least_error(x: Tensor, signed: bool) -> Tensor:
    """(n, ...) float32 -> (n,): for each the range with which rounding it to 8 bits has the least squared error."""
    levels = 128 if signed else 255
    values = x.flatten(1).abs()
    most = values.amax(1)
    values = values[:, :: max(1, values.shape[1] // SAMPLES) | 1]  # an odd step does not meet the same column again
    errors = []
    for share in SHARES:
        step = (most * share / levels).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        errors.append(((values / step).round().clamp(max=levels) * step - values).square().mean(1))
    return most * torch.tensor(SHARES, device=x.device)[torch.stack(errors).argmin(0)]


class Correcting(Folded):
    """Two networks side by side: the first half of a batch goes through it in float32, the second, the same images, in
    int8, where every convolution's output gets back what it lost of its mean.

    Args:
        exact, in_int8: with their own weights.
        ranges: of the activations.

    `lost` has, by convolution and for the images that came last, (n, outputs): what the second half got back.
    """

    def __init__(self, exact: Folded, in_int8: Folded, ranges: Mapping[str, float]) -> None:
        self.weights, self.biases = exact.weights, exact.biases
        self._in_int8, self._round = in_int8, Int8(ranges)
        self.lost: dict[str, Tensor] = {}

    def rows(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, WIDTH): what is lost in all convolutions, features in float32, features in int8."""
        both = torch.cat([images, images]).contiguous(memory_format=torch.channels_last)
        exact, rounded = self.features(both, self._rounded).chunk(2)
        return torch.cat([*(self.lost[layer.name] for layer in network.convolutions()), exact, rounded], dim=1)

    def _rounded(self, name: str, x: Tensor) -> Tensor:
        exact, rounded = x.chunk(2)
        return torch.cat([exact, self._round(name, rounded)])

    def _convolution(self, x: Tensor, layer: network.Convolution) -> Tensor:
        exact, rounded = x.chunk(2)
        exact = super()._convolution(exact, layer)
        rounded = self._in_int8._convolution(rounded, layer)
        self.lost[layer.name] = (exact - rounded).mean((2, 3))
        return torch.cat([exact, rounded + self.lost[layer.name][:, :, None, None]])


PLACES = np.cumsum([0, *(layer.outputs for layer in network.convolutions()), network.FEATURES, network.FEATURES])
"""Where each part of a row of `Correcting.rows` begins, and the last one ends."""
WIDTH = int(PLACES[-1])


def corrections_of(rows: NDArray[np.float32], head: Tensor) -> dict[str, tuple[float, ...]]:
    """By layer, what is added to its biases in int8.

    Args:
        rows: (n, WIDTH), n photographs' rows of `Correcting`.
        head: (num_classes, FEATURES), its weights in float32.
    """
    *lost, exact, rounded = (rows[:, first:end].mean(0) for first, end in pairwise(PLACES))
    found = {layer.name: part for layer, part in zip(network.convolutions(), lost, strict=True)}
    of_head = F.linear(torch.from_numpy(exact), head) - F.linear(torch.from_numpy(rounded), to_int8(head))
    return {name: tuple(values.tolist()) for name, values in (found | {network.HEAD: of_head.numpy()}).items()}
