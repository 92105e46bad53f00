"""What is no image of any class is said, by `check`, `train` and `predict`, in the same sentences."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import jpeg

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ConfigError, DataError
from image_classifier.launch.client import find_images
from image_classifier.launch.job_data import check_data
from image_classifier.launch.view import View
from image_classifier.vision.check import check_dataset
from image_classifier.vision.findings import by_level, parse_levels
from image_classifier.vision.folders import ImageFolders, beside_channels, find_channels, scan
from image_classifier.vision.picture_quality import BLURRED

LEFTOVERS = (
    "@eaDir", "lost+found", ".thumbnails", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "Thumbs.db", "#recycle",
    "System Volume Information", ".DS_Store", "._0.jpg", ".Trash-1000", ".stfolder", "desktop.ini", "@Recycle", ".git",
    "__pycache__", "Icon\r", "~snapshot", ".nfs000000a1",
)  # fmt: skip


class Told(View):
    """Remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes, in train and test."""
    root = tmp_path / "data"
    for number, (split, count) in enumerate((("train", 12), ("test", 2))):
        for name in ("cat", "dog"):
            for image in range(count):
                path = root / split / name / f"{image}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(hash((number, name == "cat", image)) % 2**32))
    return root


def scanned(root: Path) -> ImageFolders:
    return scan(find_channels(root), valid_fraction=0.2, seed=0)


def lines(root: Path) -> list[str]:
    return [finding.line for finding in (*beside_channels(root), *scanned(root).findings)]


def test_a_tidy_data_set_has_nothing_to_say(data: Path) -> None:
    assert lines(data) == []


@pytest.mark.parametrize("where", ["train", "train/cat", "train/cat/deeper", "test", "."])
@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_systems_leave_is_no_class_and_no_image_but_said(data: Path, where: str, name: str) -> None:
    before = scanned(data)
    folder = data / where / name
    folder.mkdir(parents=True)
    (folder / "SYNOPHOTO_THUMB_M.jpg").write_bytes(jpeg(7))
    folders = scanned(data)
    assert (folders.classes, folders.train, folders.test) == (before.classes, before.train, before.test)
    report = check_dataset(data)
    assert report.warnings == ()
    (note,) = (note for note in report.notes if note.kind != BLURRED)  # soft shapes are all there is
    shown = f"{where}/{name}" if where != "." else name
    assert (note.message, note.files) == (f"left there by systems and programs, passed over: 1 {name}", (shown,))


def test_a_leftover_that_nobody_may_list_ends_nothing(data: Path) -> None:
    (data / "train" / "lost+found").mkdir(mode=0)
    assert scanned(data).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ({"train/cat/a.HEIC": "", "train/dog/b.jxl": ""}, "files passed over: 1 .heic, 1 .jxl (train/cat/a.HEIC,"),
        ({"train/cat/a.txt": "", "test/dog/b": ""}, "passed over for their names: 1 .txt, 1 without a suffix (train/"),
        (
            {"train/cat/.a.jpg.icloud": "", "train/.owl/1.jpg": ""},
            "hidden files and folders passed over: 1 .icloud, 1 f",
        ),
        ({"train/cat/more": "->/nowhere"}, "links to nowhere passed over: 1 (train/cat/more)"),
        ({"train/owl": "->/nowhere"}, "class folders that are links to nowhere: 1 (train/owl)"),
        ({"train/owl": "->owl"}, "class folders that are links to nowhere: 1 (train/owl)"),
        ({"train/owl": "../owls", "train/labels.csv": ""}, "beside the class folders passed over: 1 .csv, 1 without a"),
        ({"train/a.jpg": ""}, "passed over because they lie in no class folder: 1 (train/a.jpg)"),
        ({"train/cat/again": "->../cat"}, "passed over because they lead in a circle: 1 (train/cat/again)"),
        ({"train/cat/up": "->../.."}, "passed over because they lead in a circle: 1 (train/cat/up)"),
        ({"train/cat/b": "->a", "train/cat/a": "->b"}, "lead in a circle: 2 (train/cat/a, train/cat/b)"),
        ({"test/owl/notes.txt": ""}, "class folders without images that train lacks: 1 (test/owl)"),
        ({"Holdout/cat/1.jpg": "", "readme.md": ""}, "beside the folders train, valid and test: 1 .md, 1 folder (Hold"),
        ({"valid": "->/nowhere"}, "not used, because they are no folders: 1 (valid)"),
        ({"val": "../elsewhere/valid"}, "not used, because they are no folders: 1 (val)"),
    ],
)
def test_everything_passed_over_is_counted_by_reason_and_named(data: Path, make: dict[str, str], said: str) -> None:
    for name, content in make.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
    (line,) = [line for line in lines(data) if said in line]
    report = check_dataset(data)
    assert [finding.line for finding in report.warnings if finding.kind == "ignored"].count(line) == 1
    told = Told()
    check_data(data, TrainConfig(), told)
    assert told.warnings.count(line) == 1
    assert (report.classes, report.num_images) == (("cat", "dog"), 28)


def test_pipes_sockets_and_devices_are_said_and_never_opened(data: Path) -> None:
    os.mkfifo(data / "train" / "cat" / "a.jpg")
    (data / "train" / "cat" / "b.jpg").symlink_to("/dev/zero")
    os.mkfifo(data / "train" / "owl")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(data / "test" / "cat" / "c.jpg"))
        (line,) = lines(data)
    assert (
        line
        == "pipes, sockets and devices passed over: 4 (train/cat/a.jpg, train/cat/b.jpg, train/owl, test/cat/c.jpg)"
    )


def test_folders_that_link_to_each_other_come_to_an_end(data: Path) -> None:
    names = [f"{letter}{number}" for letter in "abcde" for number in range(4)]
    for name in names:
        folder = data / "train" / "cat" / name
        folder.mkdir()
        (folder / "1.jpg").write_bytes(b"")
        for other in names:
            (folder / f"to-{other}").symlink_to(f"../{other}")
    folders = scanned(data)
    assert folders == scanned(data)
    assert set(folders.train.paths) >= {data / "train" / "cat" / name / "1.jpg" for name in names} - set(
        folders.valid.paths
    )
    assert "lead in a circle" in folders.findings[0].message


def test_a_class_that_links_to_the_folder_it_lies_in_has_no_images_of_the_others(data: Path) -> None:
    (data / "train" / "owl").symlink_to(".")
    with pytest.raises(DataError, match="train has no images of owl") as caught:
        scanned(data)
    assert "lead in a circle: 1 (train/owl)" in caught.value.hint


def test_an_error_about_missing_images_says_what_there_was_instead(data: Path) -> None:
    for path in (data / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataError, match="train has no images of dog") as caught:
        scanned(data)
    assert "files passed over: 12 .heic (train/dog/0.heic, " in caught.value.hint


def test_a_train_folder_that_is_a_link_to_nowhere_is_named(data: Path) -> None:
    (data / "train").rename(data / "moved")
    (data / "train").symlink_to("/nowhere")
    with pytest.raises(DataError, match="no train folder") as caught:
        find_channels(data)
    assert f"{data / 'train'} is no folder" in caught.value.hint


def test_predict_says_what_it_does_not_ask_about(data: Path) -> None:
    folder = data / "test"
    (folder / "a.heic").touch()
    (folder / "cat" / "@eaDir").mkdir()
    (folder / "cat" / "@eaDir" / "b.jpg").touch()
    (folder / "dog" / "loop").symlink_to("..")
    told = Told()
    assert len(find_images([folder], told)) == 4
    assert told.warnings == [
        f"files passed over: 1 .heic ({folder}/a.heic)",
        f"links passed over because they lead in a circle: 1 ({folder}/dog/loop)",
    ]
    assert told.notes == [f"left there by systems and programs, passed over: 1 @eaDir ({folder}/cat/@eaDir)"]
    only = data / "photos"
    only.mkdir()
    (only / "a.heic").touch()
    told = Told()
    with pytest.raises(ConfigError, match="no images in"):
        find_images([only], told)
    assert told.warnings == [f"files passed over: 1 .heic ({only}/a.heic)"]


def test_findings_come_back_from_a_file_and_damaged_ones_are_left_out(data: Path) -> None:
    (data / "train" / "cat" / "a.heic").touch()
    (data / "train" / "@eaDir").mkdir()
    found = scanned(data).findings
    document = by_level(found)
    assert set(parse_levels(json.loads(json.dumps(document)))) == set(found)
    damaged: list[dict[str, Any]] = [
        {},
        {"warnings": 7},
        {"warnings": [7, {}, {"kind": 1}, {"kind": "a", "message": "b", "hint": "c"}]},
    ]
    for damage in damaged:
        assert parse_levels(damage) == []
