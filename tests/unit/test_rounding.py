"""Rounding to 8 bits with less error: ranges that cut off what is rare, and biases that get back what is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_classifier.training.folded_network import Folded, Int8, to_int8
from image_classifier.training.rounding import WIDTH, Correcting, corrections_of, least_error
from image_classifier.vision import network
from image_classifier.vision.model import build_model

SIZE = 32


@pytest.fixture(scope="module")
def folded() -> Folded:
    """Random weights whose blocks do something."""
    torch.manual_seed(0)
    model = build_model(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    return Folded(model.eval().state_dict())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn((6, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def error(values: torch.Tensor, most: float) -> float:
    rounded = torch.fake_quantize_per_tensor_affine(values, most / 255, 0, 0, 255)
    return float((rounded - values).square().mean())


def test_a_rare_large_value_is_cut_off_and_an_even_spread_is_not() -> None:
    even = torch.linspace(0, 1, 800_000)  # as many as an early layer has
    rare = even.clone()
    rare[1000] = 2.0
    found = least_error(torch.stack([even, rare]), False)
    assert found[0] == pytest.approx(1.0, rel=0.01)
    assert float(found[1]) < 2.0
    assert error(rare, float(found[1])) < error(rare, 2.0)


def test_a_tensor_of_zeros_has_a_range_of_zero() -> None:
    assert least_error(torch.zeros((2, 3, 4, 4)), True).tolist() == [0.0, 0.0]


def test_corrected_biases_give_back_what_rounding_takes_from_the_mean_of_the_answers(
    folded: Folded, images: torch.Tensor
) -> None:
    tops: dict[str, float] = {}

    def look(name: str, x: torch.Tensor) -> torch.Tensor:
        tops[name] = max(tops.get(name, 0.0), float(x.abs().max()))
        return x

    head = folded.weights[network.HEAD]
    with torch.inference_mode():
        exact = folded.logits(images, look)
        ranges = {name: 0.7 * most for name, most in tops.items()}
        in_int8 = folded.rounded(to_int8)
        rows = Correcting(folded, in_int8, ranges).rows(images[:4]).numpy()
        corrections = corrections_of(rows, head)
        plain = in_int8.logits(images, Int8(ranges)) - exact
        corrected = in_int8.corrected(corrections).logits(images, Int8(ranges)) - exact
    assert rows.shape == (4, WIDTH)
    assert {name: len(values) for name, values in corrections.items()} == {
        layer.name: layer.outputs for layer in network.convolutions()
    } | {network.HEAD: 3}
    assert float(corrected[:4].mean(0).norm()) < 0.4 * float(plain[:4].mean(0).norm())


def test_what_is_lost_does_not_depend_on_the_images_beside_it(folded: Folded, images: torch.Tensor) -> None:
    ranges = dict.fromkeys(network.activations(), 2.0)
    work = Correcting(folded, folded.rounded(to_int8), ranges)
    with torch.inference_mode():
        alone, together = work.rows(images[:1]).numpy(), work.rows(images[:3]).numpy()
    assert np.abs(alone[0] - together[0]).mean() < 0.02 * np.abs(together[0]).mean()
