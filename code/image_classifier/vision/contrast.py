"""Pictures that show nothing, or next to nothing, although every byte of them can be read.

An empty scan, a mask whose values are 0, 1, 2, a 16-bit picture whose values go up to 255 and which is black in 8 bits:
a network sees a wall. They are no error, but nobody puts them among photos on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classifier.contract.errors import ClassifierError
from image_classifier.vision.decode import decode
from image_classifier.vision.findings import DataFinding

FLAT, FAINT = "flat", "faint"
FEW_LEVELS = 32  # of 256: three bits of eight unused; 12 bits of 16 come to 16 levels, fog to some 60
_SAMPLES = 24  # rows and columns that are looked at first: nearly every photo spans FEW_LEVELS in them
_SENTENCES = {
    FLAT: "pictures that are one colour all over",
    FAINT: f"pictures that use fewer than {FEW_LEVELS} of the 256 levels of brightness",
}
_HINT = (
    "are they empty, or masks? 16 bits must all be used: viewers that stretch what they show hide it when they are not"
)


def contrast_of(picture: Image.Image | NDArray[np.uint8]) -> str:
    """FLAT, FAINT or, for a picture that shows something, an empty text.

    Args:
        picture: an RGB image, or (H, W, 3) uint8.
    """
    if isinstance(picture, Image.Image):
        width, height = picture.size
        sample = picture.resize((min(width, _SAMPLES), min(height, _SAMPLES)), Image.Resampling.NEAREST)
    else:
        height, width = picture.shape[:2]
        rows, columns = slice(None, None, max(1, height // _SAMPLES)), slice(None, None, max(1, width // _SAMPLES))
        greens = picture[rows, columns, 1]
        if int(greens.max()) - int(greens.min()) + 1 >= FEW_LEVELS:
            return ""
        sample = Image.fromarray(np.ascontiguousarray(picture[rows, columns]))
    if _levels(sample) >= FEW_LEVELS:
        return ""
    levels = _levels(picture if isinstance(picture, Image.Image) else Image.fromarray(picture))
    return FLAT if levels == 1 else FAINT if levels < FEW_LEVELS else ""


def contrast_of_file(source: bytes | Path, drafted: Image.Image | NDArray[np.uint8]) -> str:
    """The same for a file of which there is a smaller picture already: what looks empty is looked at in full."""
    if not contrast_of(drafted):
        return ""
    try:
        return contrast_of(decode(source))
    except ClassifierError:
        return ""


def contrast_findings(found: Mapping[str, str]) -> Iterator[DataFinding]:
    """A finding for all pictures of one colour, and one for all that use few levels.

    Args:
        found: file -> `contrast_of` it.
    """
    for kind, sentence in _SENTENCES.items():
        files = tuple(name for name, each in found.items() if each == kind)
        if files:
            yield DataFinding(kind=kind, message=f"{sentence}: {len(files)}", hint=_HINT, files=files)


def contrast_note(contrast: str) -> str:
    """The same as a remark about one picture; empty for one that shows something."""
    remarks = {
        FLAT: "the picture is one colour all over",
        FAINT: f"the picture uses fewer than {FEW_LEVELS} of the 256 levels of brightness",
    }
    return remarks.get(contrast, "")


def _levels(picture: Image.Image) -> int:
    """How many levels there are from the darkest to the brightest, in the channel that spans most."""
    extrema: tuple[tuple[int, int], ...] = picture.getextrema()  # type: ignore[assignment]  # an RGB picture's
    return 1 + max(high - low for low, high in extrema)
