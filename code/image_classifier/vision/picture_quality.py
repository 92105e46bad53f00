"""Pictures that a person would throw away: blank, dark, washed out, blurred, or of a size or shape unlike the others.

A limit is a stated one and is not held against a data set that is like that as a whole: of what a quarter of the
pictures has, it is said once that it is taken for what they are meant to be. What the limits find and what they accuse
wrongly: benchmarks/results/data_doctor.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classifier.vision.findings import DataFinding

BLANK, DARK, OVEREXPOSED, PALE, BLURRED = "blank", "dark", "overexposed", "pale", "blurred"
ODD_SIZE, ODD_SHAPE = "odd_size", "odd_shape"

BLANK_DEVIATION = 4.0  # of 255 levels, of a copy of 32 pixels a side, in which noise is averaged away
DARK_LEVEL = 0.32  # of the brightest hundredth, 0..1: CleanVision's limit for dark pictures
BRIGHT_LEVEL = 0.95  # of the darkest twentieth, 0..1: CleanVision's for light ones
PALE_SPAN = 0.25  # between the darkest and the brightest hundredth: two bits of eight unused
BLUR_LIMIT = 0.48  # of Crete's measure in the sharpest part; photographs reach 0.45, blurred by 3 of 256 pixels 0.50 up
SHAPE_LIMIT = 0.35  # short side by long side: CleanVision's
SHAPE_RATIO = 2.0  # to the median shape as well: among panoramas a panorama is not odd
SIZE_RATIO = 4.0  # of the side of a square with as many pixels, to the median one
USUAL_SHARE = 0.25  # what so many pictures have is how they are meant

_SIDE = 256  # pixels of the short side that a picture is looked at with: hardly more than a network sees
_LONGEST = 4 * _SIDE  # of the long side, of a strip
_LEAST_SIDE = 64  # shorter pictures have no pixels to tell blur from
_BOX = 9  # pixels of Crete's blur
_TILES = 4  # a side: a sharp flower before a soft background is no blurred picture
_LEAST_CHANGE = 1.0  # levels from pixel to pixel, on the mean of a part: with less there is no edge in it
_SMALL = 32

_SENTENCES: Mapping[str, tuple[str, str]] = {
    BLANK: ("pictures that show nothing but noise", "was the lens covered? remove them"),
    DARK: ("dark pictures", "brighten them, take them again, or remove them"),
    OVEREXPOSED: ("overexposed pictures", "take them again, or remove them"),
    PALE: ("washed-out pictures", "raise their contrast, or remove them"),
    BLURRED: ("blurred pictures", "take them again, or remove them; small pictures made larger are blurred, too"),
    ODD_SHAPE: ("pictures of an odd shape", "are they cut-outs, strips, banners? crop or remove them"),
    ODD_SIZE: ("pictures of an odd size", "are they icons, scans, screenshots? use originals like the others"),
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What is measured of one picture.

    Args:
        size: (width, height) in pixels.
        darkest, dark, brightest: the brightness below which a hundredth, a twentieth and 99 hundredths lie, 0..1.
        deviation: standard deviation of the brightness of a copy of 32 pixels a side, 0..255.
        blur: of the sharpest part, 0 (sharp) .. 1; 0 of a picture that is too small to tell.
    """

    size: tuple[int, int]
    darkest: float
    dark: float
    brightest: float
    deviation: float
    blur: float

    @property
    def fault(self) -> str:
        """The first of DARK, OVEREXPOSED, BLANK, PALE and BLURRED that it is; empty for a good picture."""
        if self.brightest < DARK_LEVEL:
            return DARK
        if self.dark > BRIGHT_LEVEL:
            return OVEREXPOSED
        if self.deviation < BLANK_DEVIATION:
            return BLANK
        if self.brightest - self.darkest < PALE_SPAN:
            return PALE
        return BLURRED if self.blur > BLUR_LIMIT else ""


def quality_of(picture: Image.Image) -> Quality:
    """Measures an RGB picture."""
    width, height = picture.size
    scale = min(1.0, _SIDE / min(width, height))
    box = Image.Resampling.BOX
    grey = picture.resize((_scaled(width, scale), _scaled(height, scale)), box).convert("L")
    levels = np.asarray(grey)
    darkest, dark, brightest = np.percentile(levels, (1, 5, 99)) / 255
    small = np.asarray(grey.resize((_SMALL, _SMALL), box), np.float32)
    return Quality(
        size=picture.size,
        darkest=float(darkest),
        dark=float(dark),
        brightest=float(brightest),
        deviation=float(small.std()),
        blur=blur_of(levels.astype(np.float32)) if min(levels.shape) >= _LEAST_SIDE else 0.0,
    )


def blur_of(grey: NDArray[np.float32]) -> float:
    """How blurred the sharpest part of a picture is, 0..1, after Crete et al. 2007, "The Blur Effect".

    A blur changes a sharp picture much and a blurred one little: the measure is the share of the changes from pixel to
    pixel that is left after another one. 1 where no part shows an edge.

    Args:
        grey: (H, W) levels, 0..255, at least _BOX a side.
    """
    shares = []
    for along in (grey, grey.T):
        change, kept = _changes(np.ascontiguousarray(along))
        pixels = grey.size / _TILES**2
        enough = change > _LEAST_CHANGE * pixels
        share = np.where(enough, kept / np.maximum(change, 1e-9), 1.0)
        shares.append(share if along is grey else share.T)
    return float(np.maximum(*shares).min())


def quality_findings(found: Mapping[str, Quality]) -> tuple[list[DataFinding], list[DataFinding]]:
    """(warnings, notes): a finding a kind, and what is taken for the way the pictures are meant.

    Args:
        found: file -> its quality; files that show nothing at all are better left out (`contrast_findings`).
    """
    faults: dict[str, list[str]] = {kind: [] for kind in _SENTENCES}
    for name, quality in found.items():
        if quality.fault:
            faults[quality.fault].append(name)
    for kind, name in _odd(found):
        faults[kind].append(name)
    warnings, notes = [], []
    for kind, names in faults.items():
        what, hint = _SENTENCES[kind]
        if not names:
            continue
        if len(names) > USUAL_SHARE * len(found) and kind != BLANK:
            message = f"{what}: {len(names)} of {len(found)}, taken for what the pictures are meant to be"
            notes.append(DataFinding(kind=kind, message=message, files=tuple(names)))
        else:
            warnings.append(DataFinding(kind=kind, message=f"{what}: {len(names)}", hint=hint, files=tuple(names)))
    return warnings, notes


def _odd(found: Mapping[str, Quality]) -> Iterator[tuple[str, str]]:
    """(kind, file) of sizes and shapes that lie far from the set's median."""
    sides = {name: math.sqrt(math.prod(quality.size)) for name, quality in found.items()}
    shapes = {name: min(quality.size) / max(quality.size) for name, quality in found.items()}
    side, shape = _median(list(sides.values())), _median(list(shapes.values()))
    for name in found:
        if shapes[name] < min(SHAPE_LIMIT, shape / SHAPE_RATIO):
            yield ODD_SHAPE, name
        if not 1 / SIZE_RATIO <= sides[name] / side <= SIZE_RATIO:
            yield ODD_SIZE, name


def _changes(grey: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(_TILES, _TILES) sums of the changes from row to row, and of what another blur along them leaves of these."""
    padded = np.pad(grey, ((_BOX // 2 + 1, _BOX // 2), (0, 0)), mode="edge").cumsum(0, dtype=np.float64)
    blurred = (padded[_BOX:] - padded[:-_BOX]) / _BOX
    change = np.abs(np.diff(grey, axis=0))
    after = np.abs(np.diff(blurred, axis=0)).astype(np.float32)
    return _tiles(change), _tiles(np.minimum(change, after))


def _tiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = (size // _TILES for size in values.shape)
    cut = values[: height * _TILES, : width * _TILES]
    sums: NDArray[np.float32] = cut.reshape(_TILES, height, _TILES, width).sum((1, 3))
    return sums


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 1.0


def _scaled(size: int, scale: float) -> int:
    return max(1, min(round(size * scale), _LONGEST))
