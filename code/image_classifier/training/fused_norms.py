"""What ends a layer in training, in few passes over memory: batch norm [+ shortcut] [+ ReLU [+ max pooling]] of
activations that lie as channels_last, forward and backward, by kernels of our own: those of a GPU (`gpu_norms.py`) or
of a CPU (`cpu_norms.py`).

torch computes them one after the other, and each reads from memory what the last one wrote. `norm_trial.py` decides
whether a training uses ours. What they do not serve is computed as without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from image_classifier.training.given import give_away
from image_classifier.vision.resnet import end_layer, has_hooks

WAYS = ("plain", "relu", "add_relu")  # what follows the norm: nothing, a ReLU, a shortcut and a ReLU
POOLED = "relu_pool"  # a ReLU and the largest of each window of 3 x 3, every 2: where a network's first layer ends
NOWHERE = 255
VECTOR = 8  # values whose ReLU one byte of a mask tells of; and bf16 numbers in a load of 16 bytes
MIN_CHANNELS, MAX_CHANNELS = 64, 2048


class NormKernels(Protocol):
    """Computes a layer's end on one kind of device.

    x, shortcut, y and their gradients are (N, C, H, W), channels_last, all of one of its types; of POOLED, y and its
    gradient are (N, C, ceil(H / 2), ceil(W / 2)). What is given as y, mask, stats, dx, dshortcut, dweight and dbias is
    filled.
    """

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the activations that it reads."""

    @property
    def evaluates(self) -> bool:
        """Whether it has `evaluate`."""

    def forward(
        self,
        way: str,
        x: Tensor,
        shortcut: Tensor | None,
        norm: nn.BatchNorm2d,
        *,
        y: Tensor,
        mask: Tensor | None,
        stats: Tensor,
    ) -> None:
        """y and the norm's running statistics.

        Args:
            way: one of WAYS, or POOLED.
            shortcut: for "add_relu" alone.
            mask: uint8, for "add_relu" one for VECTOR values of y: what the ReLU lets pass; for POOLED one for each:
                which of the 9 values of its window it is, NOWHERE if the ReLU let none pass.
            stats: (4, C) float32: mean, 1 / deviation, and scale and shift of the whole norm.
        """

    def evaluate(self, way: str, x: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, *, y: Tensor) -> None:
        """y by the norm's running statistics, where nothing is to have a gradient; not of POOLED."""

    def backward(
        self,
        way: str,
        dy: Tensor,
        x: Tensor,
        *,
        mask: Tensor | None,
        stats: Tensor,
        weight: Tensor,
        dx: Tensor,
        dshortcut: Tensor | None,
        dweight: Tensor,
        dbias: Tensor,
    ) -> None:
        """The gradients of x, shortcut, weight and bias, from what `forward` was given and has filled.

        Args:
            dweight, dbias: (C,) float32.
        """


class FusedNorms:
    """A `LayerEnd` that computes with our kernels what they serve, and else calls the modules.

    They serve a norm with all it usually has, of tensors of their types on the device that lie in memory as
    channels_last, with a power of two of channels from MIN_CHANNELS to MAX_CHANNELS; in evaluation mode only those of a
    CPU, and where nothing has a gradient.
    """

    def __init__(self, kernels: NormKernels, device: torch.device) -> None:
        self.kernels, self.device = kernels, device

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedNorms:
        return self  # a copy of a network computes with the same kernels

    def __call__(
        self,
        norm: nn.BatchNorm2d,
        x: Tensor,
        *,
        relu: nn.ReLU | None = None,
        shortcut: Tensor | None = None,
        pool: nn.MaxPool2d | None = None,
    ) -> Tensor:
        """As `end_layer`, of which it differs by the rounding between the modules, which it leaves out."""
        if pool is not None and not self.serves(norm, x, relu=relu, shortcut=shortcut, pool=pool):
            return pool(self(norm, x, relu=relu, shortcut=shortcut))  # type: ignore[no-any-return]
        if not self.serves(norm, x, relu=relu, shortcut=shortcut):
            return end_layer(norm, x, relu=relu, shortcut=shortcut)
        way = "plain" if relu is None else POOLED if pool is not None else "relu" if shortcut is None else "add_relu"
        if not norm.training:
            y = torch.empty_like(x, memory_format=torch.channels_last)
            self.kernels.evaluate(way, x, shortcut, norm, y=y)
            return y
        found: Tensor = _FusedNorm.apply(x, norm.weight, norm.bias, shortcut, norm, way, self)
        return found

    def serves(
        self,
        norm: nn.BatchNorm2d,
        x: Tensor,
        *,
        relu: nn.ReLU | None,
        shortcut: Tensor | None,
        pool: nn.MaxPool2d | None = None,
    ) -> bool:
        """Whether our kernels compute this."""
        if pool is not None and not (norm.training and relu is not None and shortcut is None and _is_usual_pool(pool)):
            return False
        if has_hooks(norm) or (relu is not None and has_hooks(relu)):
            return False
        if not norm.training and (not self.kernels.evaluates or _has_gradient(x, shortcut, norm.weight, norm.bias)):
            return False
        if not self._takes(x) or not _is_usual(norm, x.device):
            return False
        if shortcut is None:
            return True
        return relu is not None and (shortcut.shape, shortcut.dtype) == (x.shape, x.dtype) and self._takes(shortcut)

    def _takes(self, x: Tensor) -> bool:
        """Whether it is a tensor of the kind that the kernels read."""
        if x.ndim != 4 or x.dtype not in self.kernels.dtypes or x.device != self.device:
            return False
        channels = x.shape[1]
        if not MIN_CHANNELS <= channels <= MAX_CHANNELS or channels & (channels - 1) or x.numel() <= channels:
            return False
        return _lies_right(x)


def _has_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


def rows_and_channels(x: Tensor) -> tuple[int, int]:
    """N x H x W and C of (N, C, H, W)."""
    channels = x.shape[1]
    return x.numel() // channels, channels


def _lies_right(x: Tensor) -> bool:
    """Whether all loads of 16 bytes are whole, and a row behind the other."""
    return x.is_contiguous(memory_format=torch.channels_last) and x.data_ptr() % (2 * VECTOR) == 0


def _is_usual(norm: nn.BatchNorm2d, device: torch.device) -> bool:
    """Whether a norm has float32 weight and bias, and keeps running statistics by a momentum; all on the device."""
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    counter = norm.num_batches_tracked
    return (
        type(norm) is nn.BatchNorm2d
        and norm.momentum is not None
        and norm.track_running_stats
        and all(each is not None and each.dtype == torch.float32 and each.is_contiguous() for each in tensors)
        and counter is not None
        and counter.dtype == torch.int64
        and all(each is not None and each.device == device for each in (*tensors, counter))
    )


def _is_usual_pool(pool: nn.MaxPool2d) -> bool:
    """Whether it is the pooling of POOLED, and a module that nobody watches."""
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    return type(pool) is nn.MaxPool2d and settings == (3, 2, 1, 1, False, False) and not has_hooks(pool)


def pooled_shape(x: Tensor) -> tuple[int, int, int, int]:
    """Of POOLED."""
    n, channels, height, width = x.shape
    return n, channels, (height + 1) // 2, (width + 1) // 2


class _FusedNorm(torch.autograd.Function):
    """(N, C, H, W), channels_last -> the same, or the pooled one. The arguments behind the norm's own tensors have no
    gradient."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd hands them on by place
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        norm: nn.BatchNorm2d,
        way: str,
        by: FusedNorms,
    ) -> Tensor:
        if way == POOLED:
            y = torch.empty(pooled_shape(x), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        else:
            y = torch.empty_like(x, memory_format=torch.channels_last)
        remembered = {"add_relu": y.numel() // VECTOR, POOLED: y.numel()}.get(way)
        mask = None if remembered is None else x.new_empty(remembered, dtype=torch.uint8)
        stats = x.new_empty(4, x.shape[1], dtype=torch.float32)
        by.kernels.forward(way, x, shortcut, norm, y=y, mask=mask, stats=stats)
        ctx.save_for_backward(x, weight, stats, mask)
        ctx.way, ctx.by = way, by
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats, mask = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        if not _lies_right(dy):
            dy = dy.clone(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dshortcut = torch.empty_like(dx) if ctx.way == "add_relu" else None
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        if dshortcut is not None:
            give_away(dshortcut)
        made = {"dx": dx, "dshortcut": dshortcut, "dweight": dweight, "dbias": dbias}
        ctx.by.kernels.backward(ctx.way, dy, x, mask=mask, stats=stats, weight=weight, **made)
        needed: Sequence[bool] = ctx.needs_input_grad
        found = (dx, dweight, dbias, dshortcut)
        return *(value if need else None for value, need in zip(found, needed, strict=False)), None, None, None
