"""The crops that a training sees of a picture, and how large a picture must be for them. How large they are themselves:
`contract/crop_sizes.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from PIL import Image

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes

# Smallest share of the picture's area a training crop covers. 0.35 rather than ImageNet's usual 0.08: with few images
# a class, most crops should still show the thing itself.
CROP_SCALE: Mapping[str, float] = {"standard": 0.35, "light": 0.8}
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default

WORTH_SHRINKING = 1.5  # times as many pixels as the smallest picture that serves every crop: below, it stays as it is


def size_news(config: TrainConfig, epoch: int) -> str:
    """What the log is to say of the crops' side as `epoch` begins; empty where nothing is new."""
    sizes = training_sizes(config)
    size, before = sizes[epoch - 1], sizes[epoch - 2] if epoch > 1 else config.image_size
    return "" if size == before else f"training crops are {size} pixels wide from epoch {epoch} on"


def resized(image: torch.Tensor, size: int) -> torch.Tensor:
    """A (H, W, 3) uint8 picture as (size, size, 3), antialiased; itself where it is that."""
    if image.shape[:2] == (size, size):
        return image
    planes = image.permute(2, 0, 1)[None]
    return F.interpolate(planes, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def shortest_side(image_size: int, augment: str) -> int:
    """How many pixels a side must have, so that no crop of a square picture is enlarged to `image_size`."""
    shortest_crop = math.sqrt(CROP_SCALE[augment] * CROP_RATIO[0])  # of a square picture's side
    return math.ceil(image_size / shortest_crop)


def no_larger_than_needed(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its shorter side made `side` long, where it is so much longer that it is worth it.

    With or without a cache, so that a cache changes no sample.
    """
    shorter = min(picture.size)
    if shorter**2 < WORTH_SHRINKING * side**2:
        return picture
    width, height = (max(1, round(each * side / shorter)) for each in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, as the crop's own resize


def random_view(image: torch.Tensor, size: int, augment: str, seed: Sequence[int]) -> torch.Tensor:
    """A random crop of the picture, resized, flipped half of the time; the same for the same seed.

    torch's resize gives Pillow's pixels within one level of 255, in a third of the time.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (size, size, 3) uint8.
    """
    from torchvision.transforms import RandomResizedCrop  # takes a second to import, and a head does without it

    planes = image.permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        top, left, height, width = RandomResizedCrop.get_params(planes, [CROP_SCALE[augment], 1.0], list(CROP_RATIO))
        flip = bool(torch.rand(()) < 0.5)
    crop = planes[None, :, top : top + height, left : left + width]
    view = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return view.flip(1) if flip else view
