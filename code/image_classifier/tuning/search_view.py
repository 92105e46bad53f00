"""Reports a search while it runs: lines that stay (and go into the run's log), and the trials that run below them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from image_classifier.contract.config import Value
from image_classifier.contract.files import open_plain
from image_classifier.launch.progress import JobProgress, duration
from image_classifier.launch.view import Bar, Drawing, Live
from image_classifier.tuning.trials import TrialRow, pick_best
from image_classifier.tuning.tune_settings import TuneSettings


class SearchView:
    """What is told of a search. `log` is the run's log file."""

    def __init__(self, live: Live, log: Path, tune: TuneSettings) -> None:
        self._live = live
        self._log = log
        self._tune = tune
        self._rows: Sequence[TrialRow] = ()
        self._values: dict[int, str] = {}
        log.parent.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A line that stays, in the view and in the log."""
        with open_plain(self._log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._live.show(text)

    def started(self, number: int, values: Mapping[str, Value], *, again: bool) -> None:
        """A trial was started, or goes on after an interruption."""
        self._values[number] = "  ".join(f"{name} {value}" for name, value in values.items())
        self.say(f"trial {number}/{self._tune.trials}  {self._values[number]}{'  goes on' if again else ''}")

    def epoch(self, number: int, progress: JobProgress) -> None:
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

    def draw(self, running: Mapping[int, JobProgress]) -> None:
        """How far the trials are that run, by number."""
        self._live.draw(lambda: self._drawing(dict(running)))

    def _drawing(self, running: Mapping[int, JobProgress]) -> Drawing:
        rows: list[Sequence[str | Bar]] = []
        for number, progress in running.items():
            left = progress.seconds_left()
            rows.append(
                (
                    f"trial {number}/{self._tune.trials}",
                    self._values.get(number, ""),
                    Bar(done=progress.done, total=progress.epochs, width=20),
                    f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}",
                    "starting" if left is None else f"{duration(left)} left",
                )
            )
        best = pick_best(self._rows, self._tune.objective)
        done = sum(row.finished for row in self._rows)
        summary = f"best {self._tune.objective} {best.value:.4f} in trial {best.number}" if best else ""
        return [*rows, (f"{done} done", summary)]
