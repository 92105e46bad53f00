"""A network whose blocks' convolutions are computed by something else: it learns as before, its hooks are called."""

from __future__ import annotations

import copy
import ctypes
from collections import Counter

import pytest
import torch
from tests.counted_norms import CountedNorms
from tests.unit.test_fused_norms import LAST, LAYERS, bits, distance, network
from torch import Tensor, nn

from image_classifier.training.cpu_norms import CpuNorms
from image_classifier.training.fused_norms import FusedNorms
from image_classifier.training.pointwise import by_products, serves
from image_classifier.vision.resnet import Bottleneck, convolve

CONVOLUTIONS, PRODUCTS = 53, 36


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)


class Counted:
    """Computes as `by_products`, and keeps whether it did so by a product."""

    def __init__(self) -> None:
        self.served: list[bool] = []

    def __call__(self, convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
        self.served.append(serves(convolution, x))
        return by_products(convolution, x)


@pytest.mark.parametrize("with_norms", [True, False], ids=["with norms", "alone"])
def test_a_network_learns_with_products_as_without(cpu_library: ctypes.CDLL, with_norms: bool) -> None:
    plain = network()
    mine, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    images, counted, kernels = drawn(6, 3, 64, 64), Counted(), CountedNorms(CpuNorms(cpu_library))
    mine.convolve_by(counted)
    if with_norms:
        mine.end_layers_by(FusedNorms(kernels, torch.device("cpu")))
    assert list(mine.state_dict()) == list(plain.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = bits(plain, images), bits(mine, images)
    expected = bits(exact, images)
    assert sum(isinstance(module, nn.Conv2d) for module in mine.modules()) == CONVOLUTIONS
    assert Counter(counted.served) == {True: PRODUCTS, False: CONVOLUTIONS - PRODUCTS}
    assert Counter(kernels.computed) == (LAYERS if with_norms else {})
    assert [each.dtype for each in found] == [each.dtype for each in rounded]
    count = 1 + len(list(plain.parameters()))
    # Logits, gradients, what the norms keep. How a few logits are rounded is chance.
    for part, times in ((slice(0, 1), 2.0), (slice(1, count), 1.2), (slice(count, None), 1.2)):
        assert distance(found[part], expected[part]) < times * distance(rounded[part], expected[part]) + 1e-3


def test_in_float32_nothing_is_other_than_before() -> None:
    plain, counted = network(), Counted()
    mine = copy.deepcopy(plain)
    mine.convolve_by(counted)
    for found, expected in zip(bits(mine, drawn(4, 3, 64, 64)), bits(plain, drawn(4, 3, 64, 64)), strict=True):
        assert torch.equal(found, expected)
    assert counted.served == [False] * CONVOLUTIONS


def test_another_function_is_given_the_convolutions_that_the_network_has() -> None:
    """Bit for bit, gradients too, in float32."""
    plain = network()
    mine = copy.deepcopy(plain)
    called: list[nn.Conv2d] = []

    def wrapped(convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
        called.append(convolution)
        return convolve(convolution, x)

    mine.convolve_by(wrapped)
    for found, expected in zip(bits(mine, drawn(4, 3, 64, 64)), bits(plain, drawn(4, 3, 64, 64)), strict=True):
        assert torch.equal(found, expected)
    theirs = [each for each in mine.modules() if isinstance(each, nn.Conv2d)]
    assert Counter(map(id, called)) == Counter(map(id, theirs))


def test_a_copy_of_the_network_computes_the_same_way() -> None:
    model = network()
    model.convolve_by(by_products)
    blocks = [each for each in copy.deepcopy(model).modules() if isinstance(each, Bottleneck)]
    assert len(blocks) == 16
    assert all(each._convolve is by_products for each in blocks)


def test_hooks_are_called_with_products_too() -> None:
    model, counted = network(), Counted()
    model.convolve_by(counted)
    called: list[str] = []
    names = ["layer1.0.conv1", "layer1.0.downsample", "layer2.0.downsample", "layer3.0.downsample.0", "layer4.1.conv3"]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model(drawn(4, 3, 64, 64))
    assert called == sorted(names)
    assert sum(counted.served) == PRODUCTS - len(names)
