"""What a person or a program reads: results on standard output, everything else on standard error.

On a terminal with rich (which honours NO_COLOR); in a pipe as plain text, tables with tabs between the columns.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from image_classifier.contract.errors import ClassifierError

if TYPE_CHECKING:
    from rich.console import JustifyMethod

LABEL_STYLES = {"error": "bold red", "warning": "yellow", "hint": "cyan"}
NARROWEST = 22  # characters a column of a table may have at least: the name of a run stays in one piece
GAP = 3  # between two columns


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", numbers: Sequence[str] = ()
) -> None:
    """Prints a table; the columns named in `numbers` are right-aligned on a terminal."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(_flat(cell) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[_flat(cell) for cell in row] for row in rows]
    longest = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    if sum(min(length, NARROWEST) + GAP for length in longest) > console.width:  # it would be squeezed to nothing
        for row in cells:
            facts(zip(columns, row, strict=True))
            print()
        return
    made = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, length in zip(columns, longest, strict=True):
        justify: JustifyMethod = "right" if name in numbers else "left"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=length <= NARROWEST)
    for row in cells:
        made.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console.print(made)


def facts(pairs: Iterable[tuple[str, object]], *, title: str = "") -> None:
    """Prints names and values, one pair a line."""
    texts = [(name, str(value)) for name, value in pairs]
    if not sys.stdout.isatty():
        for name, text in texts:
            print(f"{name}\t{_flat(text)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, text in texts:
        made.add_row(name, Text(text, style=_style(text)))
    Console().print(made)


def document(value: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def note(text: str) -> None:
    """Prints a line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Prints a warning."""
    labelled("warning", text)


def error(problem: ClassifierError) -> None:
    """Prints `error:` and `hint:`."""
    labelled("error", problem.message)
    if problem.hint:
        labelled("hint", problem.hint)


def labelled(label: str, text: str) -> None:
    """Prints `label: text` on one line; control characters, which a file's name may hold, as spaces."""
    text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    if not sys.stderr.isatty():
        print(f"{label}: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{label}:", LABEL_STYLES[label]), " ", text))


class Live(Protocol):
    """Something that is redrawn while a job runs."""

    def show(self, text: str) -> None:
        """A line that stays."""

    def draw(self, drawing: Any) -> None:
        """What is drawn below the lines, until the next call."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class PlainLive:
    """In a pipe: the lines only."""

    def show(self, text: str) -> None:
        note(text)

    def draw(self, drawing: Any) -> None:
        """There is nothing to draw on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class TerminalLive:
    """On a terminal: rich's live display."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._live = RichLive(console=Console(stderr=True), auto_refresh=False, transient=True)

    def show(self, text: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text))

    def draw(self, drawing: Any) -> None:
        self._live.update(drawing() if callable(drawing) else drawing, refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()


def live() -> Live:
    """The display that fits standard error."""
    return TerminalLive() if sys.stderr.isatty() else PlainLive()


def _flat(cell: object) -> str:
    return " ".join(str(cell).split())


def _style(text: str) -> str:
    styles = {"Completed": "green", "Failed": "red", "Stopped": "yellow", "Pruned": "yellow", "InProgress": "cyan"}
    return "red" if text.startswith("error:") else styles.get(text, "")
