"""Every accepted format through all that is done to a file: checked, trained on, stored in a model, asked about.

A format that is added to the list is tested here without another line.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from image_classifier.contract.errors import ImageError, UnsupportedMedia
from image_classifier.contract.image_formats import (
    FORMATS,
    JPEG,
    MEDIA_TYPES,
    OTHER_KINDS,
    OTHER_SUFFIXES,
    SUFFIXES,
    ImageFormat,
    OtherKind,
)
from image_classifier.launch.client import find_images, read_image
from image_classifier.serving.codec import parse_request
from image_classifier.training.data import ImageDataset
from image_classifier.training.golden import MAX_BYTES, golden_samples
from image_classifier.vision.artifact import load_model, pack, unpack, write_model
from image_classifier.vision.check import check_dataset
from image_classifier.vision.decode import decode
from image_classifier.vision.folders import ImageFolders, find_channels, scan
from image_classifier.vision.preprocess import Preprocessing, load

README = Path(__file__).parents[2] / "README.md"
SIZE = (96, 80)
SIDE = 32  # pixels that a network sees
CLASSES = ("cat", "dog")
LARGE = "00"  # among the first when sorted


def encoded(image: Image.Image, image_format: ImageFormat) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format.pillow)
    return stream.getvalue()


def picture(image_format: ImageFormat, seed: int) -> bytes:
    """Soft shapes in the given format."""
    blobs = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return encoded(Image.fromarray(blobs).resize(SIZE, Image.Resampling.BICUBIC), image_format)


def noise(image_format: ImageFormat) -> bytes:
    """A picture of more than MAX_BYTES in any format: it hardly compresses."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), image_format)


@pytest.fixture(params=FORMATS, ids=[each.name for each in FORMATS])
def image_format(request: pytest.FixtureRequest) -> ImageFormat:
    found: ImageFormat = request.param
    return found


@pytest.fixture
def data(image_format: ImageFormat, tmp_path: Path) -> Path:
    """Images of both classes in train, valid and test, all of the one format, under each of its suffixes."""
    root, seed = tmp_path / "data", 0
    for split, count in (("train", 12), ("valid", 2), ("test", 2)):
        for name in CLASSES:
            for number in range(count):
                suffix = image_format.suffixes[number % len(image_format.suffixes)]
                path = root / split / name / f"{number}{suffix.upper() if number % 3 == 0 else suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(image_format, seed := seed + 1))
    return root


def scanned(data: Path) -> ImageFolders:
    return scan(find_channels(data), valid_fraction=0.2, seed=0)


class Tiny(nn.Module):
    """Any network with an output a class."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE * SIDE, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(images.flatten(1))
        return result


def test_its_files_are_decoded(data: Path) -> None:
    paths = scanned(data).train.paths
    assert [(decode(path).mode, decode(path.read_bytes()).size) for path in paths] == [("RGB", SIZE)] * len(paths)


def test_a_damaged_file_is_told_what_to_send_instead(image_format: ImageFormat) -> None:
    with pytest.raises(ImageError):
        decode(picture(image_format, 0)[:40])
    with pytest.raises(ImageError) as caught:
        decode(b"a text")
    assert image_format.name in caught.value.hint


def test_a_data_set_of_it_is_found_healthy_and_complete(data: Path) -> None:
    report = check_dataset(data)
    assert (report.errors, report.warnings, report.num_images) == ((), (), 32)
    assert report.smallest == report.largest == SIZE


def test_training_reads_its_files(data: Path) -> None:
    samples = ImageDataset(scanned(data).train, Preprocessing.for_image_size(SIDE), augment="standard")
    assert [samples[1, index].reason for index in range(len(samples))] == [""] * 24


def test_its_files_become_golden_samples_of_a_model_that_is_packed_and_read(
    image_format: ImageFormat, data: Path, tmp_path: Path
) -> None:
    """What is written at the very end of a training."""
    preprocessing = Preprocessing.for_image_size(SIDE)
    (data / "test" / CLASSES[0] / f"{LARGE}{image_format.suffixes[0]}").write_bytes(noise(image_format))
    split = scanned(data).test
    assert split is not None
    samples = golden_samples(Tiny(), split, preprocessing, count=4)
    write_model(
        tmp_path / "model",
        weights={"head": np.zeros(1, np.float32)},
        classes=CLASSES,
        preprocessing=preprocessing,
        golden=samples,
        config={},
        metrics={},
        data_fingerprint="",
        versions={},
    )
    pack(tmp_path / "model", tmp_path / "model.tar.gz")
    artifact = unpack(tmp_path / "model.tar.gz", tmp_path / "unpacked")
    assert artifact.golden == load_model(tmp_path / "model").golden == tuple(samples)
    assert len(artifact.golden) == 4
    assert LARGE in {Path(sample.name).stem for sample in artifact.golden}
    for sample in artifact.golden:
        assert len(sample.image) <= MAX_BYTES
        assert load(sample.image, preprocessing).shape == (3, SIDE, SIDE)
        if Path(sample.name).stem == LARGE:
            assert Path(sample.name).suffix in JPEG.suffixes
        else:
            assert sample.image == (split.root / sample.name).read_bytes()


def test_a_client_sends_its_files_as_a_type_that_the_endpoint_takes(image_format: ImageFormat, data: Path) -> None:
    files = find_images([data / "test"])
    assert len(files) == 4
    for file in files:
        body, content_type, note = read_image(file)
        assert (content_type, note) == (image_format.media_types[0], "")
        assert parse_request({"Content-Type": content_type}, body).image == file.read_bytes()


def test_the_endpoint_takes_all_its_media_types_and_names_them(image_format: ImageFormat) -> None:
    for media_type in image_format.media_types:
        assert parse_request({"Content-Type": f"{media_type.upper()}; charset=x"}, b"x").image == b"x"
    with pytest.raises(UnsupportedMedia) as caught:
        parse_request({"Content-Type": "text/plain"}, b"x")
    assert set(image_format.media_types) <= set(caught.value.hint.replace(",", " ").split())


def test_the_readme_names_its_suffixes(image_format: ImageFormat) -> None:
    (sentence,) = [line for line in README.read_text(encoding="utf-8").splitlines() if "in any case" in line]
    words = set(sentence.replace(",", " ").split())
    assert {suffix.removeprefix(".") for suffix in image_format.suffixes} <= words


def test_suffixes_and_types_are_written_as_they_are_compared_and_name_one_format_each() -> None:
    words = [*SUFFIXES, *MEDIA_TYPES]
    assert words == [word.lower() for word in words]
    assert len(set(words)) == len(words) == sum(len(each.suffixes) + len(each.media_types) for each in FORMATS)
    assert all(suffix.startswith(".") for suffix in SUFFIXES)


def test_what_is_accepted_is_no_other_kind() -> None:
    assert not OTHER_SUFFIXES & set(SUFFIXES)
    assert not any(set(kind.suffixes) & set(SUFFIXES) for kind in OTHER_KINDS)


@pytest.mark.parametrize("kind", OTHER_KINDS, ids=[kind.name for kind in OTHER_KINDS])
def test_other_kinds_are_told_by_their_first_bytes(kind: OtherKind) -> None:
    for offset, signature in kind.signatures:
        with pytest.raises(ImageError, match=f"is {kind.name}, not an image of an accepted format") as caught:
            decode(bytes(offset) + signature + bytes(64))
        assert caught.value.hint


WRITTEN = {"a GIF": "GIF", "a TIFF": "TIFF", "a PDF": "PDF", "an icon": "ICO", "a JPEG 2000": "JPEG2000"}


@pytest.mark.parametrize("kind", [kind for kind in OTHER_KINDS if kind.name in WRITTEN], ids=lambda kind: kind.name)
def test_a_real_file_of_another_kind_is_told(kind: OtherKind) -> None:
    stream = io.BytesIO()
    Image.new("RGB", SIZE).save(stream, WRITTEN[kind.name])
    with pytest.raises(ImageError, match=f"is {kind.name}"):
        decode(stream.getvalue())
