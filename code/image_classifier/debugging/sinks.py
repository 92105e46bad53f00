"""Where a recorder's observations are kept: JSON lines for people and reports, and other sinks in the background."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

from image_classifier.contract.files import open_plain
from image_classifier.contract.outputs import CLASSES, STATISTICS, STEPS
from image_classifier.debugging.schema import ClassCounts, StatisticsRecord, StepRecord, of_rank, to_json


class Sink(Protocol):
    """Takes what was observed; called between steps. `name` is for the log."""

    name: str

    def add(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        """One step, and the statistics of its tensors if there are any."""

    def add_classes(self, counts: ClassCounts) -> None:
        """The classes of the epoch whose last step was the last one added."""

    def flush(self) -> None:
        """Makes what was added safe: the process may be killed."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines:
    """steps.jsonl, statistics.jsonl and classes.jsonl of one process, appended to.

    Args:
        folder: output/data; made if need be.
        rank: of the process; all but 0 write their steps only.
    """

    name = "JsonLines"

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._steps = _append(folder / of_rank(STEPS.name, rank))
        self._statistics = _append(folder / STATISTICS.name) if rank == 0 else None
        self._classes = _append(folder / CLASSES.name) if rank == 0 else None

    def add(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        """Writes one line or two."""
        _write(self._steps, record)
        if statistics is not None:
            _write(self._statistics, statistics)

    def add_classes(self, counts: ClassCounts) -> None:
        """Writes one line."""
        _write(self._classes, counts)

    def flush(self) -> None:
        """Hands all lines to the operating system."""
        for file in (self._steps, self._statistics, self._classes):
            if file is not None:
                file.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._steps, self._statistics, self._classes):
            if file is not None:
                file.close()


def _append(path: Path) -> IO[str]:
    return open_plain(path, "a", encoding="utf-8")


def _write(file: IO[str] | None, record: Any) -> None:
    if file is not None:
        file.write(to_json(record) + "\n")


class Background:
    """A sink that works in a thread of its own: smdebug opens a file and starts a thread for each step, and waits.

    What the inner sink raises is raised by the next call, or by `close`.
    """

    def __init__(self, inner: Sink) -> None:
        self.name = type(inner).__name__
        self._inner = inner
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.name)
        self._last: Future[None] | None = None

    def add(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        """Returns at once."""
        self._submit(self._inner.add, record, statistics)

    def add_classes(self, counts: ClassCounts) -> None:
        """Returns at once."""
        self._submit(self._inner.add_classes, counts)

    def flush(self) -> None:
        """Returns at once: what is lost when the process is killed now, the other sinks have."""

    def close(self) -> None:
        """Waits until everything is written."""
        self._submit(self._inner.close)
        self._worker.shutdown()
        self._raise_if_failed()

    def _submit(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._last is not None and self._last.done():
            self._raise_if_failed()
        self._last = self._worker.submit(self._after, self._last, action, *arguments)

    @staticmethod
    def _after(before: Future[None] | None, action: Callable[..., None], *arguments: Any) -> None:
        """Passes a failure on from call to call, so that the newest one has it."""
        if before is not None:
            before.result()
        action(*arguments)

    def _raise_if_failed(self) -> None:
        if self._last is not None:
            self._last.result()
