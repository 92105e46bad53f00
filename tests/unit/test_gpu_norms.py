"""A GPU's kernels for what ends a layer, and how they are launched."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernel_stand_in import PROCESSORS, KernelStandIn, rows
from torch import nn

from image_classifier.training.cuda_kernels import compiled
from image_classifier.training.fused_norms import POOLED, WAYS, FusedNorms, pooled_shape
from image_classifier.training.gpu_norms import FINISHED, FINISHING, KERNELS, SOURCE, THREADS, GpuNorms, grid


def ends_of(way: str) -> dict[str, Any]:
    """What follows the norm, but for a shortcut."""
    return {
        "relu": None if way == "plain" else nn.ReLU(),
        "pool": nn.MaxPool2d(3, 2, 1) if way == POOLED else None,
    }


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="there is no cuda.bindings to compile with")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_the_source_for_a_gpu(architecture: str) -> None:
    code = compiled(SOURCE, architecture)
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in KERNELS)


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="there is no cuda.bindings to compile with")
def test_an_error_in_the_source_is_told_in_a_line(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("nonsense;\n")
    with pytest.raises(RuntimeError, match=r"^wrong\.cu is not compiled for sm_90: wrong\.cu\(1\): error: .*$"):
        compiled(source, "sm_90")


@pytest.mark.parametrize("way", [*WAYS, POOLED])
def test_three_launches_are_a_pass(kernels: KernelStandIn, way: str) -> None:
    kernels.launched.clear()
    x = rows(2, 64, 4, 4).requires_grad_()
    shortcut = rows(2, 64, 4, 4, seed=1) if way == "add_relu" else None
    fused = FusedNorms(GpuNorms(kernels, PROCESSORS), torch.device("cpu"))
    y = fused(nn.BatchNorm2d(64), x, **ends_of(way), shortcut=shortcut)
    assert kernels.launched == ["norm_statistics", "norm_finish_statistics", f"norm_apply_{way}"]
    torch.autograd.grad(y, x, rows(*y.shape, seed=2))
    assert kernels.launched[3:] == [f"norm_reduce_{way}", "norm_finish_gradients", f"norm_gradient_{way}"]


@pytest.mark.parametrize("way", [*WAYS, POOLED])
def test_the_same_comes_out_every_time_and_in_whatever_order_threads_run(kernels: KernelStandIn, way: str) -> None:
    """A thread that read what another has not yet written would get something else in one of the orders."""
    fused = FusedNorms(GpuNorms(kernels, PROCESSORS), torch.device("cpu"))
    x = rows(3, 256, 9, 9).requires_grad_()
    dy = rows(*(pooled_shape(x) if way == POOLED else x.shape), seed=1)
    shortcut = rows(3, 256, 9, 9, seed=2).requires_grad_() if way == "add_relu" else None
    found = []
    try:
        for backwards in (False, False, True):
            kernels.run_backwards(backwards)
            norm = nn.BatchNorm2d(256)
            y = fused(norm, x, **ends_of(way), shortcut=shortcut)
            sources = [each for each in (x, norm.weight, norm.bias, shortcut) if each is not None]
            found.append([y, *torch.autograd.grad(y, sources, dy), *norm.buffers()])
    finally:
        kernels.run_backwards(False)
    for first, *others in zip(*found, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("processors", [1, 3, 108, 132, 148])
def test_blocks_fit_the_gpu_and_the_work(processors: int) -> None:
    sizes = itertools.product((2, 49, 147, 6272, 401_408, 1_605_632, 2**31), (64, 128, 256, 512, 1024, 2048))
    for number, channels in sizes:
        along, across = grid(number, channels, 2 * processors)
        lanes = THREADS if channels // 8 > THREADS else min(32, channels // 8)
        assert across * lanes * 8 == channels
        assert 1 <= along <= max(1, number)
        assert along == 1 or along * across <= 2 * processors
        assert channels % FINISHED == 0
        assert across <= 65_535
    assert FINISHING == FINISHED * 32
