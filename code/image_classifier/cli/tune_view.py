"""Shows a search while it runs: lines that stay (and go into the run's log), and on a terminal a table below them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classifier.cli import render
from image_classifier.cli.settings import TuneSettings
from image_classifier.contract.config import Value
from image_classifier.launch.progress import Progress, duration
from image_classifier.tuning.trials import TrialRow, pick_best

if TYPE_CHECKING:
    from image_classifier.tuning.tuner import Active


class TuneView:
    """What a person sees of a search."""

    def __init__(self, live: render.Live, log: Path, tune: TuneSettings) -> None:
        self._live = live
        self._log = log
        self._tune = tune
        self._rows: Sequence[TrialRow] = ()
        self._values: dict[int, str] = {}
        log.parent.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A line that stays, on the screen and in the log."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._live.show(text)

    def started(self, number: int, values: Mapping[str, Value], *, again: bool) -> None:
        """A trial was started, or goes on after an interruption."""
        self._values[number] = "  ".join(f"{name} {value}" for name, value in values.items())
        self.say(f"trial {number}/{self._tune.trials}  {self._values[number]}{'  goes on' if again else ''}")

    def epoch(self, number: int, progress: Progress) -> None:
        """A trial has finished an epoch."""
        self.say(f"trial {number}/{self._tune.trials}  {progress.describe()}")

    def finished(self, rows: Sequence[TrialRow], number: int = 0) -> None:
        """Trial `number` is over; `rows` are all trials."""
        self._rows = rows
        for row in rows:
            if row.number == number:
                value = f"  {self._tune.objective} {row.best.value:.4f}" if row.best else ""
                why = f": {row.failure}" if row.failure else ""
                self.say(f"trial {number}/{self._tune.trials}  {row.status}{why}{value}  {duration(row.seconds)}")

    def draw(self, running: Iterable[Active]) -> None:
        """Redraws the table of the trials that run."""
        self._live.draw(lambda: self._table(list(running)))

    def _table(self, running: list[Active]) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for active in running:
            progress = active.progress
            left = progress.seconds_left()
            table.add_row(
                f"trial {active.number}/{self._tune.trials}",
                self._values.get(active.number, ""),
                ProgressBar(total=progress.epochs, completed=progress.done, width=20),
                f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}",
                "starting" if left is None else f"{duration(left)} left",
            )
        best = pick_best(self._rows, self._tune.objective)
        done = sum(row.finished for row in self._rows)
        table.add_row(
            f"{done} done", f"best {self._tune.objective} {best.value:.4f} in trial {best.number}" if best else ""
        )
        return table
