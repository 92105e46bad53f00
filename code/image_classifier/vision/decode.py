"""Bytes or a file to an upright RGB picture: the only place where images are opened.

The input is hostile until proven otherwise: only the accepted formats are tried, the size is checked from the
header before any pixel is decoded, and whatever Pillow raises on broken bytes becomes an ImageError.
"""

from __future__ import annotations

import codecs
import io
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from image_classifier.contract.errors import ClassifierError, ImageError, TooLarge, describe
from image_classifier.contract.image_formats import FORMATS, JPEG, OTHER_KINDS, PILLOW_NAMES, SEND_HINT, format_begun
from image_classifier.contract.text import as_text
from image_classifier.vision.containers import bare, num_scans
from image_classifier.vision.usual_jpeg import MOST_BYTES, pixels_of, plain_size, scaled_down

MAX_PIXELS = 1_000_000 * JPEG.max_megapixels
MAX_SIDE = 65_535  # the longest side a JPEG can have; also keeps crop boxes exact in Pillow's 32-bit floats
# A JPEG goes over all its pixels as often as its bytes say, and an empty pass takes a dozen of them: 6 MB could keep a
# core busy for minutes. Cameras and programs write up to 14 passes. An empty one costs 0.6 ns a pixel, one that refines
# three components in arithmetic coding 1.3 (Pillow 13), so that MAX_SCANNED bounds them at about 2 s.
MAX_SCANS = 256
MAX_SCANNED = 1_500_000_000  # passes times pixels
MAX_FILE_BYTES = (
    1_000_000_000  # of a file; the largest accepted picture has 0.8 GB: a PNG of 16 bits a channel, unpacked
)
MAX_DECODE_S = 10.0  # of this thread's own time on a core; the largest accepted pictures take 2 to 4
MAX_HEADER_READS = 4096  # of a decoder before the pixels; three a segment or chunk: a file has dozens, not thousands
MAX_STRIPS = 200_000  # of a TIFF: three a row of the tallest picture

_ROWS = 64  # taken at a time
_COLOURS = ("RGB", "L")  # Pillow's modes; of others it knows more than libjpeg: CMYK is stored inverted by Adobe

Picture = Image.Image | NDArray[np.uint8]  # RGB; pixels are (H, W, 3) and may be written to

_UPRIGHT: dict[
    object, Image.Transpose
] = {  # EXIF orientation -> what turns the picture upright (EXIF 2.32, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS = 0x0142, 0x0143, (0x0111, 0x0144)  # TIFF 6.0: tags of tiles, of strips and tiles

# Pillow's own limit warns on stderr and then goes on; ours is checked right after the header is read.
Image.MAX_IMAGE_PIXELS = None
# Remarks on broken metadata; the pixels are what counts here, and broken pixels are an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(source: bytes | Path, *, min_side: int | None = None) -> Image.Image:
    """Decodes one picture completely, turns it upright and makes it 8-bit RGB.

    A usual JPEG is decoded by libjpeg-turbo's own interface, every other file by Pillow: the pixels are the same.

    Transparency is composited on white, 16-bit grey is scaled to 8 bits, CMYK is converted, and of an animated file
    the first frame is taken.

    Args:
        source: the file's bytes, or its path.
        min_side: let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as no side gets shorter than this many
            pixels. Saves most of the time and memory of large photographs.

    Raises:
        ImageError: not an image of an accepted format, damaged, truncated, or not a readable file.
        TooLarge: more pixels than the format is granted, a side longer than MAX_SIDE, or more work than any honest
            picture makes.
    """
    picture = _picture(source, min_side)
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def decode_pixels(source: bytes | Path, *, min_side: int | None = None) -> NDArray[np.uint8]:
    """The same as (H, W, 3) uint8 that may be written to, in one copy less. Raises what `decode` raises."""
    picture = _picture(source, min_side)
    return np.array(picture) if isinstance(picture, Image.Image) else picture


def _picture(source: bytes | Path, min_side: int | None) -> Picture:
    what = as_text(source) if isinstance(source, Path) else "the file"
    until = time.thread_time() + MAX_DECODE_S
    check_file_size(source, what)
    try:
        return _read(source, what, min_side, until)
    except ImageError:
        picture = _from_pixels_alone(source, what, min_side, until)
        if picture is None:
            raise
        return picture


def check_file_size(source: bytes | Path, what: str = "the file") -> None:
    """Raises TooLarge for a file that nobody should read as a whole; one that cannot be found is let pass."""
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
    except OSError:
        return
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"{what} has {size / 1e9:.1f} GB", f"at most {MAX_FILE_BYTES / 1e9:g} GB are accepted")


def _from_pixels_alone(source: bytes | Path, what: str, min_side: int | None, until: float) -> Picture | None:
    """A picture that a decoder refused, without all that is no pixel; None when its pixels are what is damaged."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        pictures = [_read(each, what, min_side, until) for each in bare(data)]
    except (OSError, ImageError):
        return None
    agree = pictures and all(np.array_equal(np.asarray(each), np.asarray(pictures[0])) for each in pictures[1:])
    return pictures[0] if agree else None


def _read(source: bytes | Path, what: str, min_side: int | None, until: float) -> Picture:
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
            return _decode(_Metered(stream, what, until), what, min_side)
    except ClassifierError:
        raise
    except OSError as error:
        if error.errno is not None:  # from the file system, not from a decoder
            raise ImageError(f"cannot read {what}: {error.strerror or describe(error)}") from error
        state = "truncated" if "truncated" in str(error) else "damaged"
        raise ImageError(f"{what} is {state}", "replace the file with an intact copy") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes, SyntaxError and MemoryError included
        raise ImageError(f"{what} is damaged", "replace the file with an intact copy") from error


class _Metered:
    """A file that gives out when its decoder has worked for too long: decoders read piece by piece.

    Args:
        until: on this thread's own clock (`time.thread_time`).
    """

    def __init__(self, stream: IO[bytes], what: str, until: float) -> None:
        self._stream = stream
        self._what = what
        self._until = until
        self.reads_left = MAX_HEADER_READS

    def read(self, size: int = -1) -> bytes:
        """As of any file.

        Raises:
            TooLarge: the time is up.
            ImageError: the header is so cut up that reading it would take longer than decoding the picture.
        """
        if self.reads_left <= 0:
            raise ImageError(f"{self._what} is damaged: its header has no end", "save the picture again")
        self.reads_left -= 1
        if time.thread_time() > self._until:
            raise TooLarge(f"{self._what} takes longer to decode than {MAX_DECODE_S:g} s", "save the picture again")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _decode(stream: Any, what: str, min_side: int | None) -> Picture:
    data = _whole(stream, MOST_BYTES)
    if (plain := plain_size(data)) is not None:
        _check_size(JPEG.pillow, *plain, what)
        # without Pillow, which takes a seventh of the time of the pixels to open a file
        if (pixels := pixels_of(data, plain, scaled_down(plain, min_side))) is not None:
            return pixels
    try:
        image: Image.Image = Image.open(stream, formats=PILLOW_NAMES)
    except UnidentifiedImageError as error:
        stream.seek(0)
        raise _not_an_image(stream.read(64), what) from error
    stream.reads_left = sys.maxsize
    width, height = image.size
    _check_size(image.format, width, height, what)
    jpeg = b""
    if isinstance(image, JpegImageFile):  # an MPO is one too
        stream.seek(0)
        jpeg = stream.read()
        _check_scans(jpeg, width * height, what)
    if isinstance(image, TiffImageFile):
        _check_tiff(image, what)
    if min_side is not None:
        image.draft(None, (min_side, min_side))
    # not once more where it has failed
    pixels = pixels_of(jpeg, (width, height), image.size) if jpeg and not plain and image.mode in _COLOURS else None
    if pixels is not None:
        return _upright(image, pixels)
    image.load()
    return _upright(image, _to_rgb(image))


def _whole(stream: Any, most: int) -> bytes:
    """The file's bytes, and the stream at its beginning again; none of a file of more than `most`."""
    num_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    found: bytes = stream.read(num_bytes) if num_bytes <= most else b""
    stream.seek(0)
    return found


def _check_size(pillow_name: str | None, width: int, height: int, what: str) -> None:
    """Raises TooLarge when a picture has more pixels than its format is granted."""
    known = next((each for each in FORMATS if each.pillow == pillow_name), JPEG)  # an MPO is a JPEG
    if width * height > 1_000_000 * known.max_megapixels or max(width, height) > MAX_SIDE:
        most = f"{JPEG.max_megapixels} megapixels"
        if known.max_megapixels < JPEG.max_megapixels:
            most += f", as {known.name} {known.max_megapixels},"
        raise TooLarge(
            f"{what} is too large: {width} x {height} pixels",
            f"at most {most} and {MAX_SIDE} pixels a side are accepted",
        )


def _check_scans(data: bytes, pixels: int, what: str) -> None:
    """Raises TooLarge when a JPEG goes over its pixels too often."""
    allowed = min(MAX_SCANS, MAX_SCANNED // pixels)
    if (scans := num_scans(data)) > allowed:
        raise TooLarge(
            f"{what} goes over its pixels {scans} times, at most {allowed} times are accepted at this size",
            "save the picture again: a usual JPEG needs 1 to 14",
        )


def _check_tiff(image: TiffImageFile, what: str) -> None:
    """Raises ImageError for a TIFF that is no photograph, TooLarge for one whose parts are larger than it could be."""
    if image.mode in {"F", "I"}:
        raise ImageError(f"{what} is a TIFF of 32 bits a pixel, no photograph", "save it with 8 or 16 bits a channel")
    tile = int(image.tag_v2.get(_TILE_WIDTH, 0)) * int(image.tag_v2.get(_TILE_HEIGHT, 0))
    strips = max(len(image.tag_v2.get(tag, ())) for tag in _OFFSETS)
    if tile > 1_000_000 * JPEG.max_megapixels // 4 or strips > MAX_STRIPS:
        raise TooLarge(f"{what} is a TIFF of parts that are too large or too many", "save the picture again")


def _not_an_image(head: bytes, what: str) -> ImageError:
    if not head:
        return ImageError(f"{what} is empty (zero bytes)", SEND_HINT)
    if (begun := format_begun(head)) is not None:
        return ImageError(f"{what} is a {begun.name} file, but damaged", "replace the file with an intact copy")
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for kind in OTHER_KINDS:
        for offset, magic in kind.signatures:
            if head[offset:].startswith(magic) or (offset == 0 and text.startswith(magic.lower())):
                return ImageError(f"{what} is {kind.name}, not an image of an accepted format", SEND_HINT)
    return ImageError(f"{what} is not an image", SEND_HINT)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert would clip: keep the upper byte
        return Image.fromarray(_upper_byte(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_byte(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) of 16 bits -> 8, some rows at a time: numpy would take eight bytes a pixel on the way."""
    made = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _ROWS):
        made[top : top + _ROWS] = (pixels[top : top + _ROWS].astype(np.uint32) >> 8).astype(np.uint8)
    return made


def _upright(image: Image.Image, rgb: Picture) -> Picture:
    """Turns `rgb` by the EXIF orientation of the file it came from; EXIF that cannot be read turns nothing."""
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:  # a photograph with broken metadata is still a good photograph
        method = None
    if method is None:
        return rgb
    return (rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)).transpose(method)
