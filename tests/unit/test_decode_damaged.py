"""Files of every accepted format, damaged at random: each is decoded or refused in a sentence, whatever its bytes."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_classifier.contract.errors import RequestError
from image_classifier.contract.image_formats import FORMATS
from image_classifier.vision.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

TRIALS = 300  # of each format; twenty times as many found nothing more
NUMBERS = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff", b"\0\0")  # where lengths and sizes stand


def pictures() -> Mapping[str, list[bytes]]:
    """Files by Pillow's name of the format: several kinds of each."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((60, 44), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    extra: dict[str, Any] = {"exif": exif, "icc_profile": b"x" * 700}
    more = {"save_all": True, "append_images": [picture.rotate(180)]}
    kinds: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
        "JPEG": [
            *(("JPEG", mode, {"progressive": way}) for mode in ("L", "RGB", "CMYK") for way in (False, True)),
            ("JPEG", "RGB", extra),
            ("JPEG", "RGB", {"restart_marker_blocks": 2}),
            ("MPO", "RGB", more),
        ],
        "PNG": [*(("PNG", mode, {}) for mode in ("1", "LA", "P", "RGBA")), ("PNG", "RGB", extra), ("PNG", "RGB", more)],
        "WEBP": [
            *(("WEBP", mode, {"lossless": way}) for mode in ("RGB", "RGBA") for way in (False, True)),
            ("WEBP", "RGB", extra),
            ("WEBP", "RGB", more),
        ],
        "BMP": [("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
        "GIF": [*(("GIF", mode, {}) for mode in ("1", "L", "P", "RGB")), ("GIF", "RGB", more)],
        "TIFF": [
            *(("TIFF", mode, {}) for mode in ("1", "LA", "P", "RGB", "CMYK")),
            *(("TIFF", "RGB", {"compression": kind}) for kind in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")),
            ("TIFF", "RGB", {"exif": exif}),
        ],
        "AVIF": [("AVIF", "RGB", {}), ("AVIF", "RGBA", {}), ("AVIF", "RGB", extra), ("AVIF", "RGB", more)],
    }
    files: dict[str, list[bytes]] = {}
    for name, variants in kinds.items():
        for kind, mode, options in variants:
            stream = io.BytesIO()
            picture.convert(mode).save(stream, kind, **options)
            files.setdefault(name, []).append(stream.getvalue())
    return files


def damaged(whole: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Cut, flipped, repeated, spliced with another file, or with a number somewhere that is far too large."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(1 + (len(data) if rng.random() < 0.5 else min(len(data), 600)))
        other = rng.choice(others)
        start = rng.randrange(len(other))
        match rng.randrange(6):
            case 0:
                del data[at:]
            case 1:
                data[at : at + 1] = rng.randbytes(1)
            case 2:
                data[at:at] = data[at : at + rng.choice((4, 64, 2000))] * rng.choice((1, 3, 50))
            case 3:
                data[at:at] = other[start : start + rng.choice((20, 500, 5000))]
            case 4:
                number = rng.choice(NUMBERS)
                data[at : at + len(number)] = number
            case _:
                del data[at : at + rng.choice((1, 4, 100))]
    return bytes(data)


@pytest.mark.parametrize("kind", [each.pillow for each in FORMATS])
def test_damaged_files_are_decoded_or_refused_in_a_sentence(kind: str) -> None:
    files, rng, outcomes = pictures()[kind], random.Random(kind), Counter[str]()
    for _ in range(TRIALS):
        data = damaged(rng.choice(files), files, rng)
        try:
            outcomes[decode(data, min_side=rng.choice((None, 16))).mode] += 1
        except RequestError:
            outcomes["refused"] += 1
    assert set(outcomes) == {"RGB", "refused"}
