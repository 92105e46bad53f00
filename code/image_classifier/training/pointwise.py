"""Convolutions of 1 x 1 in bf16, as the matrix products that they are: two thirds of a ResNet50's.

Convolutions come to the same numbers but for rounding. On a CPU oneDNN's take longer for the gradients of weights, and
where the stride is 2; on a GPU cuDNN's take longer where it is 1. What else reads x, a block's shortcut, hands its
gradient here, and it is added in the same pass; autograd would read and write both once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from image_classifier.training.given import give_away, received
from image_classifier.vision.resnet import convolve, has_hooks

TALL, PARTS = 2**15, 8  # oneDNN takes longer for one product over so many rows than for so many parts of it


def by_products(convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """A `Convolve` that computes by matrix products what they serve, and else calls the module.

    They serve a convolution of 1 x 1 without padding, groups and bias, of bf16 that lies as channels_last, where
    autocast computes in bf16: on a CPU, and with a stride of 1 on a GPU.
    """
    if not serves(convolution, x):
        return convolve(convolution, x)
    weight = convolution.weight.to(torch.bfloat16)  # in autograd's sight: the weight's gradient is float32
    found: tuple[Tensor, Tensor] = _Product.apply(x, weight, convolution.stride)
    return found


def serves(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether `by_products` computes this by a matrix product."""
    device = x.device.type
    return (
        (device == "cpu" or (device == "cuda" and convolution.stride == (1, 1)))
        and x.dtype == torch.bfloat16
        and convolution.kernel_size == (1, 1)
        and convolution.padding == (0, 0)
        and is_plain(convolution, x)
    )


def is_plain(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether autocast computes it in bf16, of what lies as channels_last, without groups and bias, and nobody has
    changed or watches how."""
    device = x.device.type
    return (
        x.is_contiguous(memory_format=torch.channels_last)
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) == torch.bfloat16
        and type(convolution).forward is nn.Conv2d.forward
        and convolution.groups == 1
        and convolution.bias is None
        and not has_hooks(convolution)
    )


class _Product(torch.autograd.Function):
    """(N, C, H, W) and (K, C, 1, 1), bf16 -> (N, K, H / stride, W / stride), channels_last; and x, for what else reads
    it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int]) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        down, right = stride
        seen = x[:, :, ::down, ::right].contiguous(memory_format=torch.channels_last)
        n, _, height, width = seen.shape
        with torch.autocast(x.device.type, enabled=False):
            y = _rows(seen) @ weight.flatten(1).t()
        ctx.save_for_backward(seen if stride != (1, 1) else x, weight)
        ctx.stride, ctx.shape = stride, x.shape
        return y.view(n, height, width, -1).permute(0, 3, 1, 2), x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, more: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if dy is None:
            return more, None, None
        seen, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        with torch.autocast(dy.device.type, enabled=False):
            dy = _rows(dy)
            dweight = _gradient_of_weight(dy, _rows(seen)).view_as(weight) if needs_weight else None
            dx = _gradient_of_x(dy, weight.flatten(1), more, ctx.shape, ctx.stride) if needs_x else None
        if dx is not None:
            give_away(dx)  # made here, or received and written into
        return dx, dweight, None


def _gradient_of_weight(dy: Tensor, x: Tensor) -> Tensor:
    """(rows, K) and (rows, C) -> (K, C)."""
    rows = len(x)
    if x.device.type != "cpu" or rows < TALL or rows % PARTS:
        return dy.t() @ x
    parts = torch.bmm(dy.view(PARTS, -1, dy.shape[1]).transpose(1, 2), x.view(PARTS, -1, x.shape[1]))
    return parts.sum(0, dtype=torch.float32).to(x.dtype)


def _gradient_of_x(
    dy: Tensor, weight: Tensor, more: Tensor | None, shape: torch.Size, stride: tuple[int, int]
) -> Tensor:
    """(rows, K) and (K, C) -> `shape`; `more` is added, where there is some, and becomes the sum where it may."""
    if stride != (1, 1):
        found = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last).zero_()
        there = found[:, :, :: stride[0], :: stride[1]]
        there.copy_((dy @ weight).view(there.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2))
        return found if more is None else found + more
    if more is None:
        rows = dy @ weight
    else:
        rows = _rows(more)
        rows = torch.addmm(rows, dy, weight, out=rows if received(more) else torch.empty_like(rows))
    n, channels, height, width = shape
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N x H x W, C), without a copy of what lies as channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
