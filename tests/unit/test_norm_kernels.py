"""The kernels for what ends a layer compute what torch's operations do. There is no GPU here: the source of its kernels
is compiled as C++, and launched with the very grids and arguments that a GPU gets."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
from tests.counted_norms import CountedNorms
from tests.kernel_stand_in import rows
from torch import Tensor, nn

from image_classifier.training.fused_norms import WAYS, FusedNorms
from image_classifier.training.norm_library import LEVELS
from image_classifier.training.norm_trial import errors
from image_classifier.vision.resnet import end_layer

LAST = torch.channels_last
SHAPES = (
    (2, 64, 1, 1),  # as few rows as there can be: most threads have none
    (3, 64, 5, 7),  # fewer rows than a block sees at a time would take four of; and not whole tiles of a CPU's
    (9, 64, 31, 33),  # rows for all blocks, the last ones not for all threads
    (5, 128, 15, 15),
    (3, 256, 19, 23),
    (4, 2048, 7, 7),  # eight blocks along the channels
    (1, 2048, 1, 3),
)
pytestmark = pytest.mark.parametrize("norm_kernels", ["GPU", *LEVELS], indirect=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_answers_statistics_and_gradients_are_right_to_the_last_bit_of_bf16(
    fused: FusedNorms, norm_kernels: CountedNorms, way: str, shape: tuple[int, int, int, int]
) -> None:
    few = shape[0] * shape[2] * shape[3] <= 3  # their gradients all but vanish: torch's own are off by 2 in float32
    for dtype in norm_kernels.dtypes:
        found = errors(fused, way, shape, dtype)
        limit = 3 if few and dtype == torch.float32 else 1
        assert {name: error for name, error in found.items() if not error <= limit} == {}
        assert ("gradient of the shortcut" in found) == (way == "add_relu")


@pytest.mark.parametrize("way", WAYS)
def test_autograd_through_torchs_own_modules_comes_to_the_same(
    fused: FusedNorms, norm_kernels: CountedNorms, way: str
) -> None:
    """Not our formulas but torch's, in float64. A ReLU's edge is met by none of these numbers."""
    shape = (4, 64, 9, 11)
    relu = None if way == "plain" else nn.ReLU()
    for dtype in norm_kernels.dtypes:
        shortcut = rows(*shape, seed=1) if way == "add_relu" else None
        x, dy = rows(*shape, scale=2.0, mean=3.0), rows(*shape, seed=2)
        mine, theirs = nn.BatchNorm2d(64), nn.BatchNorm2d(64).double()
        for norm in (mine, theirs):
            with torch.no_grad():
                norm.weight.copy_(torch.linspace(-2, 2, 64))
                norm.bias.copy_(torch.linspace(1, -1, 64))
        results = []
        for end, norm, number in ((fused, mine, dtype), (end_layer, theirs, torch.float64)):
            given = [None if each is None else each.to(number).requires_grad_() for each in (x, shortcut)]
            y = end(norm, given[0], relu=relu, shortcut=given[1])
            sources = [each for each in (*given, norm.weight, norm.bias) if each is not None]
            results.append([y, *torch.autograd.grad(y, sources, dy.to(number)), *norm.buffers()])
        share = 2**-7 if dtype == torch.bfloat16 else 1e-5
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found.double(), expected.double(), rtol=share, atol=1e-4)
        assert mine.num_batches_tracked == 1
    assert norm_kernels.computed == [f"forward {way}", f"backward {way}"] * len(norm_kernels.dtypes)


@pytest.mark.parametrize("way", WAYS)
def test_a_mean_of_many_deviations_costs_no_digits(fused: FusedNorms, norm_kernels: CountedNorms, way: str) -> None:
    """Of float32 sums of x and of its square, none would be left of the variance: 1e-7 of the mean's square."""
    exact = torch.full((8, 64, 16, 16), 1000.0)
    exact[:, :, ::4] += 4 * torch.randint(0, 2, (8, 64, 4, 16), generator=torch.Generator().manual_seed(0))
    for dtype in norm_kernels.dtypes:
        x = exact.to(dtype).contiguous(memory_format=LAST)
        norm = nn.BatchNorm2d(64, eps=1e-5)
        shortcut = torch.zeros_like(x) if way == "add_relu" else None
        y = fused(norm, x, relu=None if way == "plain" else nn.ReLU(), shortcut=shortcut)
        expected = nn.functional.batch_norm(x.double(), None, None, training=True)
        expected = expected if way == "plain" else expected.relu()
        share = 2**-7 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(y.double(), expected, rtol=share, atol=1e-3)
        assert norm.running_var is not None
        variance = 0.9 + 0.1 * x.double().var((0, 2, 3))
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-6, atol=0.0)
    assert norm_kernels.computed == [f"forward {way}"] * len(norm_kernels.dtypes)


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
    norm_kernels: CountedNorms,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    shape: tuple[int, int, int, int],
    behind: bool,
) -> None:
    """A GPU would end the training there, or write into what is another's; a CPU may end it."""
    fenced, channels = Fenced(behind=behind), shape[1]
    for dtype in norm_kernels.dtypes:
        x, dy, y, dx = (fenced(rows(*shape, seed=seed, dtype=dtype)) for seed in range(4))
        shortcut, dshortcut = (fenced(rows(*shape, dtype=dtype)) if way == "add_relu" else None for _ in range(2))
        mask = fenced(torch.zeros(x.numel() // 8, dtype=torch.uint8)) if way == "add_relu" else None
        norm = nn.BatchNorm2d(channels)
        norm.weight, norm.bias = (nn.Parameter(fenced(each.detach())) for each in (norm.weight, norm.bias))
        norm.running_mean, norm.running_var = (fenced(each) for each in (norm.running_mean, norm.running_var))
        sizes = (4, channels), (channels,), (channels,)
        stats, dweight, dbias = (fenced(torch.full(size, torch.nan)) for size in sizes)
        filled = [stats, dweight, dbias]

        def made(*size: int) -> Tensor:
            filled.append(fenced(torch.full(size, torch.nan)))  # noqa: B023  # called within this round
            return filled[-1]  # noqa: B023

        with monkeypatch.context() as patched:  # partial sums and coefficients, too
            patched.setattr(Tensor, "new_empty", lambda _, *size: made(*size))
            patched.setattr(torch, "empty_like", lambda other: made(*other.shape))
            norm_kernels.forward(way, x, shortcut, norm, y=y, mask=mask, stats=stats)
            found = {"dx": dx, "dshortcut": dshortcut, "dweight": dweight, "dbias": dbias}
            norm_kernels.backward(way, dy, x, mask=mask, stats=stats, weight=norm.weight, **found)
        assert len(filled) == 6
        assert all(each.isfinite().all() for each in (*filled, y, dx))


def test_halves_are_rounded_to_the_even_one(norm_kernels: CountedNorms) -> None:
    """As torch rounds: always up would be a drift. All numbers here are exact but for that."""
    x = torch.linspace(1, 2, 129)[:128].repeat(64, 1).T.reshape(1, 128, 1, 64).permute(0, 3, 1, 2)
    x = torch.cat([x, -x]).bfloat16().contiguous(memory_format=LAST)
    variance = x[:, 0].double().square().mean()
    norm, y, stats = nn.BatchNorm2d(64, eps=float(4 - variance)), torch.empty_like(x), torch.empty(4, 64)
    shift = torch.tensor([2**-8, -(2**-8), 2**-9, 3 * 2**-9]).repeat(16)  # half a step and less, and more
    with torch.no_grad():
        norm.weight.fill_(2.0)  # behind a division by 2
        norm.bias.copy_(shift)
    norm_kernels.forward("plain", x, None, norm, y=y, mask=None, stats=stats)
    assert torch.equal(stats[2:], torch.stack([torch.ones(64), shift]))
    assert torch.equal(y, (x.float() + shift[:, None, None]).bfloat16())


def test_what_is_no_number_stays_none(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    """A training that diverges must be seen to."""
    for dtype in norm_kernels.dtypes:
        for bad in (float("nan"), float("inf")):
            x = rows(2, 64, 4, 4, dtype=dtype)
            x[1, 5, 2, 3] = bad
            x.requires_grad_()
            y = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU())
            expected = nn.functional.batch_norm(x.detach().float(), None, None, training=True).relu()
            assert torch.equal(y.isnan(), expected.isnan())
            assert y[:, 5].isnan().all()
            (dx,) = torch.autograd.grad(y.sum(), x)
            assert dx[:, 5].isnan().all()
            assert dx[:, 6].isfinite().all()


def test_rounding_makes_no_number_of_what_is_none(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    """Added to the last of its bits, half a step would carry into the sign."""
    for dtype in norm_kernels.dtypes:
        norm = nn.BatchNorm2d(64)
        with torch.no_grad():
            norm.bias[5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
        y = fused(norm, rows(2, 64, 4, 4, dtype=dtype), relu=nn.ReLU())
        assert y[:, 5].isnan().all()
        assert not y[:, 6:].isnan().any()


def test_a_shortcut_that_is_no_number_is_seen_and_stays_alone(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    for dtype in norm_kernels.dtypes:
        x, shortcut = (rows(2, 64, 4, 4, seed=seed, dtype=dtype) for seed in (0, 1))
        shortcut[1, 5, 2, 3], shortcut[0, 6, 1, 1] = float("nan"), float("inf")
        y = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU(), shortcut=shortcut)
        assert y.isnan().nonzero().tolist() == [[1, 5, 2, 3]]
        assert y.isinf().nonzero().tolist() == [[0, 6, 1, 1]]
