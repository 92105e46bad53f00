"""The kernels for what ends a layer compute what torch's operations do. There is no GPU here: their source is compiled
as C++, and launched with the very grids and arguments that a GPU gets."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import mmap
from pathlib import Path

import pytest
import torch
from tests.kernel_stand_in import PROCESSORS, KernelStandIn, rows
from torch import Tensor, nn

from image_classifier.training.cuda_kernels import compiled
from image_classifier.training.fused_norms import (
    FINISHED,
    FINISHING,
    KERNELS,
    SOURCE,
    THREADS,
    WAYS,
    FusedNorms,
    backward_launches,
    forward_launches,
    grid,
    partials_size,
)
from image_classifier.training.norm_trial import errors
from image_classifier.vision.resnet import end_layer

LAST = torch.channels_last
SHAPES = (
    (2, 64, 1, 1),  # as few rows as there can be: most threads have none
    (3, 64, 5, 7),  # fewer rows than a block sees at a time would take four of
    (9, 64, 31, 33),  # rows for all blocks, the last ones not for all threads
    (5, 128, 15, 15),
    (3, 256, 19, 23),
    (4, 2048, 7, 7),  # eight blocks along the channels
    (1, 2048, 1, 3),
)


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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_answers_statistics_and_gradients_are_right_to_the_last_bit_of_bf16(
    fused: FusedNorms, way: str, shape: tuple[int, int, int, int]
) -> None:
    found = errors(fused, way, shape)
    assert {name: error for name, error in found.items() if not error <= 1} == {}
    assert ("gradient of the shortcut" in found) == (way == "add_relu")


@pytest.mark.parametrize("way", WAYS)
def test_autograd_through_torchs_own_modules_comes_to_the_same(fused: FusedNorms, way: str) -> None:
    """Not our formulas but torch's, in float64. A ReLU's edge is met by none of these numbers."""
    shape = (4, 64, 9, 11)
    relu = None if way == "plain" else nn.ReLU()
    shortcut = rows(*shape, seed=1) if way == "add_relu" else None
    x, dy = rows(*shape, scale=2.0, mean=3.0), rows(*shape, seed=2)
    mine, theirs = nn.BatchNorm2d(64), nn.BatchNorm2d(64).double()
    for norm in (mine, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-2, 2, 64))
            norm.bias.copy_(torch.linspace(1, -1, 64))
    results = []
    for end, norm, dtype in ((fused, mine, torch.bfloat16), (end_layer, theirs, torch.float64)):
        given = [None if each is None else each.to(dtype).requires_grad_() for each in (x, shortcut)]
        y = end(norm, given[0], relu=relu, shortcut=given[1])
        sources = [each for each in (*given, norm.weight, norm.bias) if each is not None]
        results.append([y, *torch.autograd.grad(y, sources, dy.to(dtype)), *norm.buffers()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=2**-7, atol=1e-4)
    assert mine.num_batches_tracked == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_mean_of_many_deviations_costs_no_digits(fused: FusedNorms, way: str) -> None:
    """Of float32 sums of x and of its square, none would be left of the variance: 1e-7 of the mean's square."""
    x = torch.full((8, 64, 16, 16), 1000.0)
    x[:, :, ::4] += 4 * torch.randint(0, 2, (8, 64, 4, 16), generator=torch.Generator().manual_seed(0))
    x = x.bfloat16().contiguous(memory_format=LAST)
    norm = nn.BatchNorm2d(64, eps=1e-5)
    shortcut = torch.zeros_like(x) if way == "add_relu" else None
    y = fused(norm, x, relu=None if way == "plain" else nn.ReLU(), shortcut=shortcut)
    expected = nn.functional.batch_norm(x.double(), None, None, training=True)
    expected = expected if way == "plain" else expected.relu()
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=1e-3)
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * x.double().var((0, 2, 3)), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_comes_out_every_time_and_in_whatever_order_threads_run(
    fused: FusedNorms, kernels: KernelStandIn, way: str
) -> None:
    """A thread that read what another has not yet written would get something else in one of the orders."""
    x, dy = rows(3, 256, 9, 9).requires_grad_(), rows(3, 256, 9, 9, seed=1)
    shortcut = rows(3, 256, 9, 9, seed=2).requires_grad_() if way == "add_relu" else None
    relu = None if way == "plain" else nn.ReLU()
    found = []
    try:
        for backwards in (False, False, True):
            kernels.run_backwards(backwards)
            norm = nn.BatchNorm2d(256)
            y = fused(norm, x, relu=relu, shortcut=shortcut)
            sources = [each for each in (x, norm.weight, norm.bias, shortcut) if each is not None]
            found.append([y, *torch.autograd.grad(y, sources, dy), *norm.buffers()])
    finally:
        kernels.run_backwards(False)
    for first, *others in zip(*found, strict=True):
        assert all(torch.equal(first, other) for other in others)


class Fenced:
    """Tensors right before or right behind a page of memory that nobody may touch: the process ends where one does."""

    def __init__(self, *, behind: bool) -> None:
        self._behind = behind
        self._maps: list[tuple[mmap.mmap, int]] = []
        self._protect = ctypes.CDLL(None).mprotect
        self._protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def __call__(self, values: Tensor) -> Tensor:
        inside = values.permute(0, 2, 3, 1).contiguous() if values.ndim == 4 else values
        size = inside.numel() * inside.element_size()
        pages = -(-size // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        fence = whole.data_ptr() + (pages * mmap.PAGESIZE if self._behind else 0)
        assert self._protect(fence, mmap.PAGESIZE, 0) == 0
        self._maps.append((memory, fence))
        start = pages * mmap.PAGESIZE - size if self._behind else mmap.PAGESIZE
        placed = whole[start : start + size].view(inside.dtype).view(inside.shape)
        placed.copy_(inside)
        return placed.permute(0, 3, 1, 2) if values.ndim == 4 else placed


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_beside_the_tensors_is_read_or_written(
    kernels: KernelStandIn, way: str, shape: tuple[int, int, int, int], behind: bool
) -> None:
    """A GPU would end the training there, or write into what is another's."""
    fenced, channels = Fenced(behind=behind), shape[1]
    x, dy, y, dx = (fenced(rows(*shape, seed=seed)) for seed in range(4))
    shortcut, dshortcut = (fenced(rows(*shape)) if way == "add_relu" else None for _ in range(2))
    mask = fenced(torch.zeros(x.numel() // 8, dtype=torch.uint8)) if way == "add_relu" else None
    norm = nn.BatchNorm2d(channels)
    norm.weight, norm.bias = (nn.Parameter(fenced(each.detach())) for each in (norm.weight, norm.bias))
    norm.running_mean, norm.running_var = (fenced(each) for each in (norm.running_mean, norm.running_var))
    sizes = (4, channels), (partials_size(x, PROCESSORS),), (channels,), (channels,), (3, channels)
    stats, partials, dweight, dbias, coefficients = (fenced(torch.full(size, torch.nan)) for size in sizes)
    kernels(
        forward_launches(way, x, shortcut, norm, y=y, mask=mask, stats=stats, partials=partials, processors=PROCESSORS)
    )
    kernels(
        backward_launches(
            way,
            dy,
            x,
            mask=mask,
            stats=stats,
            weight=norm.weight,
            dx=dx,
            dshortcut=dshortcut,
            dweight=dweight,
            dbias=dbias,
            coefficients=coefficients,
            partials=partials,
            processors=PROCESSORS,
        )
    )
    assert all(each.isfinite().all() for each in (stats, partials, dweight, dbias, coefficients))


def test_halves_are_rounded_to_the_even_one(kernels: KernelStandIn) -> None:
    """As torch rounds: always up would be a drift."""
    x = torch.linspace(1, 2, 129)[:128].repeat(64, 1).T.reshape(1, 128, 1, 64).permute(0, 3, 1, 2)
    x = torch.cat([x, -x]).bfloat16().contiguous(memory_format=LAST)
    norm, y, partials = nn.BatchNorm2d(64), torch.empty_like(x), torch.empty(partials_size(x, PROCESSORS))
    stats = torch.zeros(4, 64)
    stats[2] = 1.0  # scale
    stats[3] = torch.tensor([2**-8, -(2**-8), 2**-9, 3 * 2**-9]).repeat(16)  # shift: half a step and less, and more
    launches = forward_launches(
        "plain", x, None, norm, y=y, mask=None, stats=stats, partials=partials, processors=PROCESSORS
    )
    kernels(launches[-1:])
    expected = (x.float() + stats[3][:, None, None]).bfloat16()
    assert torch.equal(y, expected)


def test_what_is_no_number_stays_none(fused: FusedNorms) -> None:
    """A training that diverges must be seen to."""
    for bad in (float("nan"), float("inf")):
        x = rows(2, 64, 4, 4)
        x[1, 5, 2, 3] = bad
        x.requires_grad_()
        y = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU())
        expected = nn.functional.batch_norm(x.detach().float(), None, None, training=True).relu()
        assert torch.equal(y.isnan(), expected.isnan())
        assert y[:, 5].isnan().all()
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx[:, 5].isnan().all()
        assert dx[:, 6].isfinite().all()


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
