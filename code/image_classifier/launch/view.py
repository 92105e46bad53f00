"""What a person who waits is told. Mechanism reports to a View and never prints: the command line draws one, and a
program that calls it from Python gets SILENT, or writes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from image_classifier.vision.findings import LEFTOVER, DataFinding


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A cell of a drawing: how far something is. `width` in characters."""

    done: float
    total: float
    width: int


Drawing = Sequence[Sequence[str | Bar]]
"""Rows of cells, as they are now."""


class Live:
    """Takes in what changes while something is waited for."""

    def show(self, text: str) -> None:
        """A line that stays."""

    def draw(self, drawing: Callable[[], Drawing]) -> None:
        """What stands below the lines until the next call; asked for only where there is something to draw on."""


class View:
    """Takes in what happens; this one keeps it to itself."""

    def note(self, text: str) -> None:
        """Something to know."""

    def warn(self, text: str) -> None:
        """Something that may be wrong."""

    def ask(self, question: str) -> bool | None:
        """The answer to a question of yes or no; None when there is nobody to ask."""
        return None

    def document(self, value: Any) -> None:
        """A result for a program: a value for JSON."""

    @contextmanager
    def live(self) -> Iterator[Live]:
        """Something is waited for, as long as the block lasts."""
        yield Live()


SILENT = View()


def tell_findings(findings: Iterable[DataFinding], view: View) -> None:
    """Tells what is to be said of image folders, in the words of a training's log."""
    for finding in findings:
        (view.note if finding.kind == LEFTOVER else view.warn)(finding.line)


def one_line(text: str) -> Drawing:
    """A drawing of one text."""
    return [[line] for line in text.splitlines()]
