"""What ends a layer in training, on a GPU: the launches of the kernels in `norm_kernels.cu` and
`pooled_norm_kernels.cu`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from image_classifier.training.cuda_kernels import Launch, Run
from image_classifier.training.fused_norms import POOLED, VECTOR, WAYS, rows_and_channels

SOURCE = Path(__file__).with_name("pooled_norm_kernels.cu")  # includes norm_kernels.cu
KERNELS = (
    "norm_statistics",
    "norm_finish_statistics",
    "norm_finish_gradients",
    *(f"norm_{step}_{way}" for step in ("apply", "reduce", "gradient") for way in (*WAYS, POOLED)),
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
        rows, channels = rows_and_channels(x)
        along, across = self._summing(x)
        partials = stats.new_empty(2 * along * channels)  # two sums of each channel by each block along the rows
        kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        assert norm.momentum is not None
        finish = (partials, along, x, norm.weight, norm.bias, *kept, stats, float(norm.momentum), float(norm.eps))
        written = (x, stats, y, mask, *_picture(x)) if way == POOLED else (x, shortcut, stats, y, mask, rows, channels)
        self.run(
            [
                Launch("norm_statistics", (along, across), THREADS, (x, partials, rows, channels)),
                Launch("norm_finish_statistics", (channels // FINISHED, 1), FINISHING, (*finish, rows, channels)),
                Launch(f"norm_apply_{way}", self._writing(y), THREADS, written),
            ]
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
        rows, channels = rows_and_channels(x)
        along, across = self._summing(dy)
        partials, coefficients = stats.new_empty(2 * along * channels), torch.empty_like(stats[:3])
        finish = (partials, along, stats, weight, dweight, dbias, coefficients, rows, channels)
        size = _picture(x) if way == POOLED else (rows, channels)
        written = (dx,) if way == POOLED else (dx, dshortcut)
        self.run(
            [
                Launch(f"norm_reduce_{way}", (along, across), THREADS, (dy, x, mask, stats, partials, *size)),
                Launch("norm_finish_gradients", (channels // FINISHED, 1), FINISHING, finish),
                Launch(
                    f"norm_gradient_{way}",
                    self._writing(dy),
                    THREADS,
                    (dy, x, mask, stats, coefficients, *written, *size),
                ),
            ]
        )

    def _summing(self, seen: Tensor) -> tuple[int, int]:
        return grid(*rows_and_channels(seen), SUMMING * self.processors)

    def _writing(self, made: Tensor) -> tuple[int, int]:
        return grid(*rows_and_channels(made), WRITING * self.processors)


def _picture(x: Tensor) -> tuple[int, int, int, int]:
    """N, H, W and C."""
    n, channels, height, width = x.shape
    return n, height, width, channels


def grid(rows: int, channels: int, blocks: int) -> tuple[int, int]:
    """Blocks along rows and along channels.

    Args:
        blocks: what the GPU holds at once.
    """
    lanes = min(channels // VECTOR, LANES)
    across = channels // (VECTOR * lanes)
    tall = THREADS // lanes  # rows that a block sees at a time
    return max(1, min(blocks // across, rows // (ROWS_EACH * tall))), across
