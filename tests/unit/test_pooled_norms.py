"""Where a network's first layer ends, our kernels also pool: they compute what torch's operations do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.counted_norms import CountedNorms
from tests.kernel_stand_in import rows
from tests.unit.test_norm_kernels import Fenced
from torch import Tensor, nn

from image_classifier.training.fused_norms import NOWHERE, POOLED, FusedNorms, pooled_shape
from image_classifier.training.norm_library import LEVELS
from image_classifier.training.norm_trial import errors
from image_classifier.vision.resnet import end_layer

LAST = torch.channels_last
SHAPES = (
    (2, 64, 1, 1),  # a window that sees one pixel
    (1, 64, 1, 3),
    (1, 64, 2, 2),
    (3, 64, 6, 5),  # one side even, the other odd
    (3, 64, 5, 6),
    (2, 256, 9, 9),
    (9, 64, 31, 33),  # windows for all blocks, the last ones not for all threads
    (4, 2048, 7, 4),  # eight blocks along the channels
)
pytestmark = pytest.mark.parametrize("norm_kernels", ["GPU", *LEVELS], indirect=True)


def pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def ordered(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of which a channel has none twice, in any order; both signs."""
    n, channels, height, width = shape
    count = n * height * width
    generator = torch.Generator().manual_seed(seed)
    each = torch.stack([torch.randperm(count, generator=generator) for _ in range(channels)])
    values = each.view(channels, n, height, width).transpose(0, 1).float() - count // 2
    return values.bfloat16().contiguous(memory_format=LAST)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_statistics_and_gradients_are_right_to_the_last_bit_of_bf16(
    fused: FusedNorms, norm_kernels: CountedNorms, shape: tuple[int, int, int, int]
) -> None:
    few = shape[0] * shape[2] * shape[3] <= 4  # their gradients all but vanish: torch's own are off by 2 in float32
    for dtype in norm_kernels.dtypes:
        limit = 3 if few and dtype == torch.float32 else 1
        found = errors(fused, POOLED, shape, dtype)
        assert {name: error for name, error in found.items() if not error <= limit} == {}
    assert norm_kernels.computed == [f"forward {POOLED}", f"backward {POOLED}"] * len(norm_kernels.dtypes)


@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (3, 64, 9, 7), (2, 128, 6, 5)], ids=str)
def test_autograd_through_torchs_own_modules_comes_to_the_same(
    fused: FusedNorms, norm_kernels: CountedNorms, shape: tuple[int, int, int, int]
) -> None:
    """Not our formulas but torch's, in float64. No window has its largest number twice, and no number is 0."""
    x, channels = ordered(*shape), shape[1]
    dy = rows(*pooled_shape(x), seed=2)
    mine, theirs = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels).double()
    for norm in (mine, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-2, 2, channels))
            norm.bias.copy_(torch.linspace(1, -0.7, channels))
    results = []
    for end, norm, number in ((fused, mine, torch.bfloat16), (end_layer, theirs, torch.float64)):
        given = x.to(number).requires_grad_()
        y = end(norm, given, relu=nn.ReLU(), pool=pool())
        results.append([y, *torch.autograd.grad(y, [given, norm.weight, norm.bias], dy.to(number)), *norm.buffers()])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected.double(), rtol=2**-7, atol=1e-4)
    assert norm_kernels.computed == [f"forward {POOLED}", f"backward {POOLED}"]


def test_of_equal_numbers_the_first_has_the_gradient_as_torch_has_it(fused: FusedNorms) -> None:
    """What a window's gradient is given to shows in the gradient of the norm's weight, which is 0 here."""
    x, dy = rows(2, 64, 8, 7), rows(2, 64, 4, 4, seed=1)
    found = []
    for end, number in ((fused, torch.bfloat16), (end_layer, torch.float64)):
        norm = nn.BatchNorm2d(64) if number == torch.bfloat16 else nn.BatchNorm2d(64).double()
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
        y = end(norm, x.to(number), relu=nn.ReLU(), pool=pool())
        assert bool((y == 1).all())
        found.append(torch.autograd.grad(y, [norm.weight, norm.bias], dy.to(number)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-4)


def test_where_the_relu_lets_nothing_pass_no_pixel_has_a_gradient(norm_kernels: CountedNorms) -> None:
    norm, x = nn.BatchNorm2d(64), rows(2, 64, 5, 6)
    nn.init.constant_(norm.bias, -100.0)
    y = torch.full(pooled_shape(x), torch.nan).bfloat16().contiguous(memory_format=LAST)
    mask, stats = torch.zeros(y.numel(), dtype=torch.uint8), torch.empty(4, 64)
    norm_kernels.forward(POOLED, x, None, norm, y=y, mask=mask, stats=stats)
    assert bool((y == 0).all())
    assert bool((mask == NOWHERE).all())
    filled = {"dx": torch.full_like(x, torch.nan), "dweight": torch.empty(64), "dbias": torch.empty(64)}
    given = {"mask": mask, "stats": stats, "weight": norm.weight, "dshortcut": None}
    norm_kernels.backward(POOLED, torch.ones_like(y), x, **given, **filled)
    assert all(bool((each == 0).all()) for each in filled.values())


def test_what_is_no_number_stays_none(fused: FusedNorms) -> None:
    x = rows(2, 64, 5, 4)
    x[1, 5, 2, 3] = torch.nan
    norm = nn.BatchNorm2d(64)
    with torch.no_grad():
        norm.bias[7] = torch.nan
    x.requires_grad_()
    y = fused(norm, x, relu=nn.ReLU(), pool=pool())
    (dx,) = torch.autograd.grad(y.sum(), x)
    for values in (y, dx):
        assert bool(values[:, 5].isnan().all())
        assert bool(values[:, 6].isfinite().all())
    assert bool(y[:, 7].isnan().all())


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_beside_the_tensors_is_read_or_written(
    norm_kernels: CountedNorms, shape: tuple[int, int, int, int], behind: bool
) -> None:
    fenced, channels = Fenced(behind=behind), shape[1]
    for dtype in norm_kernels.dtypes:
        x, dx = (fenced(rows(*shape, seed=seed, dtype=dtype)) for seed in range(2))
        small = pooled_shape(x)
        dy, y = (fenced(rows(*small, seed=seed, dtype=dtype)) for seed in range(2))
        mask = fenced(torch.zeros(y.numel(), dtype=torch.uint8))
        norm, sizes = nn.BatchNorm2d(channels), ((4, channels), (channels,), (channels,))
        stats, dweight, dbias = (fenced(torch.full(size, torch.nan)) for size in sizes)
        norm_kernels.forward(POOLED, x, None, norm, y=y, mask=mask, stats=stats)
        filled = {"dx": dx, "dshortcut": None, "dweight": dweight, "dbias": dbias}
        norm_kernels.backward(POOLED, dy, x, mask=mask, stats=stats, weight=norm.weight, **filled)
        assert all(each.isfinite().all() for each in (y, dx, stats, dweight, dbias))


def other_pool(**settings: object) -> nn.MaxPool2d:
    return nn.MaxPool2d(**{"kernel_size": 3, "stride": 2, "padding": 1} | settings)


class Watched(nn.MaxPool2d):
    """A pooling of somebody else's."""


def with_hook() -> nn.MaxPool2d:
    made = pool()
    made.register_forward_hook(lambda *_: None)
    return made


OTHERS = {
    "stride": lambda: other_pool(stride=1),
    "window": lambda: other_pool(kernel_size=2, padding=0),
    "padding": lambda: other_pool(padding=0),
    "dilation": lambda: other_pool(dilation=2, padding=1),
    "ceil_mode": lambda: other_pool(ceil_mode=True),
    "another class": lambda: Watched(3, 2, 1),
    "a hook": with_hook,
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_pooling_is_left_to_torch(fused: FusedNorms, norm_kernels: CountedNorms, what: str) -> None:
    make: Callable[[], nn.MaxPool2d] = OTHERS[what]
    x = rows(2, 64, 7, 8)
    found = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU(), pool=make())
    assert norm_kernels.computed == ["forward relu"]
    assert torch.equal(found, make()(fused(nn.BatchNorm2d(64), x, relu=nn.ReLU())))


@pytest.mark.parametrize("end", ["a shortcut", "no ReLU", "evaluation"])
def test_other_ends_are_pooled_by_torch(fused: FusedNorms, norm_kernels: CountedNorms, end: str) -> None:
    norm, x = nn.BatchNorm2d(64), rows(2, 64, 7, 8)
    relu = None if end == "no ReLU" else nn.ReLU()
    shortcut = rows(2, 64, 7, 8, seed=1) if end == "a shortcut" else None
    if end == "evaluation":
        norm.eval()
    found = fused(norm, x, relu=relu, shortcut=shortcut, pool=pool())
    assert not [each for each in norm_kernels.computed if POOLED in each]
    expected = end_layer(copy.deepcopy(norm), x, relu=relu, shortcut=shortcut, pool=pool())
    torch.testing.assert_close(found.double(), expected.double(), rtol=2**-6, atol=1e-2)
