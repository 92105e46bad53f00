"""Image folders: what is found, in which order, and what is refused. The files here are empty: none is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from image_classifier.contract.errors import DataError
from image_classifier.contract.paths import MlPaths
from image_classifier.vision.folders import (
    ImageFolders,
    channel_of,
    channels_of_job,
    class_images,
    find_channels,
    image_files,
    scan,
)
from image_classifier.vision.image_list import SPLIT_FOLDERS
from image_classifier.vision.passed_over import PassedOver


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def data_set(root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    return make(root, *(f"train/{name}/{i}.jpg" for name in classes for i in range(count)))


def scanned(root: Path, seed: int = 0, valid_fraction: float = 0.2) -> ImageFolders:
    return scan(find_channels(root), valid_fraction=valid_fraction, seed=seed)


def test_classes_are_folder_names_sorted_by_code_point(tmp_path: Path) -> None:
    names = ("Zebra", "apple", "été", "犬", "two words", "a.b", "10", "9")
    folders = scanned(data_set(tmp_path, classes=names, count=2))
    assert folders.classes == tuple(sorted(names))
    assert {folders.classes[label] for label in folders.train.labels} == set(names)
    for path, label in zip(folders.train.paths, folders.train.labels, strict=True):
        assert path.parent.name == folders.classes[label]


def test_suffixes_in_any_case_count_and_all_else_is_passed_over(tmp_path: Path) -> None:
    images = {"a.jpg", "b.JPG", "c.Jpeg", "d.png", "e.WEBP", "f.bmp", "deep/er/g.jpg"}
    make(tmp_path, *images, ".hidden.jpg", ".cache/h.jpg", "notes.txt", "k.svg", "jpg", "Thumbs.db")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    assert {path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)} == images


def test_links_are_followed_once_and_a_dangling_one_is_kept(tmp_path: Path) -> None:
    make(tmp_path, "store/x.jpg", "c/a.jpg")
    (tmp_path / "c" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "c" / "b.jpg").symlink_to(tmp_path / "store" / "x.jpg")
    (tmp_path / "c" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "c" / "loop").symlink_to(tmp_path / "c")
    assert [path.name for path in image_files(tmp_path / "c")] == ["a.jpg", "b.jpg", "gone.jpg", "x.jpg"]


def test_the_system_is_asked_where_a_folder_really_lies_only_behind_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a call for every folder of the path: with many classes on slow storage that was a second of each job."""
    train = make(tmp_path / "train", *(f"{name}/{file}.jpg" for name in ("a", "a/deeper", "b", "c") for file in "xy"))
    (tmp_path / "elsewhere").mkdir()
    (train / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    asked: list[str] = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(str(path)) or realpath(path))
    found = class_images(train, "train", PassedOver())
    assert sum(map(len, found.values())) == 8
    assert asked == [str(train), str(train / "b" / "linked")]


def test_valid_is_split_off_by_name_stratified_and_said_so(tmp_path: Path) -> None:
    root = data_set(tmp_path, classes=("cat", "dog", "owl"))
    folders = scanned(root)
    assert folders.valid_split_off
    assert [folders.valid.labels.count(label) for label in range(3)] == [2, 2, 2]
    assert [folders.train.labels.count(label) for label in range(3)] == [8, 8, 8]
    assert not set(folders.train.paths) & set(folders.valid.paths)
    assert folders == scanned(root)
    assert folders.valid.paths != scanned(root, seed=1).valid.paths
    before = set(folders.valid.paths)
    make(root, "train/cat/new.jpg")
    assert len(before & set(scanned(root).valid.paths)) >= 5  # the others are not reshuffled


def test_split_off_leaves_an_image_of_every_class_on_both_sides(tmp_path: Path) -> None:
    folders = scanned(make(data_set(tmp_path, count=2), "train/rare/1.jpg"), valid_fraction=0.01)
    assert sorted(folders.train.labels) == [0, 1, 2]
    assert sorted(folders.valid.labels) == [0, 1]


def test_given_splits_are_used_as_they_are(tmp_path: Path) -> None:
    root = make(data_set(tmp_path), "Validation/cat/v.jpg", "test/dog/t.jpg", "test/cat/.keep")
    folders = scanned(root)
    assert not folders.valid_split_off
    assert folders.valid.paths == (root / "Validation" / "cat" / "v.jpg",)
    assert folders.test is not None
    assert folders.test.labels == (1,)
    assert [len(split) for split in folders.splits] == [20, 1, 1]


def test_decomposed_and_composed_names_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = make(tmp_path, f"train/{composed}/1.jpg", "train/tea/1.jpg", f"valid/{decomposed}/2.jpg")
    folders = scanned(root)
    assert folders.classes == (composed, "tea")
    assert folders.valid.labels == (0,)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((), "there is no train folder in"),
        (("cat/1.jpg", "dog/1.jpg"), "there is no train folder in"),
        (("train/notes.txt",), "in the train folder"),
        (("train/1.jpg", "train/2.jpg"), "has 2 images of its own but none in class folders"),
        (("train/cat/1.jpg",), "only one class, cat"),
        (("train/cat/1.jpg", "train/dog/.keep"), "train has no images of dog"),
        (("train/cat/1.jpg", "train/dog/1.jpg"), "no class in .* has two images"),
        (("train/cat/1.jpg", "train/dog/1.jpg", "valid/.keep"), "in the valid folder"),
        (("train/cat/1.jpg", "train/dog/1.jpg", "valid/owl/1.jpg"), "valid has classes that train lacks: owl"),
        (
            ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "valid/cat/1.jpg"),
            "two valid folders: val and",
        ),
        (("train/train/cat/1.jpg", "train/valid/cat/1.jpg"), "looks like a whole data set"),
    ],
)
def test_unusable_folders_are_refused_with_a_hint(tmp_path: Path, names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        scanned(make(tmp_path, *names))
    assert caught.value.hint


def test_class_folders_without_a_train_folder_are_told_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train folder") as caught:
        find_channels(make(tmp_path, "cat/1.jpg", "dog/1.jpg"))
    assert caught.value.hint == f"if cat is a class, move the class folders into {tmp_path / 'train'}"


def test_paths_that_are_no_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "file")
    with pytest.raises(DataError, match="does not exist"):
        find_channels(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        find_channels(tmp_path / "file")
    with pytest.raises(DataError, match="there is no train channel"):
        scan({}, valid_fraction=0.2, seed=0)
    with pytest.raises(DataError, match=r"the train folder .* does not exist"):
        scan({"train": tmp_path / "nowhere"}, valid_fraction=0.2, seed=0)


@pytest.mark.parametrize("names", [("training", "validation", "testing"), ("train", "val", "test"), ("training",)])
def test_a_jobs_channels_may_have_any_of_the_names_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    paths = MlPaths(base=tmp_path)
    files = [f"{name}/{label}/{number}.jpg" for name in names for label in ("cat", "dog") for number in range(4)]
    make(paths.data, *files, "weights/w.pth")
    assert channels_of_job(paths) == dict(zip(SPLIT_FOLDERS, map(paths.channel, names), strict=False))
    assert channel_of(paths, "train") == paths.channel(names[0])
    assert scan(channels_of_job(paths), valid_fraction=0.2, seed=0).classes == ("cat", "dog")


def test_one_channel_alone_may_hold_a_whole_data_set(tmp_path: Path) -> None:
    paths = MlPaths(base=tmp_path)
    whole = make(paths.channel("training"), "Train/cat/1.jpg", "Train/dog/1.jpg", "val/cat/2.jpg", "README.txt")
    assert channels_of_job(paths) == {"train": whole / "Train", "valid": whole / "val"}
    make(paths.data, "validation/cat/1.jpg")
    assert channels_of_job(paths)["train"] == whole  # which scan refuses: what would the folder val be?


def test_channels_that_do_not_tell_what_trains_are_refused_by_name(tmp_path: Path) -> None:
    assert channels_of_job(MlPaths(base=tmp_path / "nothing")) == {}
    images = MlPaths(base=tmp_path / "a")
    make(images.data, "images/cat/1.jpg", "test/cat/1.jpg")
    with pytest.raises(DataError, match="there is no train channel beside images, test"):
        channels_of_job(images)
    assert channel_of(images, "test") is None
    two = MlPaths(base=tmp_path / "b")
    make(two.data, "train/cat/1.jpg", "training/cat/1.jpg")
    with pytest.raises(DataError, match="two train channels: train and training"):
        channels_of_job(two)
    pipes = MlPaths(base=tmp_path / "c")
    pipes.data.mkdir(parents=True)
    os.mkfifo(pipes.data / "train_0")
    with pytest.raises(DataError, match="Pipe mode, which is not read") as caught:
        channels_of_job(pipes)
    assert "FastFile" in caught.value.hint


def test_a_class_whose_name_is_not_utf8_is_called_by_its_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    root = make(data_set(tmp_path), f"train/{name}/1.jpg", f"train/{name}/2.jpg", f"test/{name}/3.jpg")
    folders = scanned(root)
    assert folders.classes == ("caf\\xe9", "cat", "dog")
    assert folders.test is not None
    assert folders.test.labels == (0,)
