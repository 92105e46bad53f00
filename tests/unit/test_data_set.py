"""Data sets in the shapes in which they come: a folder a class, a list, a path that is one folder off."""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import jpeg

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import DataError
from image_classifier.launch.job_data import channels_for, check_data, data_of, keep_split
from image_classifier.launch.runs import Run, create_run
from image_classifier.sagemaker.upload import read_data_set
from image_classifier.vision.check import check_dataset
from image_classifier.vision.data_set import OpenedData, near_to, open_data
from image_classifier.vision.folders import ImageFolders, scan
from image_classifier.vision.image_list import read_list
from image_classifier.vision.picture_quality import BLURRED


def put(root: Path, *names: str) -> Path:
    """A different picture under each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(zlib.crc32(name.encode())))
    return root


def flat(root: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    return put(root, *(f"{name}/{name}-{number}.jpg" for name in classes for number in range(count)))


def opened(data: Path, *, seed: int = 0, valid: float = 0.2, test: float = 0.1, kept: Path | None = None) -> OpenedData:
    return open_data(data, valid_fraction=valid, test_fraction=test, seed=seed, kept=kept)


def names(folders: ImageFolders) -> dict[str, set[str]]:
    return {split.name: {path.name for path in split.paths} for split in folders.splits}


def saved_again(path: Path, *, quality: int = 40, scale: float = 0.7) -> bytes:
    picture = Image.open(path)
    file = io.BytesIO()
    picture.resize((int(picture.width * scale), int(picture.height * scale))).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_a_folder_of_class_folders_is_split_by_class_and_always_the_same_way(tmp_path: Path) -> None:
    data = flat(tmp_path / "flowers", count=20)
    folders = opened(data).folders
    assert folders.classes == ("cat", "dog")
    assert {split.name: Counter(split.labels) for split in folders.splits} == {
        "train": {0: 14, 1: 14},
        "valid": {0: 4, 1: 4},
        "test": {0: 2, 1: 2},
    }
    assert names(folders) == names(opened(data).folders) != names(opened(data, seed=1).folders)
    before = names(folders)
    put(data, "cat/new.jpg")
    after = names(opened(data).folders)
    assert len(after["test"] & before["test"]) >= 3
    assert len(after["valid"] & before["valid"]) >= 6


def test_without_a_share_for_test_there_is_none(tmp_path: Path) -> None:
    assert opened(flat(tmp_path / "data"), test=0.0).folders.test is None


@pytest.mark.parametrize("alike", ["bytes", "looks"])
def test_pictures_that_show_the_same_are_on_one_side_whatever_the_seed(tmp_path: Path, alike: str) -> None:
    data = flat(tmp_path / "data", count=12)
    for number in range(0, 12, 2):
        original = data / "cat" / f"cat-{number}.jpg"
        content = original.read_bytes() if alike == "bytes" else saved_again(original)
        (data / "cat" / f"again-{number}.jpg").write_bytes(content)
    for seed in range(5):
        found = opened(data, seed=seed)
        assert found.folders.plan is not None
        assert found.folders.plan.kept_together == 6
        split_of = {name: split for split, those in names(found.folders).items() for name in those}
        for number in range(0, 12, 2):
            assert split_of[f"cat-{number}.jpg"] == split_of[f"again-{number}.jpg"]


def test_the_same_picture_under_two_labels_is_not_what_the_model_is_tested_on(tmp_path: Path) -> None:
    data = flat(tmp_path / "data")
    (data / "dog" / "cat.jpg").write_bytes((data / "cat" / "cat-1.jpg").read_bytes())
    for seed in range(5):
        assert {"cat.jpg", "cat-1.jpg"} <= names(opened(data, seed=seed).folders)["train"]


def test_a_class_of_two_pictures_has_one_to_train_on_and_one_of_one_too(tmp_path: Path) -> None:
    data = put(flat(tmp_path / "data"), "owl/1.jpg", "owl/2.jpg", "elk/3.jpg")
    folders = opened(data, valid=0.5, test=0.5).folders
    found = {split.name: Counter(folders.classes[label] for label in split.labels) for split in folders.splits}
    assert (found["train"]["owl"], found["valid"]["owl"], found["test"]["owl"]) == (1, 1, 0)
    assert (found["train"]["elk"], found["valid"]["elk"], found["test"]["elk"]) == (1, 0, 0)
    assert found["train"]["cat"] >= 1


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [("Training", "Validation", "Testing"), ("train", "val", "test"), ("TRAIN", "valid", "")],
)
def test_folders_for_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, valid: str, test: str) -> None:
    for split in filter(None, (train, valid, test)):
        flat(tmp_path / "data" / split, count=3)
    folders = opened(tmp_path / "data").folders
    assert [len(split) for split in folders.splits] == [6, 6, 6][: 3 if test else 2]
    assert folders.plan is None


def test_classes_that_are_called_like_splits_are_classes(tmp_path: Path) -> None:
    data = flat(tmp_path / "shoes", classes=("running", "training", "test"))
    assert opened(data).folders.classes == ("running", "test", "training")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("flowers/cat", "flowers"),
        ("sets", "sets/train-valid"),
        ("sets/train-valid/train", "sets/train-valid"),
        ("sets/train-valid/train/cat", "sets/train-valid"),
        ("above", "above/archive/flowers"),
    ],
)
def test_a_path_too_deep_or_not_deep_enough_is_answered_with_the_one_that_was_meant(
    tmp_path: Path, given: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat(tmp_path / "flowers", count=2)
    flat(tmp_path / "above" / "archive" / "flowers", count=2)
    for split in ("train", "valid"):
        flat(tmp_path / "sets" / "train-valid" / split, count=2)
    with pytest.raises(DataError) as caught:
        opened(tmp_path / given)
    assert caught.value.hint == f"did you mean {tmp_path / meant}?"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        opened(Path(given))
    assert caught.value.hint == f"did you mean {meant}?"
    assert opened(Path(meant)).folders.classes == ("cat", "dog")


def test_a_path_that_does_not_exist_is_answered_with_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat(tmp_path / "flowers", count=1)
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path / "code")
    assert near_to(Path("flowers")) == Path("../flowers")
    assert near_to(Path("../flower")) == Path("../flowers")
    assert near_to(Path("nothing-like-it")) is None
    with pytest.raises(DataError, match="there is no data folder flowers") as caught:
        check_data(Path("flowers"), TrainConfig())
    assert caught.value.hint.startswith("did you mean ../flowers?")


def test_folders_that_may_be_splits_of_unknown_names_are_not_taken_for_classes(tmp_path: Path) -> None:
    for split in ("seg_learn/seg_learn", "seg_probe/seg_probe"):
        flat(tmp_path / split, count=2)
    with pytest.raises(DataError, match=r"hold the same folders \(cat, dog\): are they classes, or splits") as caught:
        opened(tmp_path)
    assert "train, valid and test" in caught.value.hint


def test_what_is_no_image_is_named_by_check_and_by_train_alike(tmp_path: Path) -> None:
    data = put(flat(tmp_path / "data"), "loose.jpg")
    (data / "LICENSE.txt").touch()
    (data / "cat" / "raw.psd").touch()
    (data / "annotations").mkdir()
    (data / ".DS_Store").touch()
    lines = {finding.line for finding in opened(data).findings}
    assert lines == {
        "images passed over because they lie in no class folder: 1 (loose.jpg)",
        "files beside the class folders passed over: 1 .txt (LICENSE.txt)",
        "files passed over for their names: 1 .psd (cat/raw.psd)",
        "folders without images passed over: 1 (annotations)",
        "left there by systems and programs, passed over: 1 .DS_Store (.DS_Store)",
    }
    report = check_dataset(data)
    unrelated = ("few", BLURRED)  # of few pictures, of soft shapes
    assert {finding.line for finding in (*report.warnings, *report.notes) if finding.kind not in unrelated} == lines
    assert report.split_made


def job(data: Path, runs: Path, *, again: Run | None = None) -> tuple[Run, Path, ImageFolders]:
    """What `train` does with its data before the job begins."""
    folders = check_data(data, TrainConfig(), run=again)
    run = again or create_run(runs, "train", data=str(data_of(data, folders)))
    keep_split(run, folders)
    return run, Path(run.record().data), folders


def test_a_run_keeps_its_split_for_all_of_its_attempts(tmp_path: Path) -> None:
    data = flat(tmp_path / "data")
    run, kept, folders = job(data, tmp_path / "runs")
    seen = scan(channels_for(kept, run), valid_fraction=0.2, seed=0)
    assert names(seen) == names(folders)
    assert (seen.classes, seen.findings) == (folders.classes, folders.findings)
    put(data, *(f"cat/more-{number}.jpg" for number in range(20)))
    _, _, resumed = job(data, tmp_path / "runs", again=run)
    assert names(resumed) == names(folders)
    assert names(job(data, tmp_path / "runs")[2]) != names(folders)


def test_the_list_of_a_run_is_one_that_can_be_trained_on(tmp_path: Path) -> None:
    data = flat(tmp_path / "data")
    run, _, folders = job(data, tmp_path / "runs")
    (data / "split.csv").write_bytes((run.path / "split" / "split.csv").read_bytes())
    assert names(opened(data / "split.csv", seed=9).folders) == names(folders)


def test_names_that_are_not_utf8_come_back_from_the_list(tmp_path: Path) -> None:
    data = flat(tmp_path / "data")
    odd = os.fsdecode(b'caf\xe9, "one"\n.jpg')
    (data / "cat" / "cat-1.jpg").rename(data / "cat" / odd)
    run, kept, folders = job(data, tmp_path / "runs")
    assert names(scan(channels_for(kept, run), valid_fraction=0.2, seed=0)) == names(folders)
    assert odd in set.union(*names(folders).values())


def test_a_job_on_aws_finds_the_same_images_in_the_same_splits(tmp_path: Path) -> None:
    data = flat(tmp_path / "data")
    folders = opened(data).folders
    sent = read_data_set(folders)
    assert set(sent.channels) == {"train", "split"}
    there = tmp_path / "there"
    for file in sent.files:
        target = there / file.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content or file.path.read_bytes())
    seen = scan({name: there / name for name in sent.channels}, valid_fraction=0.2, seed=0)
    assert names(seen) == names(folders)
    assert sent.fingerprint != read_data_set(opened(data, seed=1).folders).fingerprint


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_names_paths_labels_and_splits(tmp_path: Path, delimiter: str, encoding: str) -> None:
    put(tmp_path / "photos", *(f"{number}.jpg" for number in range(8)))
    rows = [["id", "Label", "Path", "split"]]
    for number in range(8):
        rows.append(
            [str(number), ("été", "dog")[number % 2], f"photos/{number}.jpg", ("train", "val", "")[number // 4]]
        )
    file = tmp_path / "list.csv"
    file.write_text("\r\n".join(delimiter.join(row) for row in rows), encoding=encoding)
    found = opened(file)
    assert found.root == tmp_path / "photos"
    assert found.folders.classes == ("dog", "été")
    assert names(found.folders) == {
        "train": {f"{number}.jpg" for number in range(4)},
        "valid": {f"{number}.jpg" for number in range(4, 8)},
    }
    assert check_dataset(file).ok


def test_a_list_without_splits_is_split_and_one_without_valid_keeps_its_test(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}.jpg" for number in range(20)))
    file = tmp_path / "list.csv"
    file.write_text("file,class\n" + "".join(f"{number}.jpg,{number % 2}\n" for number in range(20)))
    assert [len(split) for split in opened(file).folders.splits] == [14, 4, 2]
    file.write_text(
        "file,class,set\n" + "".join(f"{n}.jpg,{n % 2},{'test' if n < 4 else 'train'}\n" for n in range(20))
    )
    found = names(opened(file).folders)
    assert found["test"] == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    assert len(found["valid"]) == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the first line of .* names no column path: it is nothing"),
        ("a.jpg,cat\n", "the first line of .* names no column path: it is a.jpg, cat"),
        ("path,label\n", "lists no images"),
        ("path,label\na.jpg\n", "line 2 names no label"),
        ("path,label\n,cat\n", "line 2 names no path"),
        ("path,label,split\na.jpg,cat,tests\n", "line 2: there is no split 'tests'"),
        ("path,label\ns3://bucket/a.jpg,cat\n", "line 2: 's3://bucket/a.jpg' is no path of this machine"),
        ("path,label\na\0.jpg,cat\n", "line 2"),
        ("path,label\na.jpg,cat\n./a.jpg,dog\n", "lists a.jpg twice: as cat and as dog"),
        ("path,label,split\na.jpg,cat,train\nb.jpg,dog,\n", "names no split of b.jpg, but of others"),
        ("path,label\na.jpg,cat\nb.jpg,cat\n", "only one class, cat"),
        ("path,label\nx/1.jpg,cat\nx/2.jpg,dog\n", "no file that .* lists exists"),
        ("path,label\na,cat\nb,dog\n", "lists no images"),
        ("path,label\n/1.jpg,cat\n/tmp/2.jpg,dog\n", "lie in no common folder"),
        ("path,label,split\na.jpg,cat,valid\nb.jpg,dog,valid\n", "no image is in the split train"),
        ('path,label\n"a.jpg,cat\n', "names no label"),
    ],
)
def test_a_list_that_cannot_be_used_is_answered_with_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=sentence) as caught:
        opened(file)
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("a.zip", "is an archive"), ("a.jpg", "is a file, not a data set folder")],
)
def test_a_file_of_another_kind_is_told_what_to_do_with_it(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=sentence) as caught:
        opened(tmp_path / name)
    assert caught.value.hint


def test_a_parquet_file_is_told_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "labels.parquet").touch()
    with pytest.raises(DataError, match="there is no pyarrow here to read it") as caught:
        opened(tmp_path / "labels.parquet")
    assert "pip install pyarrow" in caught.value.hint
    assert "pandas.read_parquet('labels.parquet').to_csv('labels.csv', index=False)" in caught.value.hint


def test_a_parquet_list_says_what_the_same_csv_list_does(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    put(tmp_path, "a.jpg", "b.jpg", "c, d.jpg")
    (tmp_path / "list.csv").write_text('Path,label,note\na.jpg,1,x\nb.jpg,2,y\n"c, d.jpg",2,z\n')
    columns = {"note": [b"x", None, b"z"], "Path": ["a.jpg", "b.jpg", "c, d.jpg"], "label": [1, 2, 2]}
    parquet.write_table(arrow.table(columns), tmp_path / "list.parquet")
    assert read_list(tmp_path / "list.parquet") == read_list(tmp_path / "list.csv")
    (tmp_path / "list.pq").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        read_list(tmp_path / "list.pq")
    parquet.write_table(arrow.table({"url": ["a.jpg"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="names no column path: it is url"):
        read_list(tmp_path / "other.parquet")


def test_an_empty_folder_and_what_is_no_file_are_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no images") as caught:
        opened(tmp_path)
    assert "the layout is CLASS/*.jpg" in caught.value.hint
    os.mkfifo(tmp_path / "list.csv")  # opening it would wait for ever
    with pytest.raises(DataError, match="cannot read"):
        opened(tmp_path / "list.csv")


def test_a_listed_image_that_is_missing_is_found_by_check_and_the_others_are_used(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}.jpg" for number in range(20)))
    file = tmp_path / "list.csv"
    file.write_text("path,label\n" + "".join(f"{number}.jpg,{number % 2}\n" for number in range(21)))
    (finding,) = check_dataset(file).errors
    assert finding.message == "20.jpg: No such file or directory"


def test_check_names_pictures_that_look_alike_in_two_splits_in_two_classes_and_in_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "valid", "test"):
        flat(data / split, count=12, classes=(f"cat-{split}", f"dog-{split}"))
        for name in ("cat", "dog"):
            (data / split / f"{name}-{split}").rename(data / split / name)
    cats = data / "train" / "cat"
    for number, place in enumerate(("test/cat/again.jpg", "train/dog/again.jpg", "train/cat/again.jpg")):
        (data / place).write_bytes(saved_again(cats / f"cat-train-{number}.jpg"))
    (cats / "same.jpg").write_bytes((cats / "cat-train-0.jpg").read_bytes())
    report = check_dataset(data)
    found = {finding.message: finding.files for finding in report.warnings if finding.kind == "lookalike"}
    assert found == {
        "pictures that look alike are in train and test": ("train/cat/cat-train-0.jpg", "test/cat/again.jpg"),
        "pictures that look alike are in the classes cat and dog": ("train/cat/cat-train-1.jpg", "train/dog/again.jpg"),
        "pictures that look alike are 2 times in train": ("train/cat/again.jpg", "train/cat/cat-train-2.jpg"),
    }
    assert report.ok
