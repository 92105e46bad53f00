"""What is to be said of a data set: the same sentences from `check`, in a training's log and files, and from `predict`.

`LEFTOVER` marks what is worth a note only; all else is a warning, or an error of the check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

LEFTOVER = "leftover"
NAMED = 5  # files in a line
KEPT = 1000  # in a file


@dataclass(frozen=True, kw_only=True)
class DataFinding:
    """One thing that is wrong with a data set.

    Args:
        kind: one of the words in the docstring of `vision/check.py`.
        message: a sentence with the numbers.
        hint: what to do about it.
        files: the images concerned, relative to the data set, all of them.
    """

    kind: str
    message: str
    hint: str = ""
    files: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The message with the first of the files, for a log."""
        unnamed = () if self.message.startswith(self.files[:1]) else self.files
        return f"{self.message} ({listing(unnamed)})" if unnamed else self.message


def listing(names: Sequence[str], limit: int = NAMED) -> str:
    """The first names with commas between, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def by_level(findings: Iterable[DataFinding]) -> dict[str, list[dict[str, Any]]]:
    """The findings as JSON values, apart by what they are worth: `warnings` and `notes`. Of many files the first."""
    levels: dict[str, list[dict[str, Any]]] = {"warnings": [], "notes": []}
    for finding in findings:
        levels["notes" if finding.kind == LEFTOVER else "warnings"].append(
            asdict(replace(finding, files=finding.files[:KEPT]))
        )
    return levels


def parse_levels(document: Mapping[str, Any]) -> list[DataFinding]:
    """The inverse of `by_level`, of any document: what is damaged is left out."""
    found = []
    for level in ("warnings", "notes"):
        rows = document.get(level)
        for row in rows if isinstance(rows, list) else ():
            texts = [row.get(name) for name in ("kind", "message", "hint")] if isinstance(row, dict) else [None]
            files = row.get("files") if isinstance(row, dict) else None
            if all(isinstance(each, str) for each in texts) and isinstance(files, list):
                kind, message, hint = map(str, texts)
                named = tuple(str(each) for each in files)
                found.append(DataFinding(kind=kind, message=message, hint=hint, files=named))
    return found
