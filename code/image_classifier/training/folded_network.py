"""The network as a server's graph has it, in torch: batch norms folded, and what enters a layer rounded on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import Tensor

from image_classifier.vision import network

Round = Callable[[str, Tensor], Tensor]
"""(name of an activation, values) -> values as the format can hold them."""


def as_it_is(_: str, x: Tensor) -> Tensor:
    """Float32."""
    return x


class Half:
    """Numbers as a 16-bit engine holds them. Sums are float32 there as well."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, _: str, x: Tensor) -> Tensor:
        return x.to(self._dtype).float()

    def weight(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype).float()


class Int8:
    """Activations as an 8-bit engine holds them: 256 levels a tensor, from 0 on where there is no sign."""

    def __init__(self, ranges: Mapping[str, float]) -> None:
        self._ranges = ranges
        self._signed = network.activations()

    def __call__(self, name: str, x: Tensor) -> Tensor:
        most = self._ranges[name]
        if self._signed[name]:
            return torch.fake_quantize_per_tensor_affine(x, most / 128, 0, -128, 127)
        return torch.fake_quantize_per_tensor_affine(x, most / 255, 0, 0, 255)


def to_int8(weight: Tensor) -> Tensor:
    """Weights as an 8-bit engine holds them: 255 levels for each output channel, symmetric."""
    scale = weight.abs().flatten(1).amax(1).clamp(min=1e-9) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


class Folded:
    """The network with its batch norms folded into the convolutions, as the server's graph has it.

    Args:
        state: the model's state dict.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.weights: dict[str, Tensor] = {network.HEAD: state[f"{network.HEAD}.weight"].float()}
        self.biases: dict[str, Tensor] = {network.HEAD: state[f"{network.HEAD}.bias"].float()}
        for layer in network.convolutions():
            scale, shift = network.folded(*(state[f"{layer.norm}.{part}"].double() for part in network.NORM_PARTS))
            weight = state[f"{layer.name}.weight"].float() * scale.float()[:, None, None, None]
            self.weights[layer.name] = weight.contiguous(memory_format=torch.channels_last)
            self.biases[layer.name] = shift.float()

    def rounded(self, to: Callable[[Tensor], Tensor]) -> Folded:
        """The same network with other weights."""
        other = object.__new__(Folded)
        other.weights, other.biases = {name: to(weight) for name, weight in self.weights.items()}, self.biases
        return other

    def corrected(self, corrections: Mapping[str, Sequence[float]]) -> Folded:
        """The same network with so much added to its biases; layers that are not named keep theirs."""
        other = object.__new__(Folded)
        other.weights = self.weights
        other.biases = self.biases | {
            name: self.biases[name] + torch.tensor(more, device=self.biases[name].device)
            for name, more in corrections.items()
        }
        return other

    def logits(self, images: Tensor, rounded: Round) -> Tensor:
        """(n, 3, H, W) float32, normalised -> (n, num_classes). What enters a layer goes through `rounded`."""
        features = rounded(network.HEAD, self.features(images, rounded))
        return F.linear(features, self.weights[network.HEAD], self.biases[network.HEAD])

    def features(self, images: Tensor, rounded: Round) -> Tensor:
        """The same up to the head: (n, FEATURES), not rounded."""
        stem = network.STEM
        x = F.relu(self._convolution(rounded(stem.name, images), stem))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for block in network.blocks():
            x = self._block(x, block, rounded)
        return x.mean((2, 3))

    def _block(self, x: Tensor, block: network.Block, rounded: Round) -> Tensor:
        first, second, third = block.path
        x = rounded(first.name, x)
        shortcut = x
        if block.shortcut is not None:
            rounded(block.shortcut.name, x)  # the same tensor, looked at by its second name
            shortcut = rounded(network.shortcut_output(block.shortcut), self._convolution(x, block.shortcut))
        y = F.relu(self._convolution(x, first))
        y = F.relu(self._convolution(rounded(second.name, y), second))
        return F.relu(self._convolution(rounded(third.name, y), third) + shortcut)

    def _convolution(self, x: Tensor, layer: network.Convolution) -> Tensor:
        return F.conv2d(x, self.weights[layer.name], self.biases[layer.name], layer.stride, layer.kernel // 2)
