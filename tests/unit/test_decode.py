"""Decoding: every accepted kind of file becomes upright 8-bit RGB, everything else a sentence."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classifier.contract.errors import ImageError, TooLarge
from image_classifier.launch.client import read_image
from image_classifier.vision import decode as module
from image_classifier.vision.check import check_dataset
from image_classifier.vision.containers import num_scans
from image_classifier.vision.decode import MAX_HEADER_READS, MAX_PIXELS, MAX_SCANNED, MAX_SCANS, decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as the module asks for outside of pytest

RED, WHITE = (255, 0, 0), (255, 255, 255)


def photo(width: int = 48, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that Pillow cannot write; `rows` with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


HELD = {
    "JPEG": "1 L RGB CMYK",
    "PNG": "1 L LA P RGB RGBA",
    "WEBP": "L LA P RGB RGBA CMYK",
    "BMP": "1 L P RGB RGBA",
    "GIF": "1 L P RGB",
    "TIFF": "1 L LA P RGB RGBA CMYK",
    "AVIF": "L RGB RGBA",
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in HELD.items() for mode in modes.split()])
def test_every_mode_a_format_can_hold_becomes_rgb(kind: str, mode: str) -> None:
    image = photo().convert(mode)
    result = decode(encoded(image, kind))
    assert (result.mode, result.size) == ("RGB", (48, 40))
    difference = np.asarray(result, dtype=int) - np.asarray(image.convert("RGB"), dtype=int)
    assert abs(difference).mean() < 16  # of 255; the worst is a dithered palette in lossy WebP


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    result = np.asarray(decode(encoded(Image.fromarray(ramp), "PNG")))
    assert (result == (ramp >> 8)[..., None]).all()


def test_16_bit_colour_is_scaled() -> None:
    row = b"\0" + struct.pack(">6H", 0xFFFF, 0x8000, 0x0100, 0, 0x4000, 0xFFFF)
    assert np.asarray(decode(png(2, 1, 16, 2, row))).tolist() == [[[255, 128, 1], [0, 64, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_composited_on_white(kind: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    left, right = np.asarray(decode(encoded(image, kind, lossless=True)))[0].tolist()
    assert (tuple(left), tuple(right)) == (RED, WHITE)


def test_half_transparency_is_mixed_with_white() -> None:
    grey = Image.new("LA", (1, 1), (0, 128))
    assert decode(encoded(grey, "PNG")).getpixel((0, 0)) == (127, 127, 127)


def test_transparent_palette_entry_and_key_colour_become_white() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert decode(encoded(palette, "PNG")).getpixel((0, 0)) == RED
    assert decode(encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == WHITE
    grey = png(2, 1, 8, 0, b"\0" + bytes([7, 200]), (b"tRNS", struct.pack(">H", 7)))
    assert np.asarray(decode(grey))[0, :, 0].tolist() == [255, 200]


def test_cmyk_with_adobe_marker_is_not_inverted() -> None:
    """Photoshop stores CMYK inverted and says so in an APP14 segment, which Pillow writes as well."""
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert b"Adobe" in data
    red, green, blue = decode(data).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "stored_as"),
    [
        (0, None),  # not in the standard
        (1, None),
        (2, "FLIP_LEFT_RIGHT"),
        (3, "ROTATE_180"),
        (4, "FLIP_TOP_BOTTOM"),
        (5, "TRANSPOSE"),
        (6, "ROTATE_90"),
        (7, "TRANSVERSE"),
        (8, "ROTATE_270"),
        (9, None),
    ],
)
def test_exif_orientation_is_undone(kind: str, orientation: int, stored_as: str | None) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))  # one corner, so that each of the eight cases looks different
    stored = upright.transpose(Image.Transpose[stored_as]) if stored_as else upright
    result = decode(encoded(stored, kind, exif=with_exif(orientation)))
    assert result.size == (32, 16)
    assert abs(np.asarray(result, dtype=int) - np.asarray(upright, dtype=int)).mean() < 10


def test_broken_exif_does_not_spoil_a_photo() -> None:
    good = encoded(photo(), "JPEG", exif=with_exif(6))
    start = good.index(b"Exif\0\0") + 6
    for length in (0, 3, 8, 20):
        broken = good[: start + length] + b"\xff" * (26 - length) + good[start + 26 :]
        assert decode(broken).mode == "RGB"


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(data).getpixel((4, 4)) == RED


def test_multi_picture_jpeg_of_a_phone_is_a_jpeg() -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo()])
    assert decode(data).size == (48, 40)
    assert decode(data, min_side=10).size == (12, 10)


def test_min_side_never_goes_below() -> None:
    data = encoded(photo(1000, 601), "JPEG")
    assert decode(data, min_side=150).size == (250, 151)
    assert decode(data, min_side=151).size == (500, 301)
    assert decode(data, min_side=5000).size == (1000, 601)
    assert decode(encoded(photo(), "PNG"), min_side=4).size == (48, 40)


def test_a_file_and_its_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a photo.JPG"
    path.write_bytes(encoded(photo(), "JPEG"))
    assert decode(path).tobytes() == decode(path.read_bytes()).tobytes()


def test_faults_of_a_file_are_sentences_that_name_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with pytest.raises(ImageError, match=r"cannot read .*x\.jpg: No such file"):
        decode(path)
    path.mkdir()
    with pytest.raises(ImageError, match=r"cannot read .*x\.jpg: Is a directory"):
        decode(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: b"", "empty"),
        (lambda: b"this is a text named .jpg", "not an image"),
        (lambda: b"  <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (lambda: encoded(photo(), "JPEG")[:-300], "truncated"),
        (lambda: encoded(photo(), "PNG")[:-300], "truncated"),
        (lambda: encoded(photo(), "WEBP")[:-100], "damaged"),
        (lambda: encoded(photo(), "BMP")[:-300], "truncated"),
    ],
)
def test_what_is_not_an_image_is_told_from_what_it_is(make: Callable[[], bytes], sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence) as caught:
        decode(make())
    assert caught.value.hint


def test_size_is_refused_from_the_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    for width, height in ((side + 1, side + 1), (70_000, 2)):
        with pytest.raises(TooLarge, match=f"{width} x {height}"):
            decode(png(width, height, 8, 2, b""))  # there are no pixels that could be decoded
    with pytest.raises(ImageError):
        decode(png(side, side, 1, 0, b""))  # allowed, but without pixels


def test_a_format_whose_decoder_cannot_be_stopped_is_granted_fewer_pixels() -> None:
    too_large = encoded(Image.new("RGB", (5001, 5000)), "WEBP", lossless=True, quality=0, method=0)
    with pytest.raises(TooLarge, match="5001 x 5000") as caught:
        decode(too_large)
    assert caught.value.hint == "at most 100 megapixels, as WebP 25, and 65535 pixels a side are accepted"
    largest = encoded(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True, quality=0, method=0)
    assert decode(largest).size == (5000, 5000)
    with pytest.raises(TooLarge) as caught:
        decode(png(20_000, 5001, 8, 2, b""))
    assert caught.value.hint == "at most 100 megapixels and 65535 pixels a side are accepted"


def test_sixteen_bits_of_any_height_keep_their_upper_byte() -> None:
    rows = np.random.default_rng(0).integers(0, 65536, (150, 7), dtype=np.uint16)
    assert (np.asarray(decode(encoded(Image.fromarray(rows), "PNG")))[..., 0] == rows >> 8).all()


def test_a_file_that_nobody_should_read_as_a_whole_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.write(encoded(photo(), "JPEG")[:500])
        file.truncate(100_000_000_000)  # with no byte on the disk for most of them
    for read in (decode, read_image):
        with pytest.raises(TooLarge, match=r"100\.0 GB"):
            read(path)
    for folder in ("cat", "dog"):
        for number in range(2):
            good = tmp_path / "data" / "train" / folder / f"{number}.png"
            good.parent.mkdir(parents=True, exist_ok=True)
            good.write_bytes(encoded(photo(40 + 8 * number, 40), "PNG"))
    path.rename(tmp_path / "data" / "train" / "cat" / "huge.jpg")
    report = check_dataset(tmp_path / "data")
    assert [each.message for each in report.errors if each.kind == "unreadable"] == [
        "train/cat/huge.jpg: the file has 100.0 GB"
    ]


def test_hostile_bytes_never_raise_anything_else() -> None:
    sources = [
        encoded(photo(), "JPEG", exif=with_exif(6)),
        encoded(photo(), "JPEG", progressive=True),
        encoded(photo().convert("CMYK"), "JPEG"),
        encoded(photo(), "PNG", exif=with_exif(3)),
        encoded(photo().convert("P"), "PNG", transparency=3),
        encoded(photo(), "WEBP"),
        encoded(photo(), "BMP"),
    ]
    rng = random.Random(0)
    outcomes = {"decoded": 0, "refused": 0}
    for data in sources:
        for _ in range(60):
            damaged = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
            for _ in range(min(rng.choice([1, 2, 8]), len(damaged))):
                damaged[rng.randrange(min(len(damaged), rng.choice([64, len(data)])))] = rng.randrange(256)
            try:
                assert decode(bytes(damaged), min_side=16).mode == "RGB"
                outcomes["decoded"] += 1
            except (ImageError, TooLarge):
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def scan_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last pass over the pixels is repeated: a dozen bytes each."""
    whole = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - num_scans(whole)) + whole[-2:]


@pytest.mark.parametrize(("side", "scans"), [(1000, MAX_SCANS + 1), (1000, 500_000), (5000, 61), (10_000, 16)], ids=str)
@pytest.mark.parametrize("min_side", [None, 256])
def test_a_jpeg_that_goes_over_its_pixels_too_often_is_refused_before_it_is_decoded(
    side: int, scans: int, min_side: int | None
) -> None:
    with pytest.raises(TooLarge, match=f"goes over its pixels {scans} times"):
        decode(scan_bomb(side, scans), min_side=min_side)


def test_a_jpeg_of_as_many_passes_as_are_accepted_is_decoded() -> None:
    assert decode(scan_bomb(64, MAX_SCANS)).size == (64, 64)


def test_the_largest_progressive_photo_of_a_camera_is_accepted() -> None:
    side = int(MAX_PIXELS**0.5)
    assert MAX_SCANNED // side**2 >= 14  # the most that programs write
    assert decode(scan_bomb(side, 14), min_side=side // 8).size == (side // 8, side // 8)


def test_passes_are_counted_in_the_picture_only() -> None:
    picture = photo()
    exif = with_exif(1)
    exif[0x010E] = "\xff\xda" * 200  # looks like passes
    plain, progressive = encoded(picture, "JPEG", exif=exif), encoded(picture, "JPEG", progressive=True)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2 * 400) + b"\xff\xda" * 400
    assert num_scans(plain) == 1
    assert num_scans(progressive) == 10
    hidden = plain[:2] + comment + plain[2:] + b"\xff\xda" * 400  # and behind the end
    assert num_scans(hidden) == 1
    assert decode(hidden).tobytes() == decode(plain).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_decoder_that_works_for_too_long_is_stopped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), kind)
    monkeypatch.setattr(module, "MAX_DECODE_S", -1.0)  # its time is up before it begins
    with pytest.raises(TooLarge, match="takes longer to decode"):
        decode(data)


def test_all_attempts_at_a_picture_share_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "thread_time", lambda: next(clock))  # a second at each look
    data = encoded(photo(), "PNG")
    broken = data[:33] + struct.pack(">I", 2) + b"tEXt" + bytes(6) + data[33:]  # read again without its text
    monkeypatch.setattr(module, "MAX_DECODE_S", 100.0)
    assert decode(broken).size == (48, 40)
    used = next(clock)
    monkeypatch.setattr(module, "MAX_DECODE_S", used / 2)
    with pytest.raises(TooLarge, match="takes longer to decode"):
        decode(broken)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 100_000,
        b"\xff\xfe\0\2" * 20_000,
        b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527) + b"\xff\xe1\0\x09Exif\0\0x" * 20_000,
    ],
    ids=["filling", "comments", "EXIF in pieces"],
)
def test_a_jpeg_is_not_read_byte_by_byte_before_its_pixels(header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads three times a segment, once a byte of filling, and joins all pieces of EXIF at each of them."""
    reads = 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal reads
            reads += 1
            return super().read(size)

    plain = encoded(photo(), "JPEG")
    monkeypatch.setattr(module.io, "BytesIO", Counted)
    assert decode(plain[:2] + header + plain[2:]).tobytes() == decode(plain).tobytes()
    assert reads < 2 * MAX_HEADER_READS
