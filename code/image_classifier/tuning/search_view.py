"""Reports a search while it runs: lines that stay (and go into the run's log), and the trials that run below them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from image_classifier.contract.config import Value
from image_classifier.contract.files import open_plain
from image_classifier.launch.progress import JobProgress, duration, in_time
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
        self._begun = time.monotonic()
        self._trial_begun: dict[int, float] = {}
        log.parent.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A line that stays, in the view and in the log."""
        with open_plain(self._log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._live.show(text)

    def started(self, number: int, values: Mapping[str, Value], *, again: bool) -> None:
        """A trial was started, or goes on after an interruption."""
        self._trial_begun[number] = time.monotonic()
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
                self.say(self._so_far({}))

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
        summary = [f"best {self._tune.objective} {best.value:.4f} in trial {best.number}"] if best else []
        return [*rows, [self._so_far(running)], summary]

    def _so_far(self, running: Mapping[int, JobProgress]) -> str:
        """`2 of 8 trials done  3 min 5 s, 9 min 12 s left`: of the whole search."""
        done = sum(row.finished for row in self._rows)
        left = self._seconds_left(running, self._tune.trials - done) if done < self._tune.trials else None
        return f"{done} of {self._tune.trials} trials done  {in_time(time.monotonic() - self._begun, left)}"

    def _seconds_left(self, running: Mapping[int, JobProgress], to_go: int) -> float | None:
        """What the trials that run have left, and for the others what a trial took so far; None before one is known."""
        left = {number: s for number, progress in running.items() if (s := progress.seconds_left()) is not None}
        now = time.monotonic()
        took = [row.seconds for row in self._rows if row.finished and row.seconds]
        took = took or [now - self._trial_begun.get(number, now) + s for number, s in left.items()]
        if not took:
            return None
        each = sum(took) / len(took)
        known = sum(left.get(number, each) for number in running)
        return (known + each * max(0, to_go - len(running))) / max(1, min(self._tune.parallel, to_go))
