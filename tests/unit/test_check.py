"""The data set check: each disease is found and named, a healthy set has no findings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from image_classifier.contract.errors import DataError
from image_classifier.vision.check import CheckReport, DataFinding, check_dataset
from image_classifier.vision.sample_data import make_sample_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    make_sample_data(root, num_classes=2, train_per_class=12, valid_per_class=2, test_per_class=2, size=32)
    return root


def found(report: CheckReport, kind: str) -> DataFinding:
    findings = [finding for finding in (*report.errors, *report.warnings) if finding.kind == kind]
    assert len(findings) == 1, report
    return findings[0]


def test_healthy_data_has_counts_and_no_findings(data: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = check_dataset(data, progress=lambda done, total: calls.append((done, total)))
    assert (report.errors, report.warnings, report.ok) == ((), (), True)
    assert report.counts == {
        "train": {"bricks": 12, "leaves": 12},
        "valid": {"bricks": 2, "leaves": 2},
        "test": {"bricks": 2, "leaves": 2},
    }
    assert (report.num_images, report.smallest, report.largest) == (32, (32, 32), (32, 32))
    assert calls[-1] == (32, 32)
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_every_unreadable_file_is_named_with_its_fault(data: Path) -> None:
    folder = data / "train" / "bricks"
    whole = (folder / "bricks_0000.jpg").read_bytes()
    (folder / "bricks_0000.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.jpg").write_text("a text")
    (folder / "c.jpg").symlink_to("nowhere.jpg")
    report = check_dataset(data)
    assert not report.ok
    assert {finding.kind for finding in report.errors} == {"unreadable"}
    assert [finding.message for finding in report.errors] == [
        "train/bricks/a.jpg: the file is empty (zero bytes)",
        "train/bricks/b.jpg: the file is not an image",
        "train/bricks/bricks_0000.jpg: the file is truncated",
        "train/bricks/c.jpg: No such file or directory",
    ]
    assert report.counts["train"]["bricks"] == 15


def test_same_bytes_in_two_splits_are_leakage(data: Path) -> None:
    shutil.copy(data / "train" / "leaves" / "leaves_0003.jpg", data / "test" / "leaves" / "other name.jpeg")
    finding = found(report := check_dataset(data), "leakage")
    assert finding in report.errors
    assert finding.files == ("train/leaves/leaves_0003.jpg", "test/leaves/other name.jpeg")
    assert "in train and test" in finding.message


def test_same_bytes_in_two_classes_are_a_contradiction(data: Path) -> None:
    shutil.copy(data / "train" / "leaves" / "leaves_0003.jpg", data / "train" / "bricks" / "x.jpg")
    finding = found(report := check_dataset(data), "contradiction")
    assert finding in report.errors
    assert "bricks and leaves" in finding.message


def test_same_bytes_in_one_class_are_a_warning(data: Path) -> None:
    shutil.copy(data / "train" / "leaves" / "leaves_0003.jpg", data / "train" / "leaves" / "x.jpg")
    report = check_dataset(data)
    assert report.ok
    assert "2 times in train" in found(report, "duplicate").message


def test_uneven_small_and_ignored_are_warnings(data: Path) -> None:
    for path in sorted((data / "train" / "leaves").iterdir())[2:]:
        path.unlink()
    shutil.rmtree(data / "test" / "leaves")
    Image.new("RGB", (300, 20)).save(data / "train" / "bricks" / "thin.png")
    (data / "train" / "bricks" / "drawing.SVG").write_text("<svg/>")
    report = check_dataset(data)
    assert report.ok
    assert found(report, "imbalance").message == "train is unbalanced: 13 images of bricks, 2 of leaves"
    assert "leaves (2)" in found(report, "few").message
    assert found(report, "missing").message == "test has no images of leaves"
    assert found(report, "small").files == ("train/bricks/thin.png",)
    assert found(report, "ignored").message == "files passed over: 1 .svg"


def test_a_thousand_small_classes_are_one_short_sentence(data: Path) -> None:
    for number in range(1000):
        (data / "train" / f"c{number:03}").mkdir()
        shutil.copy(data / "train" / "leaves" / "leaves_0003.jpg", data / "train" / f"c{number:03}")
    message = found(check_dataset(data), "few").message
    assert message.endswith("images of c000 (1), c001 (1), c002 (1), c003 (1), c004 (1) and 995 more")


def test_images_outside_the_class_folders_are_a_warning(data: Path) -> None:
    shutil.copy(data / "train" / "leaves" / "leaves_0003.jpg", data / "train" / "loose.jpg")
    report = check_dataset(data)
    assert report.ok
    assert found(report, "ignored").files == ("train/loose.jpg",)
    assert report.counts["train"] == {"bricks": 12, "leaves": 12}


def test_missing_valid_is_reported_as_training_will_split_it(data: Path) -> None:
    shutil.rmtree(data / "valid")
    report = check_dataset(data, valid_fraction=0.25)
    assert report.valid_split_off
    assert report.counts["valid"] == {"bricks": 3, "leaves": 3}


def test_processes_find_the_same(data: Path) -> None:
    (data / "train" / "bricks" / "a.jpg").write_bytes(b"")
    assert check_dataset(data, workers=2) == check_dataset(data, workers=1)


def test_folders_that_cannot_be_used_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no images"):
        check_dataset(tmp_path)


def test_a_class_of_which_no_image_can_be_read_is_an_error_of_its_own(data: Path) -> None:
    for path in (data / "train" / "leaves").iterdir():
        path.write_bytes(b"no image")
    (data / "test" / "bricks" / "bricks_0000.jpg").write_bytes(b"")
    report = check_dataset(data)
    finding = found(report, "lost")
    assert finding in report.errors
    assert finding.message == "no image of leaves in train can be read"
