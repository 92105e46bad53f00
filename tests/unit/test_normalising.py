"""What the device makes of a picture's bytes is what serving makes of them, and no slower way of computing it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from image_classifier.training.frozen_body import pooled
from image_classifier.training.normalising import Normaliser, channel_statistics
from image_classifier.vision.preprocess import Preprocessing, normalise, scale_and_shift

PREPROCESSING = Preprocessing(image_size=32, resize_size=40, mean=(0.1, 0.5, 0.83), std=(0.2, 0.31, 0.77))
SIZES = [(1, 32, 32), (3, 32, 32), (2, 17, 45), (1, 1, 1), (0, 32, 32)]


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(n, 3, H, W) uint8, channels last in memory."""
    values = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_what_serving_computes_bit_for_bit(size: tuple[int, int, int]) -> None:
    images = pictures(*size)
    found = Normaliser(PREPROCESSING)(images)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    for image, expected in zip(images.permute(0, 2, 3, 1).numpy(), found.numpy(), strict=True):
        np.testing.assert_array_equal(normalise(image, PREPROCESSING), expected)


def test_every_byte_is_scaled_and_then_shifted_each_rounded() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    scale, shift = scale_and_shift(PREPROCESSING)
    expected = (values.transpose(2, 0, 1).astype(np.float32) * scale).astype(np.float32) - shift
    np.testing.assert_array_equal(normalise(values, PREPROCESSING), expected)
    assert normalise(values, PREPROCESSING).flags.c_contiguous
    exact = (values.transpose(2, 0, 1) / 255 - np.array(PREPROCESSING.mean)[:, None, None]) / np.array(
        PREPROCESSING.std
    )[:, None, None]
    np.testing.assert_allclose(expected, exact, atol=1e-6)


def test_crops_of_one_training_have_several_widths() -> None:
    normaliser = Normaliser(PREPROCESSING)
    for width in (32, 64, 32):
        images = pictures(2, width, width)
        np.testing.assert_array_equal(
            normaliser(images)[1].numpy(), normalise(images[1].permute(1, 2, 0).numpy(), PREPROCESSING)
        )


def test_pictures_in_another_order_in_memory_come_to_the_same() -> None:
    images = pictures(2, 32, 32)
    assert torch.equal(Normaliser(PREPROCESSING)(images.contiguous()), Normaliser(PREPROCESSING)(images))


def test_a_device_multiplies_and_subtracts_what_it_was_given_once() -> None:
    normaliser = Normaliser(PREPROCESSING)
    images = torch.empty((2, 3, 32, 32), dtype=torch.uint8, device="meta")
    first = normaliser(images)
    placed = dict(normaliser._placed)
    assert normaliser(images).shape == first.shape == (2, 3, 32, 32)
    assert first.device.type == "meta"
    assert normaliser._placed == placed


def test_threads_that_begin_together_find_the_same() -> None:
    images = pictures(4, 32, 32)
    normaliser = Normaliser(PREPROCESSING)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(normaliser, [images] * 16))
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("size", [(3, 32, 32), (2, 17, 45), (1, 2, 1)], ids=str)
def test_channel_statistics_are_torchs(size: tuple[int, int, int]) -> None:
    images = Normaliser(PREPROCESSING)(pictures(*size))
    deviations, means = torch.std_mean(images.double(), dim=(2, 3))
    expected = torch.cat([means, deviations], dim=1).float()
    torch.testing.assert_close(channel_statistics(images), expected, rtol=1e-5, atol=1e-5)


def test_a_picture_of_one_colour_deviates_by_nothing() -> None:
    images = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert (channel_statistics(Normaliser(PREPROCESSING)(images))[0, 3:] < 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("side", [(16, 16), (2, 2), (14, 20), (15, 16), (16, 15), (1, 1)], ids=str)
def test_pooling_is_torchs(dtype: torch.dtype, side: tuple[int, int]) -> None:
    values = torch.randn(3, 8, *side, generator=torch.Generator().manual_seed(0)).relu()
    values = (values * 64 if dtype == torch.uint8 else values).to(dtype)
    x = values.contiguous(memory_format=torch.channels_last)
    found = pooled(x)
    assert torch.equal(found, torch.max_pool2d(x.float(), 3, 2, 1).to(dtype))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_pooling_knows_infinity_and_the_least_there_is() -> None:
    values = torch.zeros(1, 4, 8, 8)
    values[0, 0, 3, 3], values[0, 1, 0, 0], values[0, 2, 7, 7] = torch.inf, 1e-40, torch.nan
    x = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled(x).nan_to_num(-1.0), torch.max_pool2d(x, 3, 2, 1).nan_to_num(-1.0))
