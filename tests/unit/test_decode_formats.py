"""TIFF, GIF and AVIF: what is decoded, and what is refused before it costs anything."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classifier.contract.errors import DataError, ImageError, TooLarge
from image_classifier.contract.image_formats import FORMATS
from image_classifier.vision.data_set import open_data
from image_classifier.vision.decode import MAX_STRIPS, decode
from image_classifier.vision.folders import find_channels, scan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as `decode` asks for outside of pytest

RAW, DEFLATE = 1, 8  # TIFF's tag of compression
WIDTH, HEIGHT, BITS, COMPRESSION, COLOURS, STRIPS, SAMPLES, ROWS, SIZES = 256, 257, 258, 259, 262, 273, 277, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 322, 323, 324, 325
LONG = 4  # of TIFF's types


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(tags: dict[int, int], pixels: bytes, *more: tuple[int, int, int, int]) -> bytes:
    """A TIFF that Pillow cannot write: grey, of 8 bits; `more` are whole entries (tag, type, count, value or place)."""
    known = {WIDTH: 10, HEIGHT: 10, BITS: 8, COMPRESSION: RAW, COLOURS: 1, SAMPLES: 1} | tags
    entries = sorted([*((tag, LONG, 1, value) for tag, value in known.items()), *more])
    start = 8 + 2 + 12 * len(entries) + 4
    placed = [(*entry[:3], start) if entry[0] in {STRIPS, TILES} and entry[2] == 1 else entry for entry in entries]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(struct.pack("<HHII", *entry) for entry in placed) + bytes(4) + pixels


def gif(canvas: tuple[int, int], frame: tuple[int, int], blocks: bytes = b"") -> bytes:
    """Two colours, and pixels that end at once."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + blocks
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\2\x44\1\0;"


def turned(orientation: int) -> Image.Exif:
    """EXIF of its own for each picture: to save one may take the orientation out."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "tiff_lzma"])
def test_a_tiff_is_what_was_saved_from_bytes_and_from_a_file(tmp_path: Path, compression: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    data = encoded(image, "TIFF", compression=compression)
    (tmp_path / "a.tif").write_bytes(data)
    for source in (data, tmp_path / "a.tif"):
        assert decode(source).tobytes() == image.tobytes()


def test_sixteen_bits_of_a_tiff_are_scaled_and_thirty_two_are_no_photograph() -> None:
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    assert (np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF")))[..., 0] == ramp >> 8).all()
    for kind in (np.float32, np.int32):
        with pytest.raises(ImageError, match="a TIFF of 32 bits a pixel") as caught:
            decode(encoded(Image.fromarray(ramp.astype(kind)), "TIFF"))
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_once(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (64, 32), "blue")
    image.paste("red", (0, 0, 32, 16))
    found, expected = (np.asarray(decode(encoded(image, each, exif=turned(orientation)))) for each in (kind, "PNG"))
    assert found.shape == expected.shape
    assert abs(found.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF"])
def test_the_first_frame_or_page_is_taken_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "blue")]
    picture = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert abs(np.asarray(picture, int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF"])
def test_half_a_file_is_refused_as_what_it_is(kind: str) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for length in (16, 30, len(data) // 2, len(data) - 20):
        with pytest.raises(ImageError, match=r"damaged|truncated") as caught:
            decode(data[:length])
        assert caught.value.hint == "replace the file with an intact copy"


@pytest.mark.parametrize(
    "data",
    [
        tiff({WIDTH: 60_000, HEIGHT: 60_000, ROWS: 60_000, SIZES: 1, STRIPS: 0}, b"\0"),
        tiff({WIDTH: 8_000, HEIGHT: 8_000, ROWS: 8_000, SIZES: 1, STRIPS: 0}, b"\0"),
        gif((65_535, 65_535), (10, 10)),
        gif((10, 10), (60_000, 60_000)),
        encoded(Image.new("RGB", (5001, 5000)), "AVIF", speed=10, quality=1),
    ],
    ids=["TIFF", "TIFF of more than it is granted", "GIF's canvas", "GIF's frame", "AVIF"],
)
def test_size_is_refused_from_the_header(data: bytes) -> None:
    with pytest.raises(TooLarge, match="is too large: "):
        decode(data)


def test_a_small_tiff_of_a_huge_tile_is_refused() -> None:
    pixels = zlib.compress(bytes(100))
    tags = {COMPRESSION: DEFLATE, TILE_WIDTH: 60_000, TILE_HEIGHT: 60_000, TILES: 0, TILE_SIZES: len(pixels)}
    with pytest.raises(TooLarge, match="parts that are too large"):
        decode(tiff(tags, pixels))


def test_a_tiff_of_more_strips_than_rows_is_refused() -> None:
    count = MAX_STRIPS + 1
    places = bytes(100) + struct.pack("<I", 8) * (count + 100)
    with pytest.raises(TooLarge, match="too many"):
        decode(tiff({ROWS: 1}, places, (STRIPS, LONG, count, 400), (SIZES, LONG, count, 400)))


def test_a_gif_of_comments_only_is_not_read_to_its_end() -> None:
    for blocks in ((b"!\xfe\xff" + bytes(255) + b"\0") * 5000, b"!\xfe" + (b"\xff" + bytes(255)) * 5000 + b"\0"):
        with pytest.raises(ImageError, match="its header has no end"):
            decode(gif((10, 10), (10, 10), blocks))


def test_the_head_of_every_format_alone_is_called_damaged_by_its_name() -> None:
    for each in FORMATS:
        for offset, magic in each.signatures:
            with pytest.raises(ImageError, match=rf"a {each.name} file, but damaged|damaged|truncated"):
                decode(bytes(offset) + magic + bytes(3))


@pytest.mark.parametrize("layout", ["train/{}", "{}"])
def test_photos_of_a_format_that_is_not_accepted_are_answered_with_the_format(tmp_path: Path, layout: str) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / layout.format(name)
        folder.mkdir(parents=True)
        (folder / "1.heic").touch()
    with pytest.raises(DataError, match="no images") as caught:
        open_data(tmp_path, valid_fraction=0.2, test_fraction=0.1, seed=0)
    assert "convert them to JPEG or PNG" in caught.value.hint
    assert "2 .heic" in caught.value.hint
    assert "the layout is" not in caught.value.hint
    if layout.startswith("train"):
        with pytest.raises(DataError, match="no images") as caught:
            scan(find_channels(tmp_path), valid_fraction=0.2, seed=0)
        assert "convert them to JPEG or PNG" in caught.value.hint
