"""A job's folder as the report reads it: whatever is there, and a list of what is not.

A folder is a run or a container's /opt/ml (`input/`, `output/data/`, ...), or what a job uploaded of it: the content
of output.tar.gz, with `history.jsonl` and the others at its top or below `data/`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import DataError
from image_classifier.contract.outputs import REPORT, SETUP
from image_classifier.contract.paths import MlPaths

TRIALS_FILE = "trials.csv"
_SIGNS_OF_A_JOB = ("history.jsonl", "metrics.json", SETUP.name, SETUP.formerly, "steps.jsonl", REPORT.name)


@dataclass(kw_only=True)
class Sources:
    """Where the parts of one job lie.

    Args:
        name: of the run, for the heading.
        data: output/data, where the report goes.
        output: output, for profiler files.
        paths: the whole layout, None when only the output was downloaded.
        missing: sentences about parts that are not there; readers add to it.
    """

    name: str
    data: Path
    output: Path
    paths: MlPaths | None
    missing: list[str] = field(default_factory=list)

    def json(self, name: str, what: str) -> Any:
        """A JSON file of output/data; None, and noted as missing, when it is not there or damaged."""
        value = read_json(self.data / name)
        if value is None:
            self.missing.append(f"{name}: {what}")
        return value

    def table(self, name: str, what: str) -> list[list[str]]:
        """The rows of a CSV file of output/data, header first; empty, and noted, when it is not there."""
        try:
            with (self.data / name).open(encoding="utf-8", newline="") as file:
                return list(csv.reader(file))
        except (OSError, ValueError, csv.Error):
            self.missing.append(f"{name}: {what}")
            return []

    def history(self) -> list[dict[str, float]]:
        """The epochs of history.jsonl, in order; a damaged line ends it."""
        rows: list[dict[str, float]] = []
        try:
            for line in (self.data / "history.jsonl").read_text(encoding="utf-8").splitlines():
                row = _strict(line)
                if isinstance(row, dict) and isinstance(row.get("epoch"), int):
                    rows.append(row)
        except (OSError, ValueError):
            pass
        if not rows:
            self.missing.append("history.jsonl: no epoch was finished")
        return rows


def locate(folder: Path) -> Sources:
    """Finds the parts of the job in `folder`.

    Raises:
        DataError: nothing there comes from a training job.
    """
    name = folder.resolve().name
    if (folder / "output" / "data").is_dir():
        output = folder / "output"
        return Sources(name=name, data=output / "data", output=output, paths=MlPaths(base=folder))
    for data in (folder, folder / "data"):
        if any((data / sign).is_file() for sign in _SIGNS_OF_A_JOB):
            return Sources(name=name, data=data, output=data.parent if data.name == "data" else data, paths=None)
    raise DataError(
        f"{folder} holds no output of a training job",
        "name a run's folder, or the folder output.tar.gz was unpacked in",
    )


def read_json(path: Path) -> Any:
    """The value of a JSON file, None when there is no such file or it is damaged."""
    try:
        return _strict(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _strict(text: str) -> Any:
    """A value of strict JSON: what is read here holds no number that is not finite. Raises ValueError."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    return json.loads(text, parse_constant=refuse)


def jsonable(value: Any) -> Any:
    """The same value for strict JSON: a number that is not finite becomes the text NaN, Infinity or -Infinity, floats
    keep six significant digits."""
    if isinstance(value, float):
        if math.isfinite(value):
            return float(f"{value:.6g}")
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    return value


def as_float(value: Any) -> float:
    """A number that went through `jsonable`; NaN for None."""
    return math.nan if value is None else float(value)
