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
from image_classifier.vision.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


PNG, JPEG, PROGRESSIVE = encoded("PNG"), encoded("JPEG", quality=95), encoded("JPEG", progressive=True)
PLAIN = {"JPEG": JPEG, "progressive": PROGRESSIVE, "PNG": PNG}
MANY = 50_000_000  # bytes that a few thousand unpack to


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(content)) + content


def chunk(name: bytes, content: bytes, *, wrong_sum: bool = False) -> bytes:
    checksum = zlib.crc32(name + content) ^ wrong_sum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


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
