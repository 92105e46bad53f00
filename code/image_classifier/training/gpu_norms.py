"""What ends a layer in training, on a GPU: the launches of the kernels in `norm_kernels.cu`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from image_classifier.training.cuda_kernels import Launch, Run
from image_classifier.training.fused_norms import VECTOR, WAYS, rows_and_channels

SOURCE = Path(__file__).with_name("norm_kernels.cu")
KERNELS = (
    "norm_statistics",
    "norm_finish_statistics",
    "norm_finish_gradients",
    *(f"norm_{step}_{way}" for step in ("apply", "reduce", "gradient") for way in WAYS),
)
# As in the kernels' source, beside VECTOR: 256 threads a block, at most 32 of them side by side; and blocks of 1024
# threads that finish 32 channels.
THREADS, LANES, FINISHED, FINISHING = 256, 32, 32, 1024
SUMMING, WRITING = 2, 3  # blocks that a multiprocessor holds at once, of kernels that sum and of those that write
ROWS_EACH = 4  # at least, of a thread: fewer, and most of the time goes into partial sums


class GpuNorms:
    """`NormKernels` of a GPU.

    Args:
        run: launches the kernels.
        processors: the GPU's multiprocessors.
    """

    dtypes = (torch.bfloat16,)
    evaluates = False

    def __init__(self, run: Run, processors: int) -> None:
        self.run, self.processors = run, processors

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
        """As in `NormKernels`."""
        partials = stats.new_empty(partials_size(x, self.processors))
        self.run(
            forward_launches(
                way, x, shortcut, norm, y=y, mask=mask, stats=stats, partials=partials, processors=self.processors
            )
        )

    def evaluate(self, way: str, x: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, *, y: Tensor) -> None:
        """Not there: see `evaluates`."""
        raise NotImplementedError

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
        """As in `NormKernels`."""
        self.run(
            backward_launches(
                way,
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
                partials=stats.new_empty(partials_size(x, self.processors)),
                processors=self.processors,
            )
        )


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
    rows, channels = rows_and_channels(x)
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
    rows, channels = rows_and_channels(x)
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
    rows, channels = rows_and_channels(x)
    return 2 * grid(rows, channels, SUMMING * processors)[0] * channels
