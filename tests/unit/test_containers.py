"""Pixels decide: whatever else lies in a file, however broken, the picture is the same; without pixels it is none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from image_classifier.contract.errors import ImageError
from image_classifier.vision.containers import PNG_SIGNATURE, bare
from image_classifier.vision.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


PNG, JPEG, PROGRESSIVE = encoded("PNG"), encoded("JPEG", quality=95), encoded("JPEG", progressive=True)
WEBP = encoded("WEBP", lossless=True)
WITH_METADATA = encoded("WEBP", lossless=True, icc_profile=b"x" * 300, xmp=b"y" * 31)
PLAIN = {"JPEG": JPEG, "progressive": PROGRESSIVE, "PNG": PNG, "WebP": WEBP}
MANY = 50_000_000  # bytes that a few thousand unpack to


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(content)) + content


def chunk(name: bytes, content: bytes, *, wrong_sum: bool = False) -> bytes:
    checksum = zlib.crc32(name + content) ^ wrong_sum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def chunk_of(length: int, name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", length) + name + content + bytes(4)


def surrounded() -> Iterator[tuple[str, str, bytes]]:
    """Name, key of PLAIN, and the same picture with something around it."""
    for key in ("JPEG", "progressive"):
        plain = PLAIN[key]
        segments = {
            "a short JFIF": segment(0xE0, b"JFIF"),
            "a broken EXIF": segment(0xE1, b"Exif\0\0" + b"\xff" * 92),
            "a broken profile": segment(0xE2, b"ICC_PROFILE\0\x05\x01" + b"x" * 24),
            "a broken MPF": segment(0xE2, b"MPF\0" + b"x" * 34),
            "a broken Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff" + b"x" * 16),
            "a short Adobe": segment(0xEE, b"Adobe"),
            "large comments": segment(0xFE, b"c" * 65_533) * 100,
        }
        for name, extra in segments.items():
            yield f"{key}, {name}", key, plain[:2] + extra + plain[2:]
        yield f"{key}, no end marker", key, plain[:-2]
        yield f"{key}, bytes behind the end", key, plain + b"x" * 1000
        yield f"{key}, another picture behind the end", key, plain + encoded("JPEG", quality=10)
        yield f"{key}, a comment longer than the file", key, plain[:2] + b"\xff\xfe\xff\xffshort" + plain[2:]
        yield f"{key}, no end marker but a segment", key, plain[:-2] + segment(0xE5, b"x") + b"x" * 99
    yield "JPEG, an unknown segment behind the pixels", "JPEG", JPEG[:-2] + b"\xff\x02\0\4xx\xff\xd9"
    unpacked = zlib.compress(b"a" * MANY)
    chunks = {
        "a compressed text": chunk(b"zTXt", b"k\0\0" + unpacked),
        "an international text": chunk(b"iTXt", b"k\0\1\0\0\0" + unpacked),
        "many texts": chunk(b"tEXt", b"k\0" + b"a" * 900_000) * 80,
        "a compressed profile": chunk(b"iCCP", b"x\0\0" + unpacked),
        "a broken profile": chunk(b"iCCP", b"x\0\0garbage"),
        "a wrong checksum": chunk(b"tEXt", b"k\0v", wrong_sum=True),
        "a broken EXIF": chunk(b"eXIf", b"\xff" * 40),
        **{f"a short {name.decode()}": chunk(name, b"\0") for name in (b"gAMA", b"pHYs", b"tRNS", b"cHRM", b"acTL")},
        "an empty sRGB": chunk(b"sRGB", b""),
        "an unknown chunk": chunk(b"zzZz", b"q"),
    }
    for name, extra in chunks.items():
        yield f"PNG, {name}", "PNG", PNG[:33] + extra + PNG[33:]
    for length in (50_000, 2**32 - 1):
        yield f"PNG, a text of {length} bytes in 3", "PNG", PNG[:33] + chunk_of(length, b"tEXt", b"k\0v") + PNG[33:]
    for name, broken in (
        ("a profile of another length", WITH_METADATA.replace(b"ICCP\x2c\1", b"ICCP\x2a\1")),
        ("a wrong length", WITH_METADATA[:4] + b"\xff\xff\0\0" + WITH_METADATA[8:]),
        ("metadata cut off", WITH_METADATA[:-20]),
        ("bytes behind the end", WITH_METADATA + b"x" * 999),
    ):
        yield f"WebP, {name}", "WebP", broken
    yield "PNG, bytes behind the end", "PNG", PNG + b"x" * 1000
    yield "PNG, no end", "PNG", PNG[:-12]


SURROUNDED = {name: (key, data) for name, key, data in surrounded()}


@pytest.mark.parametrize(("key", "data"), SURROUNDED.values(), ids=SURROUNDED)
def test_what_is_no_pixel_changes_nothing(key: str, data: bytes) -> None:
    assert decode(data).tobytes() == decode(PLAIN[key]).tobytes()


@pytest.mark.parametrize("key", ["JPEG", "progressive"])
@pytest.mark.parametrize("lost", [3, 10, 100, 1000])
def test_a_jpeg_that_lacks_pixels_is_damaged(key: str, lost: int) -> None:
    with pytest.raises(ImageError, match="truncated"):
        decode(PLAIN[key][:-lost])


def test_a_progressive_jpeg_without_its_last_passes_is_damaged() -> None:
    """It ends between two passes: all that is there is whole, and yet bits of its pixels are missing."""
    starts = [at for at in range(len(PROGRESSIVE)) if PROGRESSIVE.startswith(b"\xff\xda", at)]
    for start in starts[1:]:
        with pytest.raises(ImageError, match="truncated"):
            decode(PROGRESSIVE[:start])


@pytest.mark.parametrize("lost", [100, 1000])
def test_segments_in_the_place_of_pixels_do_not_complete_a_jpeg(lost: int) -> None:
    with pytest.raises(ImageError):
        decode(PROGRESSIVE[:-lost] + segment(0xE5, b"x") + b"x" * 5000)


@pytest.mark.parametrize("length", range(len(PNG_SIGNATURE), len(PNG_SIGNATURE) + 40))
def test_a_png_cut_in_its_header_is_damaged(length: int) -> None:
    with pytest.raises(ImageError):
        decode(PNG[:length])


def test_a_png_that_lacks_pixels_or_has_others_is_damaged() -> None:
    start = PNG.index(b"IDAT") + 4
    for data in (PNG[: len(PNG) // 2], PNG[: start + 40] + bytes([PNG[start + 40] ^ 1]) + PNG[start + 41 :]):
        with pytest.raises(ImageError, match=r"damaged|truncated"):
            decode(data)


def test_broken_metadata_does_not_cost_the_orientation_or_the_colours() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded("JPEG", quality=95, exif=exif)
    broken = turned[:2] + segment(0xE0, b"JFIF") + turned[2:]
    assert decode(broken).tobytes() == decode(turned).tobytes() != decode(JPEG).tobytes()
    stream = io.BytesIO()
    PICTURE.convert("CMYK").save(stream, "JPEG")
    cmyk = stream.getvalue()
    broken = cmyk[:2] + segment(0xE0, b"JFIF") + cmyk[2:]
    assert decode(broken).tobytes() == decode(cmyk).tobytes()


XMP = b'<x:xmpmeta tiff:Orientation="6"/>'


def turned_files() -> dict[str, tuple[bytes, bytes]]:
    """A picture that its metadata turns, and the same with other metadata that is broken."""
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = JPEG[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP) + JPEG[2:]
    png, webp = encoded("PNG", exif=exif), encoded("WEBP", lossless=True, exif=exif)
    text = PNG[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) + PNG[33:]
    bad = chunk(b"tEXt", b"k\0v", wrong_sum=True)
    return {
        "XMP of a JPEG": (jpeg, jpeg[:2] + segment(0xE0, b"JFIF") + jpeg[2:]),
        "EXIF of a PNG": (png, png[:33] + bad + png[33:]),
        "XMP of a PNG": (text, text[:33] + bad + text[33:]),
        "EXIF of a WebP": (webp, webp[:4] + b"\xff\xff\0\0" + webp[8:]),
    }


@pytest.mark.parametrize(("whole", "broken"), turned_files().values(), ids=turned_files())
def test_broken_metadata_does_not_cost_the_orientation_that_other_metadata_has(whole: bytes, broken: bytes) -> None:
    assert decode(broken).size == decode(whole).size == PICTURE.size[::-1]
    assert decode(broken).tobytes() == decode(whole).tobytes()


HELD = {"JPEG": "1 L RGB CMYK", "PNG": "1 L LA P RGB RGBA", "WEBP": "L LA P RGB RGBA"}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in HELD.items() for mode in modes.split()])
def test_the_pixels_alone_are_the_same_picture(kind: str, mode: str) -> None:
    stream = io.BytesIO()
    PICTURE.convert(mode).save(stream, kind, icc_profile=b"x" * 70_000)
    data = stream.getvalue()
    (alone,) = bare(data)
    assert len(alone) < len(data) - 60_000 or kind == "PNG"  # its profile is compressed
    assert decode(alone).tobytes() == decode(data).tobytes()
