"""The picture the network sees: one implementation for validation during training and for serving, bit for bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classifier.contract.errors import ArtifactError, ConfigError
from image_classifier.vision.decode import decode

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0..1; torchvision's ResNet50 weights expect them
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_RESIZE = 8192
_OLD_DRAFT_MARGIN = 2  # of models whose manifest does not name theirs: they go on seeing what they were trained on
_MAX_DRAFT_MARGIN = 8  # a JPEG can be decoded at 1/8 and not smaller


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes a tensor. Raises ConfigError when the numbers make no sense.

    Args:
        image_size: side of the square given to the network, in pixels.
        resize_size: length of the picture's shorter side before the centre crop, in pixels, >= image_size.
        draft_margin: large JPEGs are decoded at 1/2, 1/4 or 1/8, but no smaller than this many times resize_size.
        mean, std: per channel (R, G, B), of values scaled to 0..1.
    """

    image_size: int
    resize_size: int
    draft_margin: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize_size <= MAX_RESIZE:
            raise ConfigError(f"cannot crop {self.image_size} pixels out of {self.resize_size}")
        if not 1 <= self.draft_margin <= _MAX_DRAFT_MARGIN:
            raise ConfigError(f"draft_margin is 1 to {_MAX_DRAFT_MARGIN}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ConfigError("mean and std have one number for each of R, G and B")
        if not all(math.isfinite(x) for x in self.mean) or not all(math.isfinite(x) and x > 0 for x in self.std):
            raise ConfigError("mean and std are finite, and std is above 0")

    @classmethod
    def for_image_size(cls, image_size: int) -> Preprocessing:
        """The ImageNet recipe at any size: 256/224 of the size, then the centre crop (torchvision's ResNet50 V1)."""
        return cls(image_size=image_size, resize_size=round(image_size * 256 / 224))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; of an older model those it was written with, so that its checksum stays."""
        values = dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in values.items() if (name, value) != ("draft_margin", _OLD_DRAFT_MARGIN)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`. Raises ArtifactError when `values` is not what `to_json` writes."""
        try:
            mean, std = (tuple(float(x) for x in values[name]) for name in ("mean", "std"))
            sizes = {name: int(values[name]) for name in ("image_size", "resize_size")}
            margin = int(values.get("draft_margin", _OLD_DRAFT_MARGIN))
            return cls(mean=mean, std=std, draft_margin=margin, **sizes)  # type: ignore[arg-type]  # __post_init__ tests the length
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise ArtifactError(f"the preprocessing in the manifest is wrong: {error}") from error


def scale_and_shift(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(3, 1, 1) float32 each: value * scale - shift, rounded after each step, is (value / 255 - mean) / std."""
    std = np.asarray(preprocessing.std, dtype=np.float64)
    scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
    shift = (np.asarray(preprocessing.mean) / std).astype(np.float32)[:, None, None]
    return scale, shift


def normalise(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32, C-contiguous: (value / 255 - mean) / std."""
    scale, shift = scale_and_shift(preprocessing)
    planes = image.transpose(2, 0, 1).astype(np.float32, order="C")
    planes *= scale
    planes -= shift
    return planes


def crop(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """RGB picture -> (image_size, image_size, 3) uint8.

    The same pixels as torchvision's Resize(resize_size) and CenterCrop(image_size) on a PIL image (bilinear,
    antialiased), but only the crop is computed: a 20,000 x 20 picture needs no 256,000 x 256 intermediate.
    """
    size, width, height = preprocessing.image_size, image.width, image.height
    shorter = min(width, height)
    new_width, new_height = (preprocessing.resize_size * side // shorter for side in (width, height))
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    box = (
        left * width / new_width,
        top * height / new_height,
        min(width, (left + size) * width / new_width),
        min(height, (top + size) * height / new_height),
    )
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def load_pixels(source: bytes | Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bytes or a file -> (image_size, image_size, 3) uint8. Raises what `decode` raises."""
    return crop(decode(source, min_side=preprocessing.draft_margin * preprocessing.resize_size), preprocessing)


def load(source: bytes | Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Bytes or a file -> (3, image_size, image_size) float32. Raises what `decode` raises."""
    return normalise(load_pixels(source, preprocessing), preprocessing)
