"""How cuDNN chooses what computes a convolution: by its own guess, or by trying what it has on this GPU.

Trying takes seconds for a size of batch, since dozens of kernels are loaded and timed for each layer. What has been
computed once by a guess stays with it. So the usual batches of a long training are tried, from their first on; an
epoch's last, validation, tests and short trainings are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes

PAYS_AFTER = 5000  # steps with crops of one size: trying took as long as some 300 of an H200, and gained 0.1 % there


def pays(config: TrainConfig, epoch: int, num_steps: int) -> bool:
    """Whether the steps from `epoch` on whose crops are as large as that epoch's are worth a search.

    Args:
        num_steps: of an epoch.
    """
    sizes = training_sizes(config)[epoch - 1 :]
    return num_steps * sizes.count(sizes[0]) >= PAYS_AFTER


@contextmanager
def searching(on: bool) -> Iterator[None]:
    """Convolutions of a size that is new within the block are computed by the fastest kernel that cuDNN has."""
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
