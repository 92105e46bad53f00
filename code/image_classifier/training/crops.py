"""The crops that a training sees of a picture, and how large a picture must be for them. How large they are themselves:
`contract/crop_sizes.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from PIL import Image

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes

# Smallest share of the picture's area a training crop covers. 0.35 rather than ImageNet's usual 0.08: with few images
# a class, most crops should still show the thing itself.
CROP_SCALE: Mapping[str, float] = {"standard": 0.35, "light": 0.8}
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default
TRIES = 10  # RandomResizedCrop's, before it takes the centre

WORTH_SHRINKING = 1.5  # times as many pixels as the smallest picture that serves every crop: below, it stays as it is


def size_news(config: TrainConfig, epoch: int) -> str:
    """What the log is to say of the crops' side as `epoch` begins; empty where nothing is new."""
    sizes = training_sizes(config)
    size, before = sizes[epoch - 1], sizes[epoch - 2] if epoch > 1 else config.image_size
    return "" if size == before else f"training crops are {size} pixels wide from epoch {epoch} on"


def resized(image: torch.Tensor, size: int) -> torch.Tensor:
    """A (H, W, 3) uint8 picture, or a part of one, as (size, size, 3), antialiased; itself where it is that.

    torch's resize gives Pillow's pixels within one level of 255, in a third of the time. Not by torchvision, which
    takes as long to import as most of torch.
    """
    if image.shape[:2] == (size, size):
        return image
    # a batch of one before its channels come first: torch sees then that they are last in memory, and leaves them there
    one = image[None].permute(0, 3, 1, 2)
    return F.interpolate(one, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def shortest_side(image_size: int, augment: str) -> int:
    """How many pixels a side must have, so that no crop of a square picture is enlarged to `image_size`."""
    shortest_crop = math.sqrt(CROP_SCALE[augment] * CROP_RATIO[0])  # of a square picture's side
    return math.ceil(image_size / shortest_crop)


def no_larger_than_needed(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A (H, W, 3) picture with its shorter side made `side` long, where it is so much longer that it is worth it.

    With or without a cache, so that a cache changes no sample.
    """
    shorter = min(picture.shape[:2])
    if shorter**2 < WORTH_SHRINKING * side**2:
        return picture
    height, width = (max(1, round(each * side / shorter)) for each in picture.shape[:2])
    # antialiased, as the crop's own resize
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def random_view(image: torch.Tensor, size: int, augment: str, seed: int) -> torch.Tensor:
    """A random crop of the picture as torchvision's RandomResizedCrop draws it, resized, flipped half of the time; the
    same for the same seed. Safe to call from several threads: it draws from a generator of its own, Python's, which is
    there in half the time of numpy's.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (size, size, 3) uint8.
    """
    draw = random.Random(seed).random
    top, left, height, width = random_box(image.shape[0], image.shape[1], CROP_SCALE[augment], draw)
    view = resized(image[top : top + height, left : left + width], size)
    return view.flip(1) if draw() < 0.5 else view


def random_box(height: int, width: int, scale: float, draw: Callable[[], float]) -> tuple[int, int, int, int]:
    """Top, left, height and width, in pixels, of a crop of `scale` to 1 of the area; of the centre where ten that are
    drawn do not fit, since the picture is very long.

    Args:
        draw: gives a number in [0, 1), evenly.
    """
    smallest, largest = map(math.log, CROP_RATIO)
    for _ in range(TRIES):
        area = height * width * (scale + (1 - scale) * draw())
        ratio = math.exp(smallest + (largest - smallest) * draw())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw() * (height - h + 1)), int(draw() * (width - w + 1)), h, w
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w
