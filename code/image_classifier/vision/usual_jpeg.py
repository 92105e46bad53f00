"""JPEGs as cameras, phones and programs write them, decoded by libjpeg-turbo's own interface.

Pillow goes through the same library row by row and keeps four bytes a pixel, of which a copy takes three. What is done
here is what it does there, pixel for pixel; whatever is not plain is left to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from image_classifier.vision.containers import JPEG_SIGNATURE, plain_frame

try:
    import simplejpeg
except ImportError:  # on a machine that nobody installs anything on; Pillow's pixels are the same
    simplejpeg = None

VERSION: str = simplejpeg.__version__ if simplejpeg else ""
MOST_BYTES = 4 * 1024**2  # of a file that is read before it is known what it is
MOST_PIXELS = 8_000_000  # a larger picture should not be held twice when a picture of Pillow's is made of it
_SMALLEST_SCALED = 8  # pixels a side: two of libjpeg's scales would make the same size of a smaller one
_COMPONENTS = (1, 3)  # grey, or three colours
_SCALES = (8, 4, 2)  # Pillow's, of libjpeg's sixteen


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits, grey or in three colours, all in one sequential pass, that nothing says to
    turn or to take for other colours; None for every other file."""
    frame = plain_frame(data) if data.startswith(JPEG_SIGNATURE) else None
    if frame is None or frame.bits != 8 or frame.components not in _COMPONENTS or not frame.width or not frame.height:
        return None
    return frame.width, frame.height


def scaled_down(size: tuple[int, int], min_side: int | None) -> tuple[int, int]:
    """Width and height of a JPEG decoded at 1/8, 1/4 or 1/2, the smallest that leaves no side shorter than `min_side`;
    itself where there is none, as Pillow's `draft` has it."""
    most = min(size) // min_side if min_side else 1
    scale = next((each for each in _SCALES if each <= most), 1)
    width, height = ((side + scale - 1) // scale for side in size)
    return width, height


def pixels_of(data: bytes, full: tuple[int, int], wanted: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A JPEG that is grey or RGB, of `full` width and height, as (H, W, 3) uint8 RGB of the `wanted` ones; None where
    libjpeg wonders at the bytes or fails, so that it is for Pillow to say what they are."""
    width, height = wanted
    least = {} if wanted == full else {"min_width": width, "min_height": height}  # makes it choose that very scale
    if not simplejpeg or width * height > MOST_PIXELS or (least and min(wanted) < _SMALLEST_SCALED):
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", **least)
    except (ValueError, MemoryError):
        return None
    return pixels if pixels.shape == (height, width, 3) else None
