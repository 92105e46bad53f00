"""The views of a picture whose features are kept: the centre as it is served, its mirror image, random crops.

A random crop depends on the picture's content and the view's number alone, so that every job cuts the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import RequestError
from image_classifier.training.crops import random_view, shortest_side
from image_classifier.vision.decode import decode_pixels
from image_classifier.vision.preprocess import Preprocessing, load_pixels

CENTRE, MIRROR = "centre", "mirror"
MAX_READ_BYTES = 64 * 1024**2  # a larger file is not held in memory as a whole


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
        found |= {CENTRE: centre, MIRROR: np.ascontiguousarray(centre[:, ::-1])}
    crops = [name for name in names if name not in (CENTRE, MIRROR)]
    if crops:
        size = preprocessing.image_size
        augment = crops[0].partition("-")[0]
        image = torch.from_numpy(decode_pixels(source, min_side=shortest_side(size, augment)))
        for name in crops:
            seed = hashlib.sha256(f"{name}\0{content}".encode()).digest()[:8]
            found[name] = random_view(image, size, augment, int.from_bytes(seed, "little")).numpy()
    return {name: found[name] for name in names}
