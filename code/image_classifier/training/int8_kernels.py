"""The network in int8 as a processor's own instructions compute it, in place of a simulation with rounded floats.

Activations are 8 bits of 256 levels a tensor, weights 255 levels for each output channel, sums whole numbers: what
`number_formats.Int8` and `to_int8` describe, and a server's engine does. oneDNN's convolutions round where a sum lies
between two levels in their own way, so that some values are a level off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from image_classifier.training.frozen_body import geometry, input_shapes, pooled
from image_classifier.vision import network

CHECKED = 4  # photographs on which the kernels are held against the simulation
SAME_COST = (0.75, 1.25)
"""How far photographs' features may be from float32's, over how far the simulation's are: 0.99 to 1.00 measured from
32 to 224 pixels, and 1.03 to 1.11 for OpenVINO's int8. A processor that cannot hold the sums (AVX2 without VNNI) is off
by more. No two ways round alike: one value a level off moves those behind it, until the network's end a quarter (at 224
pixels) to four fifths (at 32) of what int8 costs; OpenVINO and the simulation are a half to all of it apart."""
_LEVELS, _MIDDLE = 255, 128  # of an activation without a sign; where zero lies of one with a sign
_KERNELS = ("qconv_prepack", "qconv2d_pointwise")


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A convolution ready to be computed.

    Args:
        weight, scales: packed int8, and what its levels of each output channel are worth.
        zeros: of the weights: they are symmetric.
        geometry: stride, padding, dilation and groups.
        enters: what an input level is worth, and which level is zero.
    """

    weight: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor
    geometry: tuple[list[int], list[int], list[int], int]
    enters: tuple[float, int]


class Int8Kernels:
    """(n, 3, H, W) float32, normalised -> (n, FEATURES) float32, on the CPU. Safe to call from several threads.

    Args:
        weights, biases: convolution -> float32, the batch norms folded in.
        ranges: activation -> the largest absolute value that it keeps.
        shape: (n, 3, H, W) of most batches.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], ranges: Mapping[str, float], shape: list[int]
    ) -> None:
        signed = network.activations()
        self._levels = {
            name: (most / _MIDDLE, _MIDDLE) if signed[name] else (most / _LEVELS, 0) for name, most in ranges.items()
        }
        shapes = input_shapes(shape)
        entering = {network.STEM.name: network.STEM.name}
        for block in network.blocks():
            entering |= {each.name: each.name for each in block.path}
            if block.shortcut is not None:  # it sees what the first convolution beside it sees
                entering[block.shortcut.name] = block.path[0].name
        self._layers = {
            layer.name: _packed(
                layer, weights[layer.name], biases[layer.name], self._levels[entering[layer.name]], shapes[layer.name]
            )
            for layer in network.convolutions()
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        blocks = network.blocks()
        names = [block.path[0].name for block in blocks]
        x = self._rounded(images.contiguous(memory_format=torch.channels_last), network.STEM.name)
        x = self._convolution(x, network.STEM, to=names[0], relu=True)
        x = pooled(x)  # levels have the order of what they stand for
        for block, enters, leaves in zip(blocks, names, [*names[1:], None], strict=True):
            first, second, third = block.path
            shortcut, levels = x, self._levels[enters]
            if block.shortcut is not None:
                name = network.shortcut_output(block.shortcut)
                shortcut, levels = self._convolution(x, block.shortcut, to=name), self._levels[name]
            y = self._convolution(x, first, to=second.name, relu=True)
            y = self._convolution(y, second, to=third.name, relu=True)
            if leaves is None:
                step, zero = levels
                y = self._convolution(y, third).add_(shortcut.float().sub_(zero), alpha=step).relu_()
                return y.mean((2, 3))
            x = self._added(y, third, shortcut, levels, to=leaves)
        raise AssertionError("a network without blocks")

    def _rounded(self, x: Tensor, name: str) -> Tensor:
        """float32 -> uint8 levels of an activation."""
        step, zero = self._levels[name]
        return (x * (1 / step)).round_().add_(zero).clamp_(0, _LEVELS).to(torch.uint8)

    def _convolution(self, x: Tensor, layer: network.Convolution, *, to: str = "", relu: bool = False) -> Tensor:
        """uint8 levels -> those of the activation `to`; float32 without one."""
        it, (step, zero) = self._layers[layer.name], self._levels.get(to, (1.0, 0))
        kernel: Any = torch.ops.onednn.qconv2d_pointwise.default
        after: Any = (step, zero, torch.uint8 if to else torch.float32, "relu" if relu else "none", [], "")
        return kernel(x, *it.enters, it.weight, it.scales, it.zeros, it.bias, *it.geometry, *after)  # type: ignore[no-any-return]

    def _added(
        self, x: Tensor, layer: network.Convolution, shortcut: Tensor, levels: tuple[float, int], *, to: str
    ) -> Tensor:
        """A block's end, as levels of what the next one sees. `shortcut` is written over."""
        it = self._layers[layer.name]
        kernel: Any = torch.ops.onednn.qconv2d_pointwise.binary
        after: Any = (*self._levels[to], torch.uint8, *levels, "sum", 1.0, "relu", [], "")
        return kernel(  # type: ignore[no-any-return]
            x, *it.enters, it.weight, it.scales, it.zeros, shortcut, it.bias, *it.geometry, *after
        )


def _packed(
    layer: network.Convolution, weight: Tensor, bias: Tensor, enters: tuple[float, int], shape: list[int]
) -> _Layer:
    scales = weight.abs().flatten(1).amax(1).clamp(min=1e-9) / 127  # as `number_formats.to_int8`
    levels = (weight / scales[:, None, None, None]).round().clamp(-127, 127).to(torch.int8)
    pack: Any = torch.ops.onednn.qconv_prepack
    padding, stride, dilation, groups = geometry(layer)
    return _Layer(
        weight=pack(levels, scales, *enters, stride, padding, dilation, groups, shape),
        scales=scales,
        zeros=torch.zeros_like(scales, dtype=torch.int32),
        bias=bias,
        geometry=(stride, padding, dilation, groups),
        enters=enters,
    )


def has_int8_kernels() -> bool:
    """Whether this processor adds products of 8 bits without overflow, and this torch makes use of it."""
    flags = torch.cpu.get_capabilities()
    able = any(flags.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return able and all(hasattr(torch.ops.onednn, name) for name in _KERNELS)


def is_as_good(found: Tensor, simulated: Tensor, exact: Tensor) -> bool:
    """Whether features are off as far as the simulation's are and no further from those; not where they are no numbers.

    Args:
        exact: in float32.
    """
    cost, apart = float((simulated - exact).norm()), float((simulated - found).norm())
    least, most = SAME_COST
    return apart <= cost and least * cost <= float((found - exact).norm()) <= most * cost
