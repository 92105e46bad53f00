"""Preprocessing: torchvision's evaluation transform without torchvision, in one place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classifier.contract.errors import ArtifactError, ConfigError
from image_classifier.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, crop, load, normalise


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (501, 333), (64, 64), (73, 73), (41, 57), (1000, 90), (7, 99)]
)
@pytest.mark.parametrize("image_size", [64, 65])
def test_pixels_are_those_of_torchvision_within_one_level(size: tuple[int, int], image_size: int) -> None:
    from torchvision.transforms import v2

    p = Preprocessing.for_image_size(image_size)
    image = photo(*size)
    theirs = np.asarray(v2.CenterCrop(p.image_size)(v2.Resize(p.resize_size)(image)), dtype=int)
    values = normalise(crop(image, p), p)
    levels = values * np.array(IMAGENET_STD)[:, None, None] + np.array(IMAGENET_MEAN)[:, None, None]
    difference = abs((levels * 255).round().astype(int) - theirs.transpose(2, 0, 1))
    assert difference.max() <= 1
    assert difference.mean() < 0.25  # rounding, where an enlarged pixel lies half way between two levels


def test_normalise_is_the_formula() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    result = normalise(image, Preprocessing.for_image_size(64))
    expected = ((image / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000), (1, 1), (65_535, 1), (1, 65_535)])
def test_extreme_shapes_need_little_memory_and_work(size: tuple[int, int]) -> None:
    result = crop(Image.new("RGB", size, "white"), Preprocessing.for_image_size(64))
    assert result.shape == (64, 64, 3)
    assert (result == 255).all()


def test_a_file_and_its_bytes_give_the_same_tensor(tmp_path: Path) -> None:
    """Training reads files, serving reads bytes: also when the JPEG is large enough to be decoded smaller."""
    path, p = tmp_path / "a.jpg", Preprocessing.for_image_size(32)
    photo(900, 700).save(path)
    assert load(path, p).tobytes() == load(path.read_bytes(), p).tobytes()


def test_decoding_a_large_jpeg_smaller_hardly_changes_the_tensor() -> None:
    p, image = Preprocessing.for_image_size(64), photo(1600, 1200)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    difference = abs(load(stream.getvalue(), p) - normalise(crop(image, p), p))
    assert difference.mean() < 0.04


def test_json_round_trip() -> None:
    p = Preprocessing(image_size=100, resize_size=120, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert Preprocessing.from_json(p.to_json()) == p
    assert Preprocessing.for_image_size(224).to_json()["resize_size"] == 256


@pytest.mark.parametrize(
    "change",
    [{"image_size": 0}, {"image_size": 200}, {"std": [1, 1, 0]}, {"mean": [1, 1]}, {"mean": None}, {"std": "a"}],
)
def test_json_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="preprocessing in the manifest is wrong"):
        Preprocessing.from_json(Preprocessing.for_image_size(64).to_json() | change)


def test_crop_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot crop 64 pixels out of 32"):
        Preprocessing(image_size=64, resize_size=32)
