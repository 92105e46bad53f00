"""What several files of unit tests are given."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel_stand_in import KernelStandIn

    from image_classifier.training.fused_norms import FusedNorms


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelStandIn:
    """The kernels of batch norms, compiled for the CPU."""
    from tests.kernel_stand_in import KernelStandIn

    from image_classifier.training.fused_norms import KERNELS, SOURCE

    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the kernels with")
    return KernelStandIn(SOURCE, KERNELS, tmp_path_factory.mktemp("kernels"), compiler)


@pytest.fixture
def fused(kernels: KernelStandIn) -> FusedNorms:
    """Layers' ends that they compute; `kernels.launched` is empty."""
    import torch
    from tests.kernel_stand_in import PROCESSORS

    from image_classifier.training.fused_norms import FusedNorms

    kernels.launched.clear()
    return FusedNorms(kernels, torch.device("cpu"), PROCESSORS)
