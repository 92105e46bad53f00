"""What a person sees who waits: on a terminal a drawing that moves by itself, in a pipe a line now and then.

The drawing is asked for again twice a second, whether or not anything was reported: elapsed time goes on while a job
computes, and a wait that shows no number still shows that it lasts.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import TYPE_CHECKING

from image_classifier.contract.text import visible
from image_classifier.launch.view import Bar, Drawing, Live

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAWS_PER_S = 2.0
QUIET_S = 30.0  # in a pipe, after so long without a line the drawing is one
NARROW_BAR = 8  # characters a bar has at least
CELL_GAP = 2


@contextmanager
def live(note: Callable[[str], None]) -> Iterator[Live]:
    """A Live on standard error. Ends without leaving the drawing behind.

    Args:
        note: prints a line that stays, where nothing is drawn.
    """
    if not sys.stderr.isatty():
        lines = SparseLines(note)
        ended = threading.Event()
        thread = threading.Thread(target=lines.keep_telling, args=(ended,), daemon=True)
        thread.start()
        try:
            yield lines
        finally:
            ended.set()
            thread.join()
        return
    from rich.console import Console
    from rich.live import Live as RichLive

    redrawn = _Redrawn(console := Console(stderr=True))
    with RichLive(
        console=console,
        get_renderable=redrawn.renderable,
        refresh_per_second=REDRAWS_PER_S,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what is printed into a file stays out of the terminal
    ):
        yield redrawn


class SparseLines(Live):
    """In a pipe: lines that stay, and what would be drawn as a line when there was none for QUIET_S seconds."""

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._clock = clock
        self._last = clock()
        self._drawing: Callable[[], Drawing] | None = None
        self._turn = threading.Lock()

    def show(self, text: str) -> None:
        with self._turn:
            self._say(text)

    def draw(self, drawing: Callable[[], Drawing]) -> None:
        self._drawing = drawing

    def tell(self) -> None:
        """Says how things are, if nothing was said for long."""
        with self._turn:
            if self._drawing is not None and self._clock() - self._last >= QUIET_S:
                for row in self._drawing():
                    if text := "  ".join(cell for cell in row if isinstance(cell, str) and cell):
                        self._say(text)

    def keep_telling(self, ended: threading.Event) -> None:
        """`tell` once a second, until `ended` is set or who reads it has left, which the next line finds out."""
        with suppress(BrokenPipeError):
            while not ended.wait(1.0):
                self.tell()

    def _say(self, text: str) -> None:
        self._last = self._clock()
        self._note(text)


class _Redrawn(Live):
    """On a terminal: rich's live display, which asks for the drawing from a thread of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawing: Callable[[], Drawing] = tuple

    def show(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(visible(text)))

    def draw(self, drawing: Callable[[], Drawing]) -> None:
        self._drawing = drawing

    def renderable(self) -> RenderableType:
        """The drawing as it is now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        lines: list[RenderableType] = []
        for block in fitted(self._drawing(), self._console.width):
            grid = Table.grid(padding=(0, CELL_GAP, 0, 0))
            for row in block:
                grid.add_row(
                    *(
                        ProgressBar(total=cell.total, completed=cell.done, width=cell.width)
                        if isinstance(cell, Bar)
                        else Text(visible(cell), overflow="fold")
                        for cell in row
                    )
                )
            lines.append(grid)
        return Group(*lines)


def fitted(drawing: Drawing, width: int) -> list[Drawing]:
    """The rows as blocks of aligned columns that are no wider than the terminal. A row of one cell is a block of its
    own; rows that do not fit, even with narrower bars, go on in the next line between two of their cells."""
    blocks: list[Drawing] = []
    for is_alone, group in groupby(drawing, key=lambda row: sum(cell != "" for cell in row) < 2):
        rows = [list(row) for row in group]
        blocks += [_cells_by_line(row, width) for row in rows] if is_alone else _aligned(rows, width)
    return blocks


def _aligned(rows: list[list[str | Bar]], width: int) -> list[Drawing]:
    if len(rows) == 1:
        rows = [[cell for cell in row if cell != ""] for row in rows]
    for bar_width in (None, NARROW_BAR):
        rows = [[_narrowed(cell, bar_width) for cell in row] for row in rows]
        if _width(rows) <= width:
            return [rows]
    return [[line] for row in rows for line in _cells_by_line(row, width)]


def _cells_by_line(row: Sequence[str | Bar], width: int) -> list[list[str | Bar]]:
    lines: list[list[str | Bar]] = [[]]
    for cell in row:
        if cell == "":
            continue
        if lines[-1] and _width([[*lines[-1], cell]]) > width:
            lines.append([])
        lines[-1].append(cell)
    return lines


def _narrowed(cell: str | Bar, width: int | None) -> str | Bar:
    if width is None or isinstance(cell, str):
        return cell
    return Bar(done=cell.done, total=cell.total, width=min(cell.width, width))


def _width(rows: Sequence[Sequence[str | Bar]]) -> int:
    columns: dict[int, int] = {}
    for row in rows:
        for number, cell in enumerate(row):
            length = cell.width if isinstance(cell, Bar) else len(visible(cell))
            columns[number] = max(columns.get(number, 0), length)
    return sum(columns.values()) + CELL_GAP * len(columns)
