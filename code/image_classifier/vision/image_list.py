"""A list of images instead of folders: a CSV file (or one in Parquet) with a line an image, its path, its label and, if
it says so, its split. Users bring one; and how images without folders of their own for the splits were split is kept as
one.

    path,label,split
    daisy/1.jpg,daisy,train

The first line names the columns, in any order, others beside them are not read. Commas, semicolons or tabs lie between.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.errors import DataError, describe
from image_classifier.contract.files import open_plain, replacing
from image_classifier.contract.outputs import FINDINGS
from image_classifier.contract.text import as_text
from image_classifier.vision.findings import DataFinding, by_level, parse_levels
from image_classifier.vision.parquet_list import PARQUET_SUFFIXES, parquet_text

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {  # split -> its names, in folders and in lists
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val"),
    "test": ("test", "testing"),
}
LIST_SUFFIXES = (".csv", ".tsv", *PARQUET_SUFFIXES)
SPLIT_CHANNEL = "split"  # the channel in which a job gets the two files of a plan
SPLIT_FILE = "split.csv"
COLUMNS: Mapping[str, tuple[str, ...]] = {  # what is read -> the names that its column may have
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "set", "subset"),
}
MAX_LIST_BYTES = 1_000_000_000
LIST_HINT = "the first line is path,label or path,label,split, then comes a line an image"
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class ListedImage:
    """A line of a list: path below the list's root, the class, and train, valid or test; empty where it says none."""

    path: Path
    label: str
    split: str = ""


@dataclass(frozen=True)
class SplitPlan:
    """Which image is in which split, settled before a job begins and kept for all of its attempts.

    Args:
        root: the folder that the paths are below: the train channel of the jobs.
        images: all of them, each with its split.
        findings: what was passed over.
        kept_together: images beyond the first of each group that shows the same picture.
    """

    root: Path
    images: tuple[ListedImage, ...]
    findings: tuple[DataFinding, ...] = ()
    kept_together: int = 0

    def files(self, *, as_names: bool = False) -> dict[str, bytes]:
        """Name -> content of the files in the channel `split`.

        Args:
            as_names: paths as S3 has them (`as_text`).
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for image in self.images:
            path = image.path.as_posix()
            writer.writerow((as_text(image.path) if as_names else path, image.label, image.split))
        findings = json.dumps(by_level(self.findings), indent=2, ensure_ascii=False)
        return {
            SPLIT_FILE: text.getvalue().encode("utf-8", errors="surrogateescape"),
            FINDINGS.name: findings.encode("utf-8", errors="backslashreplace"),
        }

    def write(self, folder: Path) -> None:
        """Writes the files into `folder`, which is made if missing. Raises PlatformError."""
        for name, content in self.files().items():
            with replacing(folder / name) as file:
                file.write(content)


def read_plan(folder: Path, root: Path) -> SplitPlan:
    """What `SplitPlan.write` wrote. Raises DataError when it is damaged."""
    images = tuple(_rows(folder / SPLIT_FILE))
    if not all(image.split for image in images):
        raise DataError(f"{folder / SPLIT_FILE} does not name the split of every image", LIST_HINT)
    return SplitPlan(root, images, tuple(parse_levels(FINDINGS.read_object(folder))))


def read_list(file: Path) -> tuple[Path, tuple[ListedImage, ...]]:
    """A list that a user brought: the folder that all its images lie in, and the images with paths below that.

    Paths in it are relative to its own folder, or absolute.

    Raises:
        DataError: it cannot be read, a line lacks something, or names an image of another line with another label.
    """
    lines = list(_rows(file))
    if not lines:
        raise DataError(f"{file} lists no images", LIST_HINT)
    folder = Path(os.path.normpath(file.parent.absolute()))
    found: dict[str, ListedImage] = {}
    for line in lines:
        place = _place(folder, line.path)
        before = found.setdefault(place, line)
        if (before.label, before.split) != (line.label, line.split):
            raise DataError(
                f"{file} lists {as_text(line.path)} twice: as {_words(before)} and as {_words(line)}", "keep one line"
            )
    named = [line for line in found.values() if line.split]
    if named and len(named) < len(found):
        without = next(as_text(line.path) for line in found.values() if not line.split)
        raise DataError(f"{file} names no split of {without}, but of others", "name it in every line, or in none")
    root = Path(os.path.commonpath([Path(place).parent for place in found]))
    if root == Path(root.anchor):
        raise DataError(f"the images that {file} lists lie in no common folder", "put them below one folder")
    images = (ListedImage(Path(place).relative_to(root), line.label, line.split) for place, line in found.items())
    return root, tuple(sorted(images, key=lambda image: image.path.as_posix()))


def split_named(name: str) -> str:
    """The split that a folder, or a word in a list, is named for, in upper or lower case; empty for none."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), "")


def _place(folder: Path, path: Path) -> str:
    """Where a listed image lies; `\\` is a slash where a list was written on Windows."""
    place = os.path.normpath(folder / path)
    if "\\" in place and not os.path.lexists(place):
        return os.path.normpath(folder / str(path).replace("\\", "/"))
    return place


def _words(image: ListedImage) -> str:
    return f"{image.label} in {image.split}" if image.split else image.label


def _rows(file: Path) -> Iterator[ListedImage]:
    text = _text(file)
    header = text[: max(text.find("\n"), 0)]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=header.count))
    try:
        places = _columns(file, next(reader, []))
        for row in reader:
            if any(cell.strip() for cell in row):
                yield _row(file, reader.line_num, places, row)
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num} is no line of a CSV file: {error}", LIST_HINT) from None


def _columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """What is read -> its column. Raises DataError when there is none for path or label."""
    names = [name.strip().lower() for name in header]
    places = {what: names.index(known) for what, of in COLUMNS.items() for known in reversed(of) if known in names}
    for what in ("path", "label"):
        if what not in places:
            shown = ", ".join(header[:5]) or "nothing"
            raise DataError(f"the first line of {file} names no column {what}: it is {shown}", LIST_HINT)
    return places


def _row(file: Path, number: int, places: Mapping[str, int], row: Sequence[str]) -> ListedImage:
    cells = {what: row[place].strip() if place < len(row) else "" for what, place in places.items()}
    for what in ("path", "label"):
        if not cells[what]:
            raise DataError(f"{file} line {number} names no {what}", LIST_HINT)
    if "\0" in cells["path"] or "://" in cells["path"]:
        raise DataError(f"{file} line {number}: {cells['path']!r} is no path of this machine", "copy the images here")
    given = cells.get("split", "")
    if given and not split_named(given):
        names = " ".join(name for names in SPLIT_FOLDERS.values() for name in names)
        raise DataError(f"{file} line {number}: there is no split {given!r}", f"a split is one of {names}")
    label = unicodedata.normalize("NFC", as_text(cells["label"]))
    return ListedImage(Path(cells["path"]), label, split_named(given))


def _text(file: Path) -> str:
    """The file's text; bytes that are not UTF-8 stay what a path made of them is: `os.fsencode` gives them back."""
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{file} has more than {MAX_LIST_BYTES / 1e9:g} GB", "list the images in several data sets")
        with open_plain(file) as stream:
            if file.suffix.lower() in PARQUET_SUFFIXES:
                return parquet_text(file, {name for names in COLUMNS.values() for name in names}, MAX_LIST_BYTES)
            data: bytes = stream.read()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or describe(error)}") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as spreadsheets write
        return data.decode("utf-16", errors="replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")


def by_split(images: Iterable[ListedImage], root: Path) -> dict[str, dict[str, list[Path]]]:
    """Split -> class -> files, sorted by path, for the splits that have images."""
    found: dict[str, dict[str, list[Path]]] = {}
    for image in sorted(images, key=lambda image: image.path.as_posix()):
        found.setdefault(image.split, {}).setdefault(image.label, []).append(root / image.path)
    return {split: found[split] for split in SPLIT_FOLDERS if split in found}
