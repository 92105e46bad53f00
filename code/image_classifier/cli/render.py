"""What a person or a program reads: results on standard output, everything else on standard error.

On a terminal with rich (which honours NO_COLOR); in a pipe as plain text, tables with tabs between the columns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from image_classifier.contract.errors import ClassifierError
from image_classifier.contract.installation import as_typed
from image_classifier.contract.text import json_visible, visible
from image_classifier.launch.view import Live, View

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
            print("\t".join(flat(cell) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[flat(cell) for cell in row] for row in rows]
    longest = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    if sum(min(length, NARROWEST) + GAP for length in longest) > console.width:  # it would be squeezed to nothing
        for row in cells:
            facts(zip(columns, row, strict=True))
            print()
        return
    made = Table(
        title=Text(visible(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, length in zip(columns, longest, strict=True):
        justify: JustifyMethod = "right" if name in numbers else "left"
        made.add_column(Text(visible(name)), justify=justify, overflow="fold", no_wrap=length <= NARROWEST)
    for row in cells:
        made.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console.print(made)


def facts(pairs: Iterable[tuple[str, object]], *, title: str = "") -> None:
    """Prints names and values, one pair a line."""
    texts = [(name, str(value)) for name, value in pairs]
    if not sys.stdout.isatty():
        for name, text in texts:
            print(f"{visible(name)}\t{flat(text)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(visible(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, text in texts:
        made.add_row(visible(name), Text(visible(text), style=_style(text)))
    Console().print(made)


def document(value: Any) -> None:
    """Prints one JSON document."""
    print(json_visible(json.dumps(value, indent=1, ensure_ascii=False)))


def note(text: str) -> None:
    """Prints one line for the person who waits: a name in it that holds a line's end makes no second one."""
    print(visible(as_typed(text)), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Prints a warning."""
    labelled("warning", text)


def error(problem: ClassifierError) -> None:
    """Prints `error:` and `hint:`."""
    labelled("error", problem.message)
    if problem.hint:
        labelled("hint", as_typed(problem.hint))


def labelled(label: str, text: str) -> None:
    """Prints `label: text` on one line; what a terminal would obey, which a file's name may hold, as escapes."""
    text = visible(text)
    if not sys.stderr.isatty():
        print(f"{label}: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{label}:", LABEL_STYLES[label]), " ", text))


class Console(View):
    """Draws a view: notes and warnings on standard error, documents on standard output."""

    def note(self, text: str) -> None:
        note(text)

    def warn(self, text: str) -> None:
        warn(text)

    def ask(self, question: str) -> bool | None:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        import click

        return click.confirm(visible(question), err=True)

    def document(self, value: Any) -> None:
        document(value)

    @contextmanager
    def live(self) -> Iterator[Live]:
        from image_classifier.cli import live_drawing

        with live_drawing.live(note) as shown:
            yield shown


def flat(cell: object) -> str:
    """A cell of a table, on one line and without what a terminal would obey."""
    return visible(" ".join(str(cell).split(" ")))


def _style(text: str) -> str:
    styles = {"Completed": "green", "Failed": "red", "Stopped": "yellow", "Pruned": "yellow", "InProgress": "cyan"}
    return "red" if text.startswith("error:") else styles.get(text, "")
