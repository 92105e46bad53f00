"""Sample images: a small, seeded set of photo-like pictures to try everything with, offline and in minutes.

Each class is a material, painted by a few lines of numpy under varying light. It is hard enough that a network has to
learn, and easy enough that a ResNet50 learns it from random weights in about a hundred steps. Left and right, and a
little more or less of the picture, do not change the class.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from image_classifier.contract.errors import ConfigError, PlatformError, describe

Picture = NDArray[np.float64]  # (H, W, 3), RGB 0..1, or (H, W) for one plane
Colour = tuple[float, float, float]

MIN_SIZE, MAX_SIZE = 32, 1024


def make_sample_data(
    root: Path,
    *,
    num_classes: int = 4,
    train_per_class: int = 30,
    valid_per_class: int = 8,
    test_per_class: int = 8,
    size: int = 96,
    seed: int = 0,
) -> int:
    """Writes `root/train|valid|test/CLASS/*.jpg`; a split of 0 images has no folder. All of it or nothing is written.

    The same arguments give the same bytes (with the same versions of numpy and Pillow), and the images of a class do
    not depend on how many there are.

    Args:
        root: a folder that does not exist, or is empty.
        num_classes: 2 to 8.
        size: side of the square images, in pixels.

    Returns:
        The number of images written.

    Raises:
        ConfigError: a number is out of range, or `root` holds something.
        PlatformError: a full disk or a missing permission.
    """
    if not 2 <= num_classes <= len(_SCENES):
        raise ConfigError(f"sample data has 2 to {len(_SCENES)} classes, not {num_classes}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"sample images have {MIN_SIZE} to {MAX_SIZE} pixels a side, not {size}")
    if train_per_class < 1 or valid_per_class < 0 or test_per_class < 0 or seed < 0:
        raise ConfigError("sample data needs one training image a class or more, and no negative numbers")
    counts = {"train": train_per_class, "valid": valid_per_class, "test": test_per_class}
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ConfigError(f"{root} exists and is not an empty folder", "name a new folder, or remove this one")
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = root.parent / f".{root.name}.{os.getpid()}.tmp"
        try:
            for class_index, name in enumerate(list(_SCENES)[:num_classes]):
                for split_index, (split, count) in enumerate(counts.items()):
                    for i in range(count):
                        rng = np.random.default_rng([seed, class_index, split_index, i])
                        path = temporary / split / name / f"{name}_{i:04d}.jpg"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        _photograph(_SCENES[name](rng, size), rng).save(path, quality=90)
            if root.exists():
                root.rmdir()
            temporary.rename(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise PlatformError(describe(error), "free some space or choose another folder") from error
    return num_classes * sum(counts.values())


def _photograph(scene: Picture, rng: Generator) -> Image.Image:
    """Uneven light, exposure, white balance, a soft lens and sensor noise."""
    size = scene.shape[0]
    light = 1 + 0.12 * _fractal(rng, size, first=1, octaves=2)
    exposure, balance = rng.uniform(0.75, 1.2), rng.uniform(0.92, 1.08, 3)
    picture = scene * light[..., None] * exposure * balance + rng.normal(0, 0.015, scene.shape)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.006) * size))


def _bricks(rng: Generator, size: int) -> Picture:
    x, y = _plane(rng, size, tilt=0.15)
    rows = rng.uniform(5, 8)
    v = y * rows + 0.05 * _fractal(rng, size)
    u = x * rows / 2.2 + 0.5 * (np.floor(v) % 2) + 0.02 * _fractal(rng, size)
    tone = rng.uniform(0.75, 1.2, (64, 64))[np.floor(v).astype(int) % 64, np.floor(u).astype(int) % 64]
    mortar = np.minimum(_to_edge(v), 2.2 * _to_edge(u)) < rng.uniform(0.06, 0.1)
    tone = tone + 0.08 * _fractal(rng, size, first=8)
    return np.where(mortar[..., None], np.array((0.72, 0.70, 0.66)), _tint((0.62, 0.30, 0.22), tone))


def _leaves(rng: Generator, size: int) -> Picture:
    picture = _tint((0.10, 0.17, 0.07), 1 + 0.3 * _fractal(rng, size))
    x, y = _plane(rng, size, tilt=0.0)
    for depth in np.linspace(0.35, 1, 60):
        angle, length = rng.uniform(0, math.tau), rng.uniform(0.09, 0.17)
        dx, dy = x - rng.uniform(-0.6, 0.6), y - rng.uniform(-0.6, 0.6)
        along = (dx * math.cos(angle) + dy * math.sin(angle)) / length
        across = (dy * math.cos(angle) - dx * math.sin(angle)) / (0.45 * length)
        inside = np.abs(across) < 1 - along**2  # two arcs that meet in points
        shade = depth * (0.85 + 0.25 * across - 0.25 * (np.abs(across) < 0.08))
        colour = (0.30 + rng.uniform(-0.08, 0.15), 0.58, 0.16)
        picture = np.where(inside[..., None], _tint(colour, shade), picture)
    return picture


def _pebbles(rng: Generator, size: int) -> Picture:
    nearest, second, cell = _cells(rng, size, number=int(rng.integers(35, 70)))
    dome = np.clip((second - nearest) / second, 0, 1)
    grey = rng.uniform(0.45, 0.95, 128)[cell] * (0.25 + 0.9 * np.sqrt(dome)) + 0.04 * _fractal(rng, size, first=8)
    warmth = rng.uniform(-0.05, 0.05, 128)[cell]
    return np.stack([grey * (0.80 + warmth), grey * 0.79, grey * (0.80 - warmth)], axis=-1)


def _waves(rng: Generator, size: int) -> Picture:
    x, y = _plane(rng, size, tilt=0.2)
    distance = 1 / (0.55 - 0.5 * y + 0.35)  # far waves are closer together
    phase = math.tau * rng.uniform(4, 7) * distance + 1.1 * _fractal(rng, size, first=3)
    crest = 0.5 + 0.35 * np.sin(phase) + 0.15 * np.sin(2.3 * phase + 9 * x)
    foam = np.clip(crest - 0.88, 0, 1)[..., None] * 5
    return _tint((0.06, 0.30, 0.46), 0.6 + 0.4 * crest) + _tint((0.10, 0.22, 0.22), crest) + foam * 0.5


def _wood(rng: Generator, size: int) -> Picture:
    x, y = _plane(rng, size, tilt=0.1)
    warp = _fractal(rng, size, first=2, octaves=2)
    grain = np.sin(math.tau * (rng.uniform(5, 9) * x + 0.45 * warp))
    pores = _stretched(_fractal(rng, size, first=16, octaves=2))
    planks = _to_edge(x * rng.uniform(1.5, 3) + rng.uniform()) > 0.02
    tone = (0.9 + 0.16 * grain + 0.08 * pores + 0.05 * y) * np.where(planks, 1, 0.4)
    return _tint((0.60, 0.40, 0.22), tone)


def _clouds(rng: Generator, size: int) -> Picture:
    _, y = _plane(rng, size, tilt=0.1)
    density = _fractal(rng, size, first=2, octaves=5) + rng.uniform(-0.3, 0.5)
    cover = np.clip(0.5 + 0.9 * density, 0, 1)[..., None]
    sky = np.array((0.25, 0.48, 0.85)) + (0.5 + y)[..., None] * np.array((0.30, 0.22, 0.08))
    cloud = _tint((1.0, 1.0, 1.0), 0.95 - 0.12 * np.clip(density, 0, 2))
    picture: Picture = sky * (1 - cover) + cloud * cover
    return picture


def _berries(rng: Generator, size: int) -> Picture:
    nearest, _, cell = _cells(rng, size, number=int(rng.integers(22, 40)))
    radius = rng.uniform(0.07, 0.095)
    dome = np.sqrt(np.clip(1 - (nearest / radius) ** 2, 0, 1))
    berry = _tint((0.75, 0.08, 0.12), (0.35 + 0.65 * dome) * rng.uniform(0.7, 1.1, 128)[cell])
    berry = berry + (np.clip(dome - 0.96, 0, 1) * 12)[..., None]
    ground = _tint((0.16, 0.28, 0.10), 1 + 0.35 * _fractal(rng, size))
    return np.where((nearest < radius)[..., None], berry, ground)


def _fabric(rng: Generator, size: int) -> Picture:
    x, y = _plane(rng, size, tilt=0.2)
    threads = rng.uniform(9, 14)
    u, v = x * threads + 0.06 * _fractal(rng, size), y * threads + 0.06 * _fractal(rng, size)
    over = (np.floor(u) + np.floor(v)) % 2 == 0
    roundness = np.where(over, np.sin(math.pi * (u % 1)), np.sin(math.pi * (v % 1)))
    warp, weft = _tint((0.45, 0.25, 0.62), 0.4 + 0.7 * roundness), _tint((0.80, 0.66, 0.88), 0.4 + 0.6 * roundness)
    return np.where(over[..., None], warp, weft)


# The order is part of the result: the first `num_classes` are made. Any neighbours differ in colour and in texture.
_SCENES: Mapping[str, Callable[[Generator, int], Picture]] = {
    "bricks": _bricks,
    "leaves": _leaves,
    "pebbles": _pebbles,
    "waves": _waves,
    "wood": _wood,
    "clouds": _clouds,
    "berries": _berries,
    "fabric": _fabric,
}


def _plane(rng: Generator, size: int, *, tilt: float) -> tuple[Picture, Picture]:
    """Coordinates of the pixels, about -0.5..0.5, turned by up to `tilt` radians and moved."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(-tilt, tilt)
    turned_x = x * math.cos(angle) - y * math.sin(angle)
    turned_y = x * math.sin(angle) + y * math.cos(angle)
    return turned_x + rng.uniform(-0.05, 0.05), turned_y + rng.uniform(-0.05, 0.05)


def _fractal(rng: Generator, size: int, *, first: int = 4, octaves: int = 4) -> Picture:
    """1/f noise, as in natural scenes: mean 0, standard deviation 1. `first` is the number of bumps a side."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        grid = rng.normal(size=(first * 2**octave + 1,) * 2).astype(np.float32)
        layer = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float64) / 2**octave
    noise: Picture = (total - total.mean()) / (total.std() + 1e-9)
    return noise


def _cells(rng: Generator, size: int, *, number: int) -> tuple[Picture, Picture, NDArray[np.intp]]:
    """Voronoi cells of `number` points: distance to the nearest and second point, and the nearest one's index."""
    x, y = _plane(rng, size, tilt=0.0)
    side = math.ceil(math.sqrt(number))  # a jittered grid: points neither heap up nor leave holes
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    points = (places + rng.uniform(0.1, 0.9, places.shape)) / side * 1.2 - 0.6
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    order = np.argsort(distance, axis=-1, kind="stable")[..., :2]
    nearest, second = np.moveaxis(np.take_along_axis(distance, order, axis=-1), -1, 0)
    return nearest, second, order[..., 0]


def _stretched(plane: Picture) -> Picture:
    """The plane's upper rows drawn out to its full height: bumps become streaks."""
    rows = np.linspace(0, plane.shape[0] / 10, plane.shape[0]).astype(int)
    streaks: Picture = plane[rows]
    return streaks


def _to_edge(u: Picture) -> Picture:
    """Distance to the nearest whole number."""
    return np.abs(u - np.round(u))


def _tint(colour: Colour, tone: Picture) -> Picture:
    """(H, W) brightness times an RGB colour -> (H, W, 3)."""
    picture: Picture = tone[..., None] * np.array(colour)
    return picture
