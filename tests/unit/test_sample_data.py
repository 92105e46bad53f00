"""Sample data: the same bytes every time, in the layout that training reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from image_classifier.contract.errors import ConfigError
from image_classifier.vision.decode import decode
from image_classifier.vision.folders import find_channels, scan
from image_classifier.vision.sample_data import make_sample_data


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def small(root: Path, **changes: int) -> int:
    arguments = {"num_classes": 8, "train_per_class": 2, "valid_per_class": 1, "test_per_class": 1, "size": 32}
    return make_sample_data(root, **(arguments | changes))


def test_same_arguments_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    assert small(tmp_path / "a") == 8 * 4
    small(tmp_path / "b")
    small(tmp_path / "c", seed=1)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not set(a.values()) & set(c.values())
    assert len(set(a.values())) == len(a)  # no image twice, in no split


def test_more_images_do_not_change_the_others(tmp_path: Path) -> None:
    small(tmp_path / "few", num_classes=2)
    small(tmp_path / "many", num_classes=3, train_per_class=3)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    assert few.items() < many.items()


def test_layout_is_what_training_reads(tmp_path: Path) -> None:
    small(tmp_path / "data", num_classes=4)
    folders = scan(find_channels(tmp_path / "data"), valid_fraction=0.2, seed=0)
    assert folders.classes == ("bricks", "leaves", "pebbles", "waves")
    assert [len(split) for split in folders.splits] == [8, 4, 4]
    assert not folders.valid_split_off
    assert decode(folders.train.paths[0]).size == (32, 32)


def test_classes_differ_more_than_images_of_a_class(tmp_path: Path) -> None:
    """The mean colour alone tells most of them apart; nearest class mean is a floor for what a network can learn."""
    make_sample_data(tmp_path / "data", num_classes=4, train_per_class=8, valid_per_class=0, test_per_class=4, size=48)
    folders = scan(
        {"train": tmp_path / "data" / "train", "test": tmp_path / "data" / "test"}, valid_fraction=0.1, seed=0
    )
    assert folders.test is not None
    train, test = (
        np.array([np.asarray(decode(path), dtype=float).mean((0, 1)) for path in split.paths])
        for split in (folders.train, folders.test)
    )
    means = np.array([train[np.array(folders.train.labels) == label].mean(0) for label in range(4)])
    nearest = np.linalg.norm(test[:, None] - means, axis=-1).argmin(1)
    assert (nearest == np.array(folders.test.labels)).mean() > 0.7


def test_a_split_of_zero_images_has_no_folder(tmp_path: Path) -> None:
    small(tmp_path / "data", valid_per_class=0)
    assert set(find_channels(tmp_path / "data")) == {"train", "test"}


def test_nothing_is_overwritten_or_left_half_done(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    small(tmp_path / "data", num_classes=2)  # an empty folder is fine
    with pytest.raises(ConfigError, match="is not an empty folder"):
        small(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "change", [{"num_classes": 1}, {"num_classes": 9}, {"size": 8}, {"train_per_class": 0}, {"test_per_class": -1}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        small(tmp_path / "data", **change)
    assert not (tmp_path / "data").exists()
