"""What identifies a data set: what is in its files, whatever they are called."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from image_classifier.vision import fingerprint as fingerprint_module
from image_classifier.vision.fingerprint import digests, fingerprint, fingerprint_by_name, in_order
from image_classifier.vision.folders import ImageFolders, find_channels, scan

LATIN = os.fsdecode(b"caf\xe9.jpg")


def data_set(root: Path, splits: tuple[str, ...] = ("train",)) -> Path:
    for split in splits:
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(10):
                (folder / f"{number}.jpg").write_bytes(f"{split}{name}{number}".encode())
    return root


def scanned(root: Path) -> ImageFolders:
    return scan(find_channels(root), valid_fraction=0.2, seed=0)


def contents(folders: ImageFolders) -> dict[str, list[bytes]]:
    return {split.name: [path.read_bytes() for path in split.paths] for split in folders.splits}


def test_fingerprint_changes_with_the_data_only(tmp_path: Path) -> None:
    first, second = (data_set(tmp_path / name) for name in ("one", "two"))
    assert fingerprint(scanned(first)) == fingerprint(scanned(second))
    (second / "train" / "cat" / "1.jpg").write_bytes(b"x")
    assert fingerprint(scanned(first)) != fingerprint(scanned(second))
    (first / "train" / "cat" / "link.jpg").symlink_to("nowhere")
    assert len(fingerprint(scanned(first))) == 64


def test_bytes_that_change_within_the_same_size_change_the_fingerprint(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    before, by_name = fingerprint(scanned(root)), fingerprint_by_name(scanned(root))
    (root / "train" / "cat" / "1.jpg").write_bytes(b"traincatX")
    assert fingerprint_by_name(scanned(root)) == by_name
    assert fingerprint(scanned(root)) != before


def test_an_image_that_moves_to_another_class_or_split_changes_the_fingerprint(tmp_path: Path) -> None:
    root = data_set(tmp_path, ("train", "valid"))
    seen = {fingerprint(scanned(root))}
    (root / "train" / "cat" / "1.jpg").rename(root / "train" / "dog" / "cat1.jpg")
    seen.add(fingerprint(scanned(root)))
    (root / "train" / "dog" / "cat1.jpg").rename(root / "valid" / "dog" / "cat1.jpg")
    seen.add(fingerprint(scanned(root)))
    assert len(seen) == 3


@pytest.mark.parametrize("splits", [("train",), ("train", "valid", "test")])
def test_renamed_files_are_the_same_images_in_the_same_order(tmp_path: Path, splits: tuple[str, ...]) -> None:
    root = data_set(tmp_path, splits)
    before = scanned(root)
    known, began = digests(before), contents(before)
    for split in splits:
        for number in (0, 3, 7):
            path = root / split / "cat" / f"{number}.jpg"
            path.rename(path.with_name(LATIN if number == 3 else f"zz{9 - number}.jpg"))
    after = scanned(root)
    assert fingerprint(after) == fingerprint(before, known)
    restored = in_order(after, digests(after), known)
    assert contents(restored) == began
    assert [split.labels for split in restored.splits] == [split.labels for split in before.splits]


def test_images_that_are_the_same_twice_keep_their_places(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    for number in range(5):
        (root / "train" / "dog" / f"{number}.jpg").write_bytes(b"the same")
    folders = scanned(root)
    known = digests(folders)
    assert in_order(folders, known, known) == folders


def test_an_order_of_other_images_is_passed_over(tmp_path: Path) -> None:
    folders, other = scanned(data_set(tmp_path / "a")), scanned(data_set(tmp_path / "b"))
    other.train.paths[0].write_bytes(b"x")
    assert in_order(folders, digests(folders), digests(other)) == folders


def test_reading_ends_with_what_the_caller_raises(tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        digests(scanned(data_set(tmp_path)), stop)


@pytest.mark.parametrize(("waiting", "threads"), [(float("inf"), {True}), (0.0, {True, False})])
def test_files_in_memory_are_read_by_one_thread_and_by_several_where_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: float, threads: set[bool]
) -> None:
    folders = scanned(data_set(tmp_path))
    expected = digests(folders)
    in_main: dict[Path, bool] = {}

    def noted(path: Path) -> str:
        in_main[path] = threading.current_thread() is threading.main_thread()
        return real(path)

    real = fingerprint_module._digest
    monkeypatch.setattr(fingerprint_module, "_digest", noted)
    monkeypatch.setattr(fingerprint_module, "_CHUNK", 2)
    monkeypatch.setattr(fingerprint_module, "WAITING", waiting)
    assert digests(folders) == expected
    assert set(in_main.values()) == threads
    assert in_main[folders.train.paths[0]]  # whether it waits is seen of the first files
