"""int8 by the processor's own instructions: the simulation's features, or the simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import draw_norms
from tests.head_training import SIZE, make_pictures, split_of

from image_classifier.training import int8_kernels, number_formats
from image_classifier.training.int8_kernels import Int8Kernels, has_int8_kernels
from image_classifier.training.number_formats import Body, Folded, Int8, photos, to_int8
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.resnet import ResNet

pytestmark = pytest.mark.skipif(not has_int8_kernels(), reason="this processor has no instructions for int8")


@pytest.fixture(scope="module")
def model() -> ResNet:
    """Random weights whose blocks do something."""
    torch.manual_seed(0)
    found = build_model(3)
    draw_norms(found)
    return found.eval()


@pytest.fixture
def body(model: ResNet, tmp_path: Path) -> Body:
    data = make_pictures(tmp_path / "data")
    seen, unseen = (
        photos(split_of(data, name), Preprocessing.for_image_size(SIZE), 100) for name in ("train", "valid")
    )
    return Body(model, seen, unseen, lambda: None)


def simulated(body: Body, model: ResNet, ranges: dict[str, float]) -> torch.Tensor:
    folded = Folded(model.state_dict()).rounded(to_int8)
    return torch.cat([folded.features(batch, Int8(ranges)) for batch in body._unseen.images])


@pytest.mark.parametrize("share", [1.0, 0.3])  # nothing is cut off; much is
def test_the_instructions_give_the_simulations_features(body: Body, model: ResNet, share: float) -> None:
    with torch.inference_mode():
        ranges = {name: max(1e-6, share * float(values.max())) for name, values in body.maxima().items()}
        expected = simulated(body, model, ranges)
        folded = Folded(model.state_dict())
        kernels = Int8Kernels(folded.weights, folded.biases, ranges, [8, 3, SIZE, SIZE])
        images = torch.cat(list(body._unseen.images))
        exact = torch.from_numpy(body.exact())
        found = kernels(images[:8])
        assert found.dtype == torch.float32
        assert int8_kernels.is_as_good(found, expected[:8], exact[:8])
        torch.testing.assert_close(kernels(images[3:4]), found[3:4])  # a batch of another size
        assert int8_kernels.is_as_good(torch.from_numpy(body.int8(ranges)), expected, exact)
        assert not int8_kernels.is_as_good(exact, expected, exact)
        assert not int8_kernels.is_as_good(2 * expected - exact, expected, exact)


def test_what_the_instructions_get_wrong_is_simulated(
    body: Body, model: ResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        ranges = {name: float(values.max()) for name, values in body.maxima().items()}
        expected = simulated(body, model, ranges).numpy()
        assert not np.array_equal(body.int8(ranges), expected)
        with monkeypatch.context() as strict:
            strict.setattr(int8_kernels, "SAME_COST", (0.0, 0.0))
            assert np.array_equal(body.int8(ranges), expected)
        monkeypatch.setattr(number_formats, "has_int8_kernels", lambda: False)
        assert np.array_equal(body.int8(ranges), expected)


def test_features_that_are_no_numbers_are_not_taken(body: Body) -> None:
    with torch.inference_mode():
        ranges = {name: float(values.max()) for name, values in body.maxima().items()}
        features, exact = torch.from_numpy(body.int8(ranges)), torch.from_numpy(body.exact())
        assert int8_kernels.is_as_good(features, features, exact)
        assert not int8_kernels.is_as_good(features * float("nan"), features, exact)
