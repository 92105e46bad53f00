"""The views of a picture whose features are kept: the centre as it is served, its mirror image, random crops.

A random crop depends on the picture's content and the view's number alone, so that every job cuts the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import RequestError
from image_classifier.training.crops import CROP_RATIO, CROP_SCALE, shortest_side
from image_classifier.vision.decode import decode
from image_classifier.vision.preprocess import Preprocessing, load_pixels

CENTRE, MIRROR = "centre", "mirror"
MAX_READ_BYTES = 64 * 1024**2  # a larger file is not held in memory as a whole
TRIES = 10  # torchvision's RandomResizedCrop's, before it takes the centre


def views_of(config: TrainConfig) -> tuple[str, ...]:
    """The names of a training image's views; only the centre for augment=none."""
    if config.augment == "none":
        return (CENTRE,)
    crops = (f"{config.augment}-{number}" for number in range(2, config.feature_views))
    return (CENTRE, MIRROR, *crops)[: config.feature_views]


def view_index(epoch: int | NDArray[np.int64], indices: NDArray[np.int64], num_views: int) -> NDArray[np.int64]:
    """Which view of each image an epoch, from 1, is trained on: another one in the next, and not the same for all."""
    return (epoch - 1 + indices) % num_views


def read_views(
    path: Path | bytes, preprocessing: Preprocessing, names: Collection[str]
) -> tuple[str, dict[str, NDArray[np.uint8]]]:
    """The sha256 (hex) of the bytes that were decoded, empty for a very large file, and name -> (S, S, 3) uint8.

    Args:
        path: of a file, or its bytes.

    Raises what `decode` raises; the sentence names the path.
    """
    source, content = _bytes_of(path)
    try:
        return content, _views(source, content, preprocessing, names)
    except RequestError:
        if source is path:
            raise
        return "", _views(path, "", preprocessing, names)  # which raises again, with the path in its sentence


def _bytes_of(path: Path | bytes) -> tuple[bytes | Path, str]:
    """The file's bytes and their digest, so that what is decoded is what is named; the path if that cannot be."""
    if isinstance(path, bytes):
        return path, hashlib.sha256(path).hexdigest()
    try:
        if path.stat().st_size > MAX_READ_BYTES:
            return path, ""
        data = path.read_bytes()
    except OSError:
        return path, ""
    return data, hashlib.sha256(data).hexdigest()


def _views(
    source: bytes | Path, content: str, preprocessing: Preprocessing, names: Collection[str]
) -> dict[str, NDArray[np.uint8]]:
    found: dict[str, NDArray[np.uint8]] = {}
    if CENTRE in names or MIRROR in names:
        centre = load_pixels(source, preprocessing)
        found |= {CENTRE: centre, MIRROR: centre[:, ::-1]}
    crops = [name for name in names if name not in (CENTRE, MIRROR)]
    if crops:
        size = preprocessing.image_size
        augment = crops[0].partition("-")[0]
        image = torch.from_numpy(np.array(decode(source, min_side=shortest_side(size, augment))))
        for name in crops:
            seed = hashlib.sha256(f"{name}\0{content}".encode()).digest()[:8]
            found[name] = random_crop(image, size, augment, int.from_bytes(seed, "little"))
    return {name: found[name] for name in names}


def random_crop(image: torch.Tensor, size: int, augment: str, seed: int) -> NDArray[np.uint8]:
    """A random crop as RandomResizedCrop draws it, half of the time mirrored. Unlike `crops.random_view` it may be
    called in several threads: torch has one random generator for all of them.

    Args:
        image: (H, W, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    top, left, height, width = _box(image.shape[0], image.shape[1], CROP_SCALE[augment], rng)
    crop = image.permute(2, 0, 1)[None, :, top : top + height, left : left + width]
    view = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return (view.flip(1) if rng.random() < 0.5 else view).numpy()


def _box(height: int, width: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop of `scale` to 1 of the area."""
    for _ in range(TRIES):
        area = height * width * rng.uniform(scale, 1.0)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w
