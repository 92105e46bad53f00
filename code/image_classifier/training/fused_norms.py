"""What ends a layer in training, in few passes over memory: batch norm [+ shortcut] [+ ReLU] of bf16 activations on a
GPU, forward and backward, by the kernels of `norm_kernels.cu`.

torch computes them one after the other, and each reads from memory what the last one wrote. `norm_trial.py` decides
whether a training uses ours. What they do not serve is computed as without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_classifier.training.cuda_kernels import CudaKernels, Launch, Run
from image_classifier.vision.resnet import end_layer, has_hooks

SOURCE = Path(__file__).with_name("norm_kernels.cu")
WAYS = ("plain", "relu", "add_relu")  # what follows the norm: nothing, a ReLU, a shortcut and a ReLU
KERNELS = (
    "norm_statistics",
    "norm_finish_statistics",
    "norm_finish_gradients",
    *(f"norm_{step}_{way}" for step in ("apply", "reduce", "gradient") for way in WAYS),
)
# As in the kernels' source: 8 channels a load of 16 bytes, 256 threads a block, at most 32 of them side by side; and
# blocks of 1024 threads that finish 32 channels.
VECTOR, THREADS, LANES, FINISHED, FINISHING = 8, 256, 32, 32, 1024
MIN_CHANNELS, MAX_CHANNELS = 64, 2048
SUMMING, WRITING = 2, 3  # blocks that a multiprocessor holds at once, of kernels that sum and of those that write
ROWS_EACH = 4  # at least, of a thread: fewer, and most of the time goes into partial sums


def kernels_for(device: torch.device) -> CudaKernels:
    """The kernels, compiled for this GPU. Raises as `CudaKernels`."""
    return CudaKernels(SOURCE, KERNELS, device)


def grid(rows: int, channels: int, blocks: int) -> tuple[int, int]:
    """Blocks along rows and along channels.

    Args:
        blocks: what the GPU holds at once.
    """
    lanes = min(channels // VECTOR, LANES)
    across = channels // (VECTOR * lanes)
    tall = THREADS // lanes  # rows that a block sees at a time
    return max(1, min(blocks // across, rows // (ROWS_EACH * tall))), across


def forward_launches(
    way: str,
    x: Tensor,
    shortcut: Tensor | None,
    norm: nn.BatchNorm2d,
    *,
    y: Tensor,
    mask: Tensor | None,
    stats: Tensor,
    partials: Tensor,
    processors: int,
) -> list[Launch]:
    """What computes y, a norm's statistics and what it keeps of them.

    Args:
        way: one of WAYS.
        x, shortcut, y: (N, C, H, W) bf16, channels_last; a shortcut for "add_relu" alone.
        mask: uint8, one for 8 values of y: filled with what the ReLU lets pass, for "add_relu" alone.
        stats: (4, C) float32, filled: mean, 1 / deviation, and scale and shift of the whole norm.
        partials: float32, as large as `partials_size` says.
        processors: the GPU's multiprocessors.
    """
    rows, channels = _rows_and_channels(x)
    across_rows, across = grid(rows, channels, SUMMING * processors)
    kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    assert norm.momentum is not None
    finish = (partials, across_rows, x, norm.weight, norm.bias, *kept, stats, float(norm.momentum), float(norm.eps))
    return [
        Launch("norm_statistics", (across_rows, across), THREADS, (x, partials, rows, channels)),
        Launch("norm_finish_statistics", (channels // FINISHED, 1), FINISHING, (*finish, rows, channels)),
        Launch(
            f"norm_apply_{way}",
            grid(rows, channels, WRITING * processors),
            THREADS,
            (x, shortcut, stats, y, mask, rows, channels),
        ),
    ]


def backward_launches(
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
    coefficients: Tensor,
    partials: Tensor,
    processors: int,
) -> list[Launch]:
    """What computes the gradients of x, weight, bias and shortcut. Arguments are named as in `forward_launches`.

    Args:
        dy, dx, dshortcut: (N, C, H, W) bf16, channels_last.
        dweight, dbias: (C,) float32.
        coefficients: (3, C) float32, filled: dx = c0 * (dy behind the ReLU) + c1 * x + c2.
    """
    rows, channels = _rows_and_channels(x)
    across_rows, across = grid(rows, channels, SUMMING * processors)
    finish = (partials, across_rows, stats, weight, dweight, dbias, coefficients, rows, channels)
    return [
        Launch(f"norm_reduce_{way}", (across_rows, across), THREADS, (dy, x, mask, stats, partials, rows, channels)),
        Launch("norm_finish_gradients", (channels // FINISHED, 1), FINISHING, finish),
        Launch(
            f"norm_gradient_{way}",
            grid(rows, channels, WRITING * processors),
            THREADS,
            (dy, x, mask, stats, coefficients, dx, dshortcut, rows, channels),
        ),
    ]


def partials_size(x: Tensor, processors: int) -> int:
    """Numbers in the partial sums of a tensor: two for each block along its rows and each channel."""
    rows, channels = _rows_and_channels(x)
    return 2 * grid(rows, channels, SUMMING * processors)[0] * channels


class FusedNorms:
    """A `LayerEnd` that computes with our kernels what they serve, and else calls the modules.

    They serve a norm in training mode with all it usually has, of bf16 tensors on the device that lie in memory as
    channels_last, with a power of two of channels from MIN_CHANNELS to MAX_CHANNELS.

    Args:
        run: launches the kernels.
        device: the GPU.
        processors: its multiprocessors.
    """

    def __init__(self, run: Run, device: torch.device, processors: int) -> None:
        self.run, self.device, self.processors = run, device, processors

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedNorms:
        return self  # a copy of a network computes with the same kernels

    def __call__(
        self, norm: nn.BatchNorm2d, x: Tensor, *, relu: nn.ReLU | None = None, shortcut: Tensor | None = None
    ) -> Tensor:
        """As `end_layer`, of which it differs by the rounding to bf16 between the modules, which it leaves out."""
        if not self.serves(norm, x, relu=relu, shortcut=shortcut):
            return end_layer(norm, x, relu=relu, shortcut=shortcut)
        found: Tensor = _FusedNorm.apply(x, norm.weight, norm.bias, shortcut, norm, relu is not None, self)
        return found

    def serves(self, norm: nn.BatchNorm2d, x: Tensor, *, relu: nn.ReLU | None, shortcut: Tensor | None) -> bool:
        """Whether our kernels compute this."""
        if not norm.training or has_hooks(norm) or (relu is not None and has_hooks(relu)):
            return False
        if not self._takes(x) or not _is_usual(norm, x.device):
            return False
        if shortcut is None:
            return True
        return relu is not None and shortcut.shape == x.shape and self._takes(shortcut)

    def _takes(self, x: Tensor) -> bool:
        """Whether it is a tensor of the kind that the kernels read."""
        if x.ndim != 4 or x.dtype != torch.bfloat16 or x.device != self.device:
            return False
        channels = x.shape[1]
        if not MIN_CHANNELS <= channels <= MAX_CHANNELS or channels & (channels - 1) or x.numel() <= channels:
            return False
        return _lies_right(x)


def _rows_and_channels(x: Tensor) -> tuple[int, int]:
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


class _FusedNorm(torch.autograd.Function):
    """(N, C, H, W) bf16, channels_last -> the same. The arguments behind the norm's own tensors have no gradient."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd hands them on by place
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        norm: nn.BatchNorm2d,
        relu: bool,
        by: FusedNorms,
    ) -> Tensor:
        way = "plain" if not relu else "relu" if shortcut is None else "add_relu"
        y = torch.empty_like(x, memory_format=torch.channels_last)
        mask = None if shortcut is None else x.new_empty(x.numel() // VECTOR, dtype=torch.uint8)
        stats = x.new_empty(4, x.shape[1], dtype=torch.float32)
        partials = x.new_empty(partials_size(x, by.processors), dtype=torch.float32)
        by.run(
            forward_launches(
                way, x, shortcut, norm, y=y, mask=mask, stats=stats, partials=partials, processors=by.processors
            )
        )
        ctx.save_for_backward(x, weight, stats, mask)
        ctx.way, ctx.by = way, by
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats, mask = ctx.saved_tensors
        by: FusedNorms = ctx.by
        dy = dy.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        if not _lies_right(dy):
            dy = dy.clone(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dshortcut = None if mask is None else torch.empty_like(dx)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        by.run(
            backward_launches(
                ctx.way,
                dy,
                x,
                mask=mask,
                stats=stats,
                weight=weight,
                dx=dx,
                dshortcut=dshortcut,
                dweight=dweight,
                dbias=dbias,
                coefficients=torch.empty_like(stats[:3]),
                partials=stats.new_empty(partials_size(x, by.processors)),
                processors=by.processors,
            )
        )
        needed: Sequence[bool] = ctx.needs_input_grad
        found = (dx, dweight, dbias, dshortcut)
        return *(value if need else None for value, need in zip(found, needed, strict=False)), None, None, None
