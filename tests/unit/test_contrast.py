"""Pictures that show nothing are said, wherever pictures are read: by `check`, in training and by `predict`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import jpeg

from image_classifier.launch.client import read_image
from image_classifier.training.bad_images import BadImages
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.vision.check import check_dataset
from image_classifier.vision.contrast import FAINT, FEW_LEVELS, FLAT, contrast_of
from image_classifier.vision.decode import decode
from image_classifier.vision.folders import find_channels, scan
from image_classifier.vision.preprocess import Preprocessing

RAMP = np.arange(80 * 60).reshape(60, 80)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def grey16(largest: int) -> Image.Image:
    return Image.fromarray((RAMP % (largest + 1)).astype(np.uint16))


def rgb16(largest: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write: its chunks by hand."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = np.repeat((RAMP % (largest + 1)).astype(">u2")[..., None], 3, 2)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 80, 60, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    )


def dot(size: int) -> Image.Image:
    """White, but for one black pixel where no sample looks first."""
    picture = Image.new("RGB", (size, size), "white")
    picture.putpixel((size - 1, size - 2), (0, 0, 0))
    return picture


def transparent() -> Image.Image:
    picture = Image.open(io.BytesIO(jpeg(1)))
    picture.putalpha(0)
    return picture


CASES: dict[str, tuple[bytes, str]] = {
    "black": (png(Image.new("RGB", (70, 50))), FLAT),
    "red": (png(Image.new("RGB", (70, 50), "red")), FLAT),
    "one pixel": (png(Image.new("L", (1, 1))), FLAT),
    "transparent all over": (png(transparent()), FLAT),
    "16 bits that go up to 255": (png(grey16(255)), FLAT),
    "16 bits that go up to 4095": (png(grey16(4095)), FAINT),
    "16 bits, colour, that go up to 255": (rgb16(255), FLAT),
    "16 bits, colour, that go up to 4095": (rgb16(4095), FAINT),
    "16 bits, all of them": (png(Image.fromarray((RAMP * 13).astype(np.uint16))), ""),
    "a mask of 20 classes": (png(Image.fromarray((RAMP % 21).astype(np.uint8))), FAINT),
    "a mask of two": (png(Image.fromarray((RAMP % 2).astype(np.uint8))), FAINT),
    "black and white": (png(Image.fromarray(RAMP % 2 == 0)), ""),
    "a dot": (png(dot(500)), ""),
    "one level too few": (png(Image.fromarray((RAMP % (FEW_LEVELS - 1)).astype(np.uint8))), FAINT),
    "just enough": (png(Image.fromarray((RAMP % FEW_LEVELS).astype(np.uint8))), ""),
    "a photo": (jpeg(1), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pictures_that_show_next_to_nothing_are_told_from_others(name: str) -> None:
    source, expected = CASES[name]
    picture = decode(source)
    assert contrast_of(picture) == expected
    assert contrast_of(np.asarray(picture)) == expected


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of photos, one of which holds every case besides."""
    root = tmp_path / "data"
    for name in ("cat", "dog"):
        for number in range(12):
            path = root / "train" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number + 100 * (name == "dog")))
    for name, (source, _) in CASES.items():
        (root / "train" / "cat" / f"{name}.png").write_bytes(source)
    return root


def expected_names(kind: str) -> set[str]:
    return {f"train/cat/{name}.png" for name, (_, each) in CASES.items() if each == kind}


def test_check_names_them_as_warnings(data: Path) -> None:
    report = check_dataset(data)
    by_kind = {finding.kind: finding for finding in report.warnings}
    for kind in (FLAT, FAINT):
        assert set(by_kind[kind].files) == expected_names(kind)
        assert by_kind[kind].message.endswith(f": {len(expected_names(kind))}")


@pytest.mark.parametrize(("augment", "workers"), [("light", 0), ("none", 1)])
def test_training_names_the_same_in_the_same_words(data: Path, augment: str, workers: int) -> None:
    folders = scan(find_channels(data), valid_fraction=0.2, seed=0)
    bad = BadImages(0)
    for split in (folders.train, folders.valid):
        loader = Loader(ImageDataset(split, Preprocessing.for_image_size(32), augment=augment), 8, workers=workers)
        for batch in loader.epoch(1):
            bad.note(split, batch.contrast)
        assert not any(batch.contrast for batch in loader.epoch(2))  # a picture is looked at once
    of_check = {finding.kind: finding for finding in check_dataset(data).warnings if finding.kind in (FLAT, FAINT)}
    findings = bad.new_findings()
    assert {finding.kind: finding.message for finding in findings} == {k: f.message for k, f in of_check.items()}
    assert all(set(finding.files) == set(of_check[finding.kind].files) for finding in findings)
    assert bad.new_findings() == []


@pytest.mark.parametrize("name", CASES)
def test_predict_remarks_on_them(tmp_path: Path, name: str) -> None:
    source, expected = CASES[name]
    path = tmp_path / "a.png"
    path.write_bytes(source)
    data, _, note = read_image(path)
    assert data == source
    assert {FLAT: "one colour", FAINT: "fewer than 32 of the 256 levels", "": ""}[expected] in note
    assert bool(note) == bool(expected)
