"""Classes whose names a person would take for one: `Red Rose`, `red_rose`, `red-rose`, `Ｒed rose`."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from image_classifier.contract.text import as_text, plain_name
from image_classifier.vision.findings import DataFinding, listing
from image_classifier.vision.folders import ImageFolders

TWINS = "twins"


def twins_of(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Those of the names that come to the same plain one, together."""
    groups = defaultdict(list)
    for name in names:
        groups[plain_name(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def twin_findings(folders: ImageFolders) -> Iterator[DataFinding]:
    """A finding for each group of classes that differ by such things only, and for folders that were taken for one
    class because only the Unicode form of their names differs."""
    for group in twins_of(folders.classes):
        seen = " and ".join(ascii(name) if len({*map(_look, group)}) < len(group) else repr(name) for name in group)
        message = f"classes whose names differ by case, spaces, hyphens or Unicode form only: {seen}"
        yield DataFinding(kind=TWINS, message=message, hint="are they one class? put their images into one folder")
    written = _folders_of_classes(folders)
    merged = [name for name, forms in written.items() if len(forms) > 1]
    if merged:
        message = f"folders taken for one class, their names differ in Unicode form only: {listing(merged)}"
        yield DataFinding(kind=TWINS, message=message, hint="give them one name")


def _folders_of_classes(folders: ImageFolders) -> dict[str, set[str]]:
    """Class -> the names of the folders, as the file system has them, that its images lie in."""
    found: dict[str, set[str]] = defaultdict(set)
    for split in folders.splits:
        for path in split.paths:
            folder = as_text(Path(path.relative_to(split.root).parts[0]))
            found[unicodedata.normalize("NFC", folder)].add(folder)
    return {name: found[name] for name in folders.classes if name in found}


def _look(name: str) -> str:
    """What a reader sees of a name."""
    return unicodedata.normalize("NFKC", "".join(char for char in name if unicodedata.category(char) != "Cf"))
