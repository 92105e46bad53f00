"""What several files of unit tests are given."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.counted_norms import CountedNorms
    from tests.kernel_stand_in import KernelStandIn

    from image_classifier.training.fused_norms import FusedNorms


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelStandIn:
    """A GPU's kernels of batch norms, compiled for the CPU."""
    from tests.kernel_stand_in import KernelStandIn

    from image_classifier.training.gpu_norms import KERNELS, SOURCE

    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the kernels with")
    return KernelStandIn(SOURCE, KERNELS, tmp_path_factory.mktemp("kernels"), compiler)


@pytest.fixture(scope="session")
def cpu_libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """Level of a CPU -> the kernels of batch norms, compiled for it. Skips those that this CPU cannot run."""
    from image_classifier.training.cpu_norms import _opened
    from image_classifier.training.norm_library import LEVELS, compile_into, level

    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to compile the kernels with")
    folder, best, names = tmp_path_factory.mktemp("cpu_kernels"), level(), list(LEVELS)
    can_run = [] if best is None else names[names.index(best) :]

    @cache
    def library(name: str) -> ctypes.CDLL:
        if name not in can_run:
            pytest.skip(f"this CPU has no {name}")
        path = folder / f"{name}.so"
        compile_into(path, name)
        return _opened(path)

    return library


@pytest.fixture(scope="session")
def cpu_library(cpu_libraries: Callable[[str], ctypes.CDLL]) -> ctypes.CDLL:
    """Those of this CPU's best level."""
    from image_classifier.training.norm_library import level

    return cpu_libraries(level() or "avx2")


@pytest.fixture(params=["GPU", "CPU"])
def norm_kernels(request: pytest.FixtureRequest) -> CountedNorms:
    """A GPU's kernels, with its stand-in, and this CPU's; or those of the level that a test names."""
    from tests.counted_norms import CountedNorms
    from tests.kernel_stand_in import PROCESSORS

    from image_classifier.training.cpu_norms import CpuNorms
    from image_classifier.training.gpu_norms import GpuNorms

    if request.param == "GPU":
        return CountedNorms(GpuNorms(request.getfixturevalue("kernels"), PROCESSORS))
    if request.param == "CPU":
        return CountedNorms(CpuNorms(request.getfixturevalue("cpu_library")))
    return CountedNorms(CpuNorms(request.getfixturevalue("cpu_libraries")(request.param)))


@pytest.fixture
def fused(norm_kernels: CountedNorms) -> FusedNorms:
    """Layers' ends that they compute."""
    import torch

    from image_classifier.training.fused_norms import FusedNorms

    return FusedNorms(norm_kernels, torch.device("cpu"))
