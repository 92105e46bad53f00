"""Convolutions of 1 x 1 as matrix products: right to the rounding of bf16, and no other convolution is touched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.kernel_stand_in import rows
from torch import Tensor, nn

from image_classifier.training import pointwise as pointwise_module
from image_classifier.training.given import give_away
from image_classifier.training.pointwise import by_products, serves
from image_classifier.vision.resnet import ResNet

LAST = torch.channels_last
BF16 = 1.01 * 2**-8  # of a number: half of what the last of its 8 bits is worth, and float32's own errors
CASES = {  # (N, C, H, W), channels of the answer, stride
    "stride 1": ((3, 64, 6, 8), 128, 1),
    "stride 1, odd sides": ((2, 128, 7, 5), 64, 1),
    "stride 1, one image": ((1, 64, 5, 4), 256, 1),
    "stride 1, one pixel": ((4, 64, 1, 1), 96, 1),
    "stride 2": ((3, 64, 6, 8), 128, 2),
    "stride 2, odd sides": ((2, 128, 7, 5), 64, 2),
    "stride 2, one image": ((1, 64, 5, 4), 256, 2),
    "stride 2 along one side": ((2, 64, 5, 6), 32, (1, 2)),
}


@pytest.fixture
def in_bf16() -> Iterator[None]:
    """What is computed is computed as in a training in bf16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def pointwise(inputs: int, outputs: int, stride: Any = 1) -> nn.Conv2d:
    torch.manual_seed(4)
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False).to(memory_format=LAST)


def rounded_once(found: Tensor, exact: Tensor, of_part: Tensor | None = None) -> None:
    """Off by a rounding of itself, and of a part of it where that is rounded too."""
    allowed = BF16 * exact.abs() + 1e-4 * exact.square().mean().sqrt()
    if of_part is not None:
        allowed = allowed + BF16 * of_part.abs()
    assert bool(((found.double() - exact).abs() <= allowed).all())


class Case:
    """A convolution with what it computes and what it should, in float64."""

    def __init__(self, shape: tuple[int, ...], outputs: int, stride: Any) -> None:
        self.convolution = pointwise(shape[1], outputs, stride)
        self.x = rows(*shape, mean=0.5).requires_grad_()
        self.wide = self.x.detach().double().requires_grad_()
        self.weight = self.convolution.weight.detach().bfloat16().double().requires_grad_()
        self.exact = nn.functional.conv2d(self.wide, self.weight, stride=stride)
        self.dy = rows(*self.exact.shape, seed=1)
        self.more = rows(*shape, seed=2)

    def exact_gradients(self) -> tuple[Tensor, Tensor]:
        found = torch.autograd.grad(self.exact, (self.wide, self.weight), self.dy.double(), retain_graph=True)
        return found[0], found[1]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of CASES."""
    return Case(*CASES[request.param])


@pytest.mark.usefixtures("in_bf16")
def test_answers_are_right_and_x_is_handed_on(case: Case) -> None:
    y, x = by_products(case.convolution, case.x)
    assert serves(case.convolution, case.x)
    assert (y.dtype, y.shape) == (torch.bfloat16, case.exact.shape)
    assert y.is_contiguous(memory_format=LAST)
    rounded_once(y, case.exact)
    assert torch.equal(x, case.x)
    assert x.data_ptr() == case.x.data_ptr()


@pytest.mark.usefixtures("in_bf16")
def test_nothing_is_kept_where_gradients_are_off(case: Case) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, x = by_products(case.convolution, case.x)
        assert not y.requires_grad
        assert x.data_ptr() == case.x.data_ptr()
        rounded_once(y, case.exact)


@pytest.mark.usefixtures("in_bf16")
def test_gradients_are_right_where_nothing_else_reads_x(case: Case) -> None:
    y, _ = by_products(case.convolution, case.x)
    y.backward(case.dy)
    dx, dweight = case.exact_gradients()
    assert case.x.grad is not None
    assert case.x.grad.dtype == torch.bfloat16
    rounded_once(case.x.grad, dx)
    grad = case.convolution.weight.grad
    assert grad is not None
    assert grad.dtype == torch.float32
    rounded_once(grad, dweight)


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("size", [(2, 8, 5), (3, 9, 5)])
def test_the_gradient_of_a_weight_over_many_pixels_is_that_of_its_parts(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int]
) -> None:
    """Each part is rounded, too; pixels that make no parts of one size are not divided."""
    divided: list[int] = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *factors: divided.append(len(factors[0])) or bmm(*factors))
    monkeypatch.setattr(pointwise_module, "TALL", 80)
    case = Case((size[0], 64, *size[1:]), 32, 1)
    y, _ = by_products(case.convolution, case.x)
    y.backward(case.dy)
    _, dweight = case.exact_gradients()
    grad = case.convolution.weight.grad
    assert grad is not None
    assert divided == ([8] if size == (2, 8, 5) else [])
    length = float(dweight.norm())
    assert float((grad.double() - dweight).norm()) < 2**-8 * length


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "expanded"])
def test_the_gradient_of_what_else_reads_x_is_added(case: Case, layout: str) -> None:
    more = {
        "channels_last": case.more,
        "contiguous": case.more.contiguous(),
        "expanded": case.more[:1, :, :1, :1].expand(case.more.shape),
    }[layout]
    y, x = by_products(case.convolution, case.x)
    given = (case.dy, more)
    values = [each.clone() for each in given]
    found = torch.autograd.grad((y, x), (case.x, case.convolution.weight), given)
    dx, dweight = case.exact_gradients()
    in_two_steps = case.convolution.stride != (1, 1)
    rounded_once(found[0], dx + more.double(), dx if in_two_steps else None)
    rounded_once(found[1], dweight)
    assert all(torch.equal(one, value) for one, value in zip(given, values, strict=True))


@pytest.mark.usefixtures("in_bf16")
def test_where_only_x_is_read_its_gradient_is_what_is_read(case: Case) -> None:
    _, x = by_products(case.convolution, case.x)
    found = torch.autograd.grad(x, (case.x, case.convolution.weight), case.more, allow_unused=True)
    assert torch.equal(found[0], case.more)
    assert found[1] is None


@pytest.mark.usefixtures("in_bf16")
def test_what_is_frozen_has_no_gradient_and_the_other_has_its_own(case: Case) -> None:
    dx, dweight = case.exact_gradients()
    case.convolution.weight.requires_grad_(False)
    y, x = by_products(case.convolution, case.x)
    (found,) = torch.autograd.grad((y, x), case.x, (case.dy, case.more))
    rounded_once(found, dx + case.more.double(), dx if case.convolution.stride != (1, 1) else None)
    case.convolution.weight.requires_grad_(True)
    y, _ = by_products(case.convolution, case.x.detach())
    y.backward(case.dy)
    assert case.convolution.weight.grad is not None
    rounded_once(case.convolution.weight.grad, dweight)
    assert case.x.grad is None


@pytest.mark.usefixtures("in_bf16")
def test_gradients_may_be_asked_for_twice(case: Case) -> None:
    y, x = by_products(case.convolution, case.x)
    total = (y * case.dy).sum() + (x * case.more).sum()
    sources = (case.x, case.convolution.weight)
    first = torch.autograd.grad(total, sources, retain_graph=True)
    kept = [each.clone() for each in first]
    second = torch.autograd.grad(total, sources)
    for one, before, other in zip(first, kept, second, strict=True):
        assert torch.equal(one, before)
        assert torch.equal(one, other)


class Shortcut(torch.autograd.Function):
    """What else reads x: it has this gradient, and gives it away or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, is_given: bool) -> Tensor:
        ctx.gradient, ctx.is_given = gradient, is_given
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, None, None]:
        if ctx.is_given:
            give_away(ctx.gradient)
        return ctx.gradient, None, None


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("is_given", [True, False], ids=["given", "kept"])
def test_only_a_gradient_that_was_given_away_is_written_into(case: Case, is_given: bool) -> None:
    y, x = by_products(case.convolution, case.x)
    before = case.more.clone()
    total = (y * case.dy).sum() + Shortcut.apply(x, case.more, is_given)
    (found,) = torch.autograd.grad(total, case.x)
    dx, _ = case.exact_gradients()
    one_step = case.convolution.stride == (1, 1)
    rounded_once(found, dx + before.double(), None if one_step else dx)
    written = is_given and one_step
    assert (found.data_ptr() == case.more.data_ptr()) == written
    assert torch.equal(case.more, found if written else before)


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_another_product_is_written_into(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    """Where a block's width changes, both of its ways begin with one."""
    into: list[bool] = []
    addmm = torch.addmm

    def watched(added: Tensor, *factors: Tensor, out: Tensor) -> Tensor:
        into.append(out.data_ptr() == added.data_ptr())
        return addmm(added, *factors, out=out)

    monkeypatch.setattr(torch, "addmm", watched)
    x = rows(2, 64, 6, 7).requires_grad_()
    first, other = pointwise(64, 32), pointwise(64, 96, stride)
    y, same = by_products(first, x)
    z, _ = by_products(other, same)
    dy, dz = rows(*y.shape, seed=1), rows(*z.shape, seed=2)
    (found,) = torch.autograd.grad((y, z), x, (dy, dz))
    assert into == [True]
    wide = x.detach().double().requires_grad_()
    weights = [each.weight.detach().bfloat16().double() for each in (first, other)]
    ways = nn.functional.conv2d(wide, weights[0]), nn.functional.conv2d(wide, weights[1], stride=stride)
    exact = [torch.autograd.grad(way, wide, given.double())[0] for way, given in zip(ways, (dy, dz), strict=True)]
    rounded_once(found, exact[0] + exact[1], exact[1])


class Doubled(nn.Conv2d):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def changed(change: Callable[[nn.Conv2d], object], made: nn.Conv2d | None = None) -> nn.Conv2d:
    convolution = pointwise(64, 32) if made is None else made
    change(convolution)
    return convolution


UNSERVED: dict[str, Callable[[], tuple[nn.Conv2d, Tensor]]] = {
    "float32": lambda: (pointwise(64, 32), rows(2, 64, 5, 6, dtype=torch.float32)),
    "not channels_last": lambda: (pointwise(64, 32), rows(2, 64, 5, 6).contiguous()),
    "one image without its number": lambda: (pointwise(64, 32), rows(1, 64, 5, 6)[0]),
    "3 x 3": lambda: (nn.Conv2d(64, 32, 3, bias=False), rows(2, 64, 5, 6)),
    "1 x 3": lambda: (nn.Conv2d(64, 32, (1, 3), bias=False), rows(2, 64, 5, 6)),
    "padding": lambda: (nn.Conv2d(64, 32, 1, padding=1, bias=False), rows(2, 64, 5, 6)),
    "padding in words": lambda: (nn.Conv2d(64, 32, 1, padding="same", bias=False), rows(2, 64, 5, 6)),
    "groups": lambda: (nn.Conv2d(64, 32, 1, groups=2, bias=False), rows(2, 64, 5, 6)),
    "bias": lambda: (nn.Conv2d(64, 32, 1), rows(2, 64, 5, 6)),
    "another forward": lambda: (Doubled(64, 32, 1, bias=False), rows(2, 64, 5, 6)),
    "hook": lambda: (changed(lambda one: one.register_forward_hook(lambda _, __, y: 2 * y)), rows(2, 64, 5, 6)),
    "pre-hook": lambda: (
        changed(lambda one: one.register_forward_pre_hook(lambda _, given: (2 * given[0],))),
        rows(2, 64, 5, 6),
    ),
    "backward hook": lambda: (
        changed(lambda one: one.register_full_backward_hook(lambda _, dx, __: (2 * dx[0],))),
        rows(2, 64, 5, 6),
    ),
    "backward pre-hook": lambda: (
        changed(lambda one: one.register_full_backward_pre_hook(lambda _, dy: (2 * dy[0],))),
        rows(2, 64, 5, 6),
    ),
}


def results(of: Callable[[nn.Conv2d, Tensor], Tensor], convolution: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The answer and all gradients."""
    x = x.clone().requires_grad_()
    y = of(convolution, x)
    return [y, *torch.autograd.grad(y.square().sum(), (x, *convolution.parameters()))]


def is_left_alone(convolution: nn.Conv2d, x: Tensor) -> None:
    assert not serves(convolution, x)
    found = results(lambda module, x: by_products(module, x)[0], convolution, x)
    expected = results(lambda module, x: module(x), convolution, x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert by_products(convolution, x)[1] is x


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize("what", UNSERVED)
def test_what_products_do_not_serve_is_left_to_the_module(what: str) -> None:
    is_left_alone(*UNSERVED[what]())


def test_where_autocast_does_not_compute_in_bf16_it_is_left_to_the_module() -> None:
    half = pointwise(64, 32).bfloat16()
    is_left_alone(half, rows(2, 64, 5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        is_left_alone(half, rows(2, 64, 5, 6))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not serves(pointwise(64, 32), rows(2, 64, 5, 6))


@pytest.mark.parametrize(("stride", "served"), [(1, True), (2, False), ((1, 2), False)])
def test_on_a_gpu_those_of_stride_1_are_served(monkeypatch: pytest.MonkeyPatch, stride: Any, served: bool) -> None:
    """cuDNN computes the others in less time. There is no GPU here: all that is asked of x is stood in for."""
    x: Any = SimpleNamespace(
        device=torch.device("cuda", 0), dtype=torch.bfloat16, is_contiguous=lambda memory_format: memory_format is LAST
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16 if device == "cuda" else None)
    assert serves(pointwise(64, 32, stride), x) is served
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cpu")
    assert not serves(pointwise(64, 32, stride), x)


@pytest.mark.usefixtures("in_bf16")
def test_a_network_that_waits_for_its_weights_is_served() -> None:
    """Its convolutions are of a class of their own, that computes the same."""
    convolution = ResNet(2, drawn=False).layer1[0].conv1.to(memory_format=LAST)
    assert type(convolution) is not nn.Conv2d
    nn.init.normal_(convolution.weight)
    assert serves(convolution, rows(2, 64, 5, 6))
    same = copy.deepcopy(pointwise(64, 64))
    same.load_state_dict(convolution.state_dict())
    found, _ = by_products(convolution, rows(2, 64, 5, 6))
    assert torch.equal(found, by_products(same, rows(2, 64, 5, 6))[0])
