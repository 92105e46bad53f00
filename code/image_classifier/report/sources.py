"""A job's folder as the report reads it: whatever is there, and a list of what is not.

A folder is a run or a container's /opt/ml (`input/`, `output/data/`, ...), or what a job uploaded of it: the content
of output.tar.gz, with history.jsonl and the others at its top or below `data/`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import DataError
from image_classifier.contract.outputs import HISTORY, REPORT, RESULT, SETUP, STEPS, Document, Table
from image_classifier.contract.paths import MlPaths

_SIGNS_OF_A_JOB = (HISTORY.name, RESULT.name, SETUP.name, SETUP.formerly, STEPS.name, REPORT.name)


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

    def document(self, document: Document, what: str) -> dict[str, Any]:
        """A JSON object of output/data; empty, and noted as missing, when it is not there or damaged."""
        value = document.read(self.data)
        self.note(document.name, what, found=isinstance(value, dict))
        return value if isinstance(value, dict) else {}

    def table(self, table: Table, what: str) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table of output/data; empty, and noted, when it is not there or damaged."""
        header, rows = table.read_whole(self.data)
        self.note(table.name, what, found=bool(header))
        return header, rows

    def history(self) -> list[dict[str, float]]:
        """The epochs, in order."""
        rows = HISTORY.read(self.data)
        self.note(HISTORY.name, "no epoch was finished", found=bool(rows))
        return rows

    def note(self, name: str, what: str, *, found: bool = False) -> None:
        """Names a part that was not found as missing."""
        if not found:
            self.missing.append(f"{name}: {what}")


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
