"""Where a recorder's observations are kept: JSON lines for people and reports."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from image_classifier.debugging.schema import (
    CLASSES_FILE,
    STATISTICS_FILE,
    STEPS_FILE,
    ClassCounts,
    StatisticsRecord,
    StepRecord,
    of_rank,
    to_json,
)


class JsonLines:
    """steps.jsonl, statistics.jsonl and classes.jsonl of one process, appended to.

    Args:
        folder: output/data; made if need be.
        rank: of the process; all but 0 write their steps only.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._steps = _append(folder / of_rank(STEPS_FILE, rank))
        self._statistics = _append(folder / STATISTICS_FILE) if rank == 0 else None
        self._classes = _append(folder / CLASSES_FILE) if rank == 0 else None

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
    return path.open("a", encoding="utf-8")


def _write(file: IO[str] | None, record: Any) -> None:
    if file is not None:
        file.write(to_json(record) + "\n")
