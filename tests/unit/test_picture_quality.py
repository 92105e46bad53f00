"""Bad pictures are named by their fault; good ones, and sets that are meant to be like that, are not accused."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from image_classifier.contract.errors import DataError
from image_classifier.contract.text import plain_name
from image_classifier.vision.check import check_dataset
from image_classifier.vision.picture_quality import BLURRED, DARK, PALE, quality_findings, quality_of
from image_classifier.vision.sample_data import make_sample_data


def photo(seed: int = 0, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Sharp shapes of all sizes on a shaded ground, as photographs have them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    levels = 90.0 + 60.0 * x / size[0] + np.zeros((3, 1, 1))
    for _ in range(60):
        radius, tone = random.uniform(4, 30), random.uniform(0, 255, (3, 1, 1))
        inside = np.hypot(x - random.uniform(0, size[0]), y - random.uniform(0, size[1])) < radius
        levels = np.where(inside, tone, levels)
    return Image.fromarray(levels.astype(np.uint8).transpose(1, 2, 0))


FAULTS: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "as it is": (lambda picture: picture, ""),
    "blurred": (lambda picture: picture.filter(ImageFilter.GaussianBlur(4)), "blurred"),
    "made larger": (lambda picture: picture.resize((24, 18)).resize((640, 480), Image.Resampling.BICUBIC), "blurred"),
    "sharp before a soft ground": (
        lambda picture: Image.composite(
            picture, picture.filter(ImageFilter.GaussianBlur(6)), Image.linear_gradient("L").resize(picture.size)
        ),
        "",
    ),
    "dark": (lambda picture: picture.point(lambda level: level * 0.2), "dark"),
    "overexposed": (lambda picture: picture.point(lambda level: 255 - (255 - level) * 0.04), "overexposed"),
    "washed out": (lambda picture: picture.point(lambda level: 128 + (level - 128) * 0.15), "pale"),
    "noise": (lambda picture: Image.effect_noise(picture.size, 20).convert("RGB"), "blank"),
    "as a poor JPEG": (lambda picture: Image.open(as_jpeg(picture, 30)).convert("RGB"), ""),
    "a strip of one row": (lambda picture: picture.crop((0, 90, 240, 91)), ""),
    "one pixel": (lambda picture: picture.crop((0, 0, 1, 1)), "blank"),
    "a hundred times as wide": (lambda picture: picture.resize((20_000, 200)), "blurred"),
}


def as_jpeg(picture: Image.Image, quality: int) -> io.BytesIO:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream


@pytest.mark.parametrize("name", FAULTS)
def test_a_picture_is_accused_of_what_was_done_to_it(name: str) -> None:
    change, fault = FAULTS[name]
    assert quality_of(change(photo())).fault == fault


def test_what_a_quarter_of_a_set_has_is_how_it_is_meant() -> None:
    good = quality_of(photo())
    dark = quality_of(photo().point(lambda level: level * 0.2))
    night = {f"{index}.jpg": dark for index in range(6)}
    warnings, notes = quality_findings(night | {f"day{index}.jpg": good for index in range(4)})
    assert warnings == []
    assert [(note.kind, note.message) for note in notes] == [
        (DARK, "dark pictures: 6 of 10, taken for what the pictures are meant to be")
    ]
    warnings, notes = quality_findings({"0.jpg": dark} | {f"day{index}.jpg": good for index in range(9)})
    assert ([each.files for each in warnings], notes) == ([("0.jpg",)], [])


def test_odd_is_what_the_rest_of_the_set_is_not() -> None:
    usual = {f"{index}.jpg": quality_of(photo(index)) for index in range(6)}
    odd = {"strip.jpg": quality_of(photo(7, (240, 60))), "scan.jpg": quality_of(photo(8, (1200, 900)))}
    kinds = {finding.kind: finding.files for finding in quality_findings(usual | odd)[0]}
    assert kinds == {"odd_shape": ("strip.jpg",), "odd_size": ("scan.jpg",)}
    panoramas = {f"{index}.jpg": quality_of(photo(index, (400, 100))) for index in range(6)}
    assert quality_findings(panoramas) == ([], [])
    assert quality_findings({}) == ([], [])


def test_check_warns_of_bad_pictures_and_is_no_failure(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("valid", 2)):
        for number in range(count):
            folder = tmp_path / split / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            photo(number + 100 * count).save(folder / f"{number}.jpg")
    for number, name in ((1, "blurred"), (2, "dark"), (3, "washed out")):
        FAULTS[name][0](photo(number + 500)).save(tmp_path / "train" / "cat" / f"{name}.jpg")
    report = check_dataset(tmp_path)
    assert report.ok
    assert {each.kind: each.files for each in report.warnings if each.kind != "few"} == {
        BLURRED: ("train/cat/blurred.jpg",),
        DARK: ("train/cat/dark.jpg",),
        PALE: ("train/cat/washed out.jpg",),
    }
    assert {DARK, PALE, BLURRED} <= {each["kind"] for each in report.to_json()["warnings"]}


def test_generated_pictures_are_not_accused(tmp_path: Path) -> None:
    make_sample_data(tmp_path / "data", num_classes=4, train_per_class=10, valid_per_class=2, test_per_class=2, size=96)
    report = check_dataset(tmp_path / "data")
    assert (report.warnings, report.notes) == ((), ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Rose", "rose"),
        ("red rose", "red_rose"),
        ("red-rose", "redrose"),
        ("rose ", "rose"),
        ("ro\u200bse", "rose"),
        ("red\u00a0rose", "red rose"),
        ("\uff32ose", "rose"),
        ("stra\u00dfe", "STRASSE"),
        ("red\u2013rose", "Red-Rose"),
    ],
)
def test_names_that_a_person_takes_for_one_are_twins(tmp_path: Path, one: str, other: str) -> None:
    assert plain_name(one) == plain_name(other)
    for name in (one, other, "tulip"):
        for split, seed in (("train", 1), ("valid", 2)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            photo(hash((name, seed)) % 1000).save(folder / f"{seed}.jpg")
    (finding,) = [each for each in check_dataset(tmp_path).warnings if each.kind == "twins"]
    assert "differ by case, spaces, hyphens or Unicode form only" in finding.message
    assert "tulip" not in finding.message


@pytest.mark.parametrize("names", [("a b", "c"), ("r\u00e9sum\u00e9", "resume"), ("-", "_"), ("1", "01")])
def test_names_that_differ_in_what_is_read_are_no_twins(names: tuple[str, str]) -> None:
    assert plain_name(names[0]) != plain_name(names[1])


def test_folders_that_are_one_class_by_unicode_form_are_said(tmp_path: Path) -> None:
    for number, name in enumerate(("cafe\u0301", "caf\u00e9", "tulip")):
        for split in ("train", "valid"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            photo(10 * number + len(split)).save(folder / f"{number}.jpg")
    (finding,) = [each for each in check_dataset(tmp_path).warnings if each.kind == "twins"]
    assert finding.message == "folders taken for one class, their names differ in Unicode form only: caf\u00e9"


def test_a_split_whose_class_is_written_otherwise_is_told_the_name(tmp_path: Path) -> None:
    make_sample_data(tmp_path / "data", num_classes=2, train_per_class=2, valid_per_class=1, test_per_class=0, size=32)
    shutil.move(tmp_path / "data/valid/bricks", tmp_path / "data/valid/Bricks")
    with pytest.raises(DataError) as caught:
        check_dataset(tmp_path / "data")
    assert caught.value.message == "valid has classes that train lacks: Bricks"
    assert caught.value.hint == "the names must be the same: 'bricks' for 'Bricks'?"
