"""Convolutions larger than 1 x 1 on a CPU: right to the rounding of bf16, however the gradients of their weights are
computed, and the same whichever threads do it."""

from __future__ import annotations

import copy
import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from tests.kernel_stand_in import rows
from tests.unit.test_fused_norms import bits, distance, network
from torch import Tensor, nn

from image_classifier.training import pointwise, spatial
from image_classifier.training.spatial import FEW_ROWS, MOST_PARTS, CpuConvolutions, Layer, serves
from image_classifier.vision.resnet import Bottleneck

LAST = torch.channels_last
BF16 = 1.01 * 2**-8  # of a number: half of what the last of its 8 bits is worth, and float32's own errors
PARTS, PRODUCT, WHOLE = "_in_parts", "_by_product", "_gradient"
SPATIAL = 17  # of a ResNet50's 53 convolutions


class Case(NamedTuple):
    shape: tuple[int, int, int, int]  # of x
    outputs: int
    kernel: Any = 3
    stride: Any = 1
    padding: Any = 1
    way: str = PARTS  # how the weight's gradient is computed


CASES = {
    "stride 1": Case((4, 16, 9, 8), 16),
    "an odd number of images": Case((5, 16, 9, 8), 16),
    "stride 2, odd sides": Case((4, 16, 19, 17), 16, stride=2),
    "the stem's": Case((4, 3, 21, 21), 8, kernel=7, stride=2, padding=3),
    "3 x 1": Case((4, 16, 9, 8), 16, kernel=(3, 1), padding=(1, 0)),
    "one image": Case((1, 16, 20, 20), 16, way=WHOLE),
    "few pixels": Case((3, 32, 6, 5), 64, way=PRODUCT),
    "few pixels, stride 2": Case((3, 32, 6, 8), 64, stride=2, way=PRODUCT),
    "few pixels, stride 2, odd sides": Case((3, 32, 7, 5), 64, stride=2, way=PRODUCT),
    "few pixels, without padding": Case((3, 32, 7, 5), 64, kernel=5, padding=0, way=PRODUCT),
    "few pixels, all sides differ": Case((2, 32, 7, 9), 64, (3, 2), (2, 1), (0, 1), way=PRODUCT),
    "one pixel": Case((2, 32, 1, 1), 64, way=PRODUCT),
    "as few as may be": Case((4, 16, 8, 8), 16, way=PRODUCT),
}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Torch computes with two threads, however many there were before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_bf16() -> Iterator[None]:
    """What is computed is computed as in a training in bf16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.fixture
def ours(cpu_library: ctypes.CDLL) -> CpuConvolutions:
    """With the kernels for this machine's CPU."""
    return CpuConvolutions(cpu_library)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How gradients of weights are computed, in order, from here on."""
    called: list[str] = []
    for way in (PARTS, PRODUCT):
        computes = getattr(spatial, way)
        monkeypatch.setattr(
            spatial, way, lambda *args, way=way, computes=computes: called.append(way) or computes(*args)
        )
    return called


def made(case: Case) -> nn.Conv2d:
    torch.manual_seed(4)
    sizes = {"kernel_size": case.kernel, "stride": case.stride, "padding": case.padding}
    return nn.Conv2d(case.shape[1], case.outputs, bias=False, **sizes).to(memory_format=LAST)


def images(case: Case, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return rows(*case.shape, mean=0.5, dtype=dtype)


def rounded(found: Tensor, exact: Tensor, parts: float = 1.0) -> None:
    """Off by a rounding of itself, and by those of parts that are so much longer in sum."""
    allowed = BF16 * parts * exact.abs() + 1e-4 * exact.square().mean().sqrt()
    assert bool(((found.double() - exact).abs() <= allowed).all())


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_answers_and_gradients_are_right(ours: CpuConvolutions, ways: list[str], name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    convolution, x = made(case), images(case, dtype).requires_grad_()
    wide = x.detach().bfloat16().double().requires_grad_()
    weight = convolution.weight.detach().bfloat16().double().requires_grad_()
    exact = nn.functional.conv2d(wide, weight, stride=case.stride, padding=case.padding)
    assert serves(convolution, x)
    y, again = ours(convolution, x)
    assert again is x
    assert (y.dtype, y.shape) == (torch.bfloat16, exact.shape)
    assert y.is_contiguous(memory_format=LAST)
    rounded(y, exact)
    dy = rows(*exact.shape, seed=1)
    y.backward(dy)
    assert ways == ([] if case.way == WHOLE else [case.way])
    dx, dweight = torch.autograd.grad(exact, (wide, weight), dy.double())
    assert x.grad is not None
    assert x.grad.dtype == dtype
    rounded(x.grad, dx)
    found = convolution.weight.grad
    assert found is not None
    assert found.dtype == torch.float32
    assert found.stride() == convolution.weight.stride()
    assert float((found.double() - dweight).norm()) < 2**-8 * float(dweight.norm())


def test_the_cases_are_at_the_border_of_few_pixels() -> None:
    for name, times in (("as few as may be", 1.0), ("stride 1", 1.125)):
        shape, outputs, *_ = CASES[name]
        assert shape[0] * shape[2] * shape[3] == times * FEW_ROWS * outputs


class FewerThreads:
    """A library in which so many threads compute all parts."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._library, self._threads = library, threads
        self.undivided = library.undivided

    def in_parts(self, parts: int, _: int, compute: Any) -> None:
        self._library.in_parts(parts, self._threads, compute)


def gradient(library: Any, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    return spatial.gradient_of_weight(Layer(library, (1, 1), (1, 1)), dy, x, weight, torch.float32)


@pytest.mark.parametrize("parts", range(2, MOST_PARTS + 1))
def test_the_same_numbers_come_out_whichever_threads_compute_them(
    cpu_library: ctypes.CDLL, ways: list[str], parts: int
) -> None:
    torch.set_num_threads(parts)
    x, dy = rows(7, 16, 9, 8), rows(7, 16, 9, 8, seed=1)
    weight = made(Case((7, 16, 9, 8), 16)).weight.detach().bfloat16()
    expected = gradient(cpu_library, x, dy, weight)
    for threads in range(1, parts + 2):
        assert torch.equal(gradient(FewerThreads(cpu_library, threads), x, dy, weight), expected)
    assert ways == [PARTS] * (2 + parts)


@pytest.mark.parametrize("threads", [1, MOST_PARTS + 1])
def test_one_thread_and_many_compute_it_at_once(cpu_library: ctypes.CDLL, ways: list[str], threads: int) -> None:
    x, dy = rows(7, 16, 9, 8), rows(7, 16, 9, 8, seed=1)
    weight = made(Case((7, 16, 9, 8), 16)).weight.detach().bfloat16()
    expected = gradient(cpu_library, x, dy, weight)
    assert ways == [PARTS]
    torch.set_num_threads(threads)
    assert distance([gradient(cpu_library, x, dy, weight)], [expected]) < 2**-8
    assert ways == [PARTS]


def test_parts_are_computed_side_by_side_each_in_one_thread(cpu_library: ctypes.CDLL) -> None:
    """Both must have begun before one of them ends."""
    both = threading.Barrier(2, timeout=60)
    seen: list[tuple[int, int, int]] = []

    def compute(part: int) -> None:
        both.wait()
        torch.get_num_threads()
        cpu_library.undivided()
        seen.append((part, threading.get_native_id(), torch.get_num_threads()))

    for _ in range(2):
        cpu_library.in_parts(2, 2, spatial._Compute(compute))
        parts, threads, divided_by = zip(*sorted(seen), strict=True)
        assert parts == (0, 1)
        assert len(set(threads)) == 2
        assert divided_by == (1, 1)
        assert torch.get_num_threads() == 2  # behind them as before
        seen.clear()


class Unlucky(Exception):
    """Something that goes wrong in a part."""


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("unlucky", [0, 1])
def test_what_goes_wrong_in_a_part_is_raised(
    ours: CpuConvolutions, monkeypatch: pytest.MonkeyPatch, unlucky: int
) -> None:
    case = CASES["an odd number of images"]
    convolution, gradients = made(case), spatial._gradient

    def fails(layer: Layer, dy: Tensor, x: Tensor, weight: Tensor, *, of_x: bool) -> Any:
        if not of_x and len(x) == (2, 3)[unlucky]:
            raise Unlucky("no memory")
        return gradients(layer, dy, x, weight, of_x=of_x)

    monkeypatch.setattr(spatial, "_gradient", fails)
    y, _ = ours(convolution, images(case))
    with pytest.raises(Unlucky, match="no memory"):
        y.backward(rows(*y.shape))
    assert convolution.weight.grad is None


@pytest.mark.usefixtures("in_bf16")
def test_nothing_is_computed_that_nobody_needs(ours: CpuConvolutions, monkeypatch: pytest.MonkeyPatch) -> None:
    case, wanted = CASES["stride 1"], []
    gradients = spatial._gradient

    def counted(*args: Any, of_x: bool) -> Any:
        wanted.append(of_x)
        return gradients(*args, of_x=of_x)

    monkeypatch.setattr(spatial, "_gradient", counted)
    convolution, x = made(case), images(case)
    y, _ = ours(convolution, x)
    y.backward(rows(*y.shape))
    assert wanted == [False, False]  # two parts
    y, _ = ours(convolution, x.requires_grad_())
    dx, dweight = torch.autograd.grad(y, (x, convolution.weight), rows(*y.shape))
    assert sorted(wanted) == [False] * 4 + [True]
    assert (dx.shape, dweight.shape) == (x.shape, convolution.weight.shape)


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("stray", ["contiguous", "strided"])
def test_gradients_of_another_layout_are_taken(ours: CpuConvolutions, stray: str) -> None:
    case = CASES["an odd number of images"]
    convolution, x = made(case), images(case)
    y, _ = ours(convolution, x)
    dy = rows(*y.shape, seed=1)
    (expected,) = torch.autograd.grad(y, convolution.weight, dy)
    y, _ = ours(convolution, x)
    other = dy.contiguous() if stray == "contiguous" else torch.stack([dy, dy], -1)[..., 0]
    assert not other.is_contiguous(memory_format=LAST)
    (found,) = torch.autograd.grad(y, convolution.weight, other)
    assert torch.equal(found, expected)


def hooked(case: Case) -> nn.Conv2d:
    convolution = made(case)
    convolution.register_forward_hook(lambda *_: None)
    return convolution


def frozen(case: Case) -> nn.Conv2d:
    return made(case).requires_grad_(requires_grad=False)  # type: ignore[no-any-return]  # torch does not say


class Another(nn.Conv2d):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


BASE = CASES["stride 1"]
UNSERVED: dict[str, Callable[[], tuple[nn.Conv2d, Tensor]]] = {
    "1 x 1": lambda: (nn.Conv2d(16, 16, 1, bias=False).to(memory_format=LAST), images(BASE)),
    "a bias": lambda: (nn.Conv2d(16, 16, 3, padding=1).to(memory_format=LAST), images(BASE)),
    "groups": lambda: (nn.Conv2d(16, 16, 3, groups=4, bias=False).to(memory_format=LAST), images(BASE)),
    "dilation": lambda: (nn.Conv2d(16, 16, 3, dilation=2, bias=False).to(memory_format=LAST), images(BASE)),
    "padding by name": lambda: (nn.Conv2d(16, 16, 3, padding="same", bias=False), images(BASE)),
    "reflected padding": lambda: (nn.Conv2d(16, 16, 3, 1, 1, bias=False, padding_mode="reflect"), images(BASE)),
    "hooks": lambda: (hooked(BASE), images(BASE)),
    "a frozen weight": lambda: (frozen(BASE), images(BASE)),
    "another layout": lambda: (made(BASE), images(BASE).contiguous()),
    "another number format": lambda: (made(BASE).half(), images(BASE).half()),
    "one image without its number": lambda: (made(BASE), images(BASE)[0]),
    "another computation": lambda: (Another(16, 16, 3, bias=False).to(memory_format=LAST), images(BASE)),
}


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("what", UNSERVED)
def test_what_is_not_served_is_computed_as_before(ours: CpuConvolutions, what: str) -> None:
    convolution, x = UNSERVED[what]()
    assert not serves(convolution, x)
    found, again = ours(convolution, x)
    assert torch.equal(again, x)
    expected, _ = pointwise.by_products(convolution, x)
    assert torch.equal(found, expected)


def test_in_float32_and_without_gradients_the_module_is_called(ours: CpuConvolutions) -> None:
    convolution, x = made(BASE), images(BASE, torch.float32)
    assert not serves(convolution, x)
    assert torch.equal(ours(convolution, x)[0], convolution(x))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not serves(convolution, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert serves(convolution, x)
        with torch.no_grad():
            assert not serves(convolution, x)
            assert torch.equal(ours(convolution, x)[0], convolution(x))


def test_a_network_learns_with_them_as_without(ours: CpuConvolutions, ways: list[str]) -> None:
    plain = network()
    mine, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    mine.convolve_by(ours)
    pictures = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = bits(plain, pictures), bits(mine, pictures)
        again = bits(mine, pictures)
    true = bits(exact, pictures)
    assert sum(Counter(ways).values()) == 2 * SPATIAL
    assert set(ways) == {PARTS, PRODUCT}
    gradients = slice(1, 1 + len(list(plain.parameters())))
    assert distance(found[gradients], true[gradients]) < 1.2 * distance(expected[gradients], true[gradients])
    assert all(map(torch.equal, found[gradients], again[gradients]))
    blocks = [each for each in copy.deepcopy(mine).modules() if isinstance(each, Bottleneck)]
    assert {each._convolve for each in blocks} == {ours}
