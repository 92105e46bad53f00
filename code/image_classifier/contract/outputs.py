"""The files of a run: their names, who writes them, and how each is read back in whatever state it is found.

    RUN/job.json                what runs, since when, how it ended (launch)
    RUN/split/split.csv         which image is in which split, of data without folders for that (launch)
    RUN/model.tar.gz            the artifact (vision/artifact is its only writer and reader)
    RUN/logs/job.log            all the job printed
    RUN/logs/access.log         a line of JSON for each request (serving), begun anew when it is long
    RUN/output/failure          the first cause of a failure, and a hint (training)
    RUN/output/data/
        history.jsonl           one JSON object an epoch: its number, metric name -> value (training, as all below)
        metrics.json            the result: outcome, best epoch, metrics, images, seconds
        bad_images.json         path -> why it could not be read
        dataset.json            classes, images of each in each split, sizes, fingerprint: as the job found them
        findings.json           what else is to be said of the images: warnings and notes, as `check --json` has them
        suspected_labels.json   which labels are likely wrong, see `read_suspects`
        per_class.csv           class, images, precision, recall, f1, of the test images
        confusion.csv           a row for each true class, a column for each predicted one: number of test images
        test_predictions.csv    path below the test folder, true and predicted class, probability of the latter
        setup.json              the configuration and the machine as the job found them (debugging/schema: JobFacts)
        steps.jsonl, statistics.jsonl, classes.jsonl, rules.json, profiler/, trace.json.gz      see debugging/schema
        report.html, report.json    all of this explained (report)
    RUN/study.journal, trials/NNN/, trials.csv, best.json, tuning.svg, report.html, report.json    of a search (tuning)

A reader here never raises for what it finds in a file: a job may have been killed while it wrote, a disk may have been
full, another version may have written it. What cannot be read is as what is not there.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import ClassifierError
from image_classifier.contract.files import open_plain, write_text
from image_classifier.contract.metrics import DEFAULT_OBJECTIVE, METRIC_BY_NAME
from image_classifier.contract.paths import FAILURE_MAX_CHARS
from image_classifier.contract.text import as_text

VALIDATION_LOSS = "validation:loss"
_HINT = "\nhint: "
_STOPPED = "stopped by "


@dataclass(frozen=True)
class Document:
    """A file with one JSON value, readable by people.

    Args:
        formerly: the name that earlier versions gave it: what they left can be read still.
    """

    name: str
    formerly: str = ""

    def is_in(self, folder: Path) -> bool:
        """Whether there is such a file in `folder`, readable or not."""
        return any((folder / name).is_file() for name in (self.name, self.formerly) if name)

    def read(self, folder: Path) -> Any:
        """The value; None when there is no such file in `folder`, or it is damaged or no strict JSON."""
        value = read_json(folder / self.name)
        return read_json(folder / self.formerly) if value is None and self.formerly else value

    def read_object(self, folder: Path) -> dict[str, Any]:
        """The value when it is an object; empty for anything else."""
        value = self.read(folder)
        return value if isinstance(value, dict) else {}

    def write(self, folder: Path, value: Any) -> None:
        """Replaces the file. Numbers must be finite.

        Raises:
            PlatformError: a full disk, a missing permission; the file that was there stays.
            ValueError: a number that is not finite.
        """
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / self.name, text + "\n")


@dataclass(frozen=True)
class Lines:
    """A file with a JSON object a line.

    Args:
        number: the key of an integer that every line has; one without it counts as damaged.
    """

    name: str
    number: str = ""

    def read(self, folder: Path) -> list[dict[str, Any]]:
        """The objects up to the first line that is damaged, without values that are no finite numbers, which an earlier
        version may have written; empty without the file."""
        rows: list[dict[str, Any]] = []
        for line in _text(folder / self.name).splitlines():
            row = _finite_only(line)
            if row is None or (self.number and type(row.get(self.number)) is not int):
                break
            rows.append(row)
        return rows

    def write(self, folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replaces the file. Raises as `Document.write`."""
        write_text(folder / self.name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


@dataclass(frozen=True)
class Table:
    """A comma-separated table with a header line.

    Args:
        columns: the first names of the header; a file may have more to their right.
    """

    name: str
    columns: tuple[str, ...]

    def read(self, folder: Path) -> list[list[str]]:
        """The rows below the header, of as many cells as the header has; empty without the file, or when its header
        does not begin with `columns`."""
        header, rows = self.read_whole(folder)
        return [row for row in rows if len(row) == len(header)]

    def read_whole(self, folder: Path) -> tuple[list[str], list[list[str]]]:
        """Header and rows; both empty where `read` is empty."""
        try:
            rows = list(csv.reader(io.StringIO(_text(folder / self.name), newline="")))
        except csv.Error:
            rows = []
        if not rows or tuple(rows[0][: len(self.columns)]) != self.columns:
            return [], []
        return rows[0], rows[1:]

    def write(self, folder: Path, rows: Iterable[Sequence[object]], *, further: Sequence[str] = ()) -> None:
        """Replaces the file; `further` are columns to the right of `columns`. Names in cells become text (`as_text`).

        Raises:
            PlatformError: a full disk, a missing permission; the file that was there stays.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.columns, *further])
        writer.writerows([as_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
        write_text(folder / self.name, text.getvalue())


# of a run's folder
JOB = Document("job.json")
ARCHIVE = "model.tar.gz"
SPLIT_FOLDER = "split"
LOG = "logs/job.log"
ACCESS_LOG = "logs/access.log"
TRIALS_FOLDER = "trials"
TRIALS = Table("trials.csv", ("trial", "status"))  # then each hyperparameter, the objective, and TRIALS_END
TRIALS_END = ("best_epoch", "epochs", "seconds", "failure", "folder")
BEST = Document("best.json")
STUDY = "study.journal"
TUNING_PICTURE = "tuning.svg"

# of input/config: what a search asks of a trial
TRIAL = Document("trial.json")
TRIED = "tried"  # the outcome, in metrics.json, of a trial that has neither been tested nor written a model

# of output/data
HISTORY = Lines("history.jsonl", number="epoch")
RESULT = Document("metrics.json")
BAD_IMAGES = Document("bad_images.json")
DATASET = Document("dataset.json")
FINDINGS = Document("findings.json")
SUSPECTED_LABELS = Document("suspected_labels.json")
MAX_SUSPECTS = 1000  # that are named in it
PER_CLASS = Table("per_class.csv", ("class", "images", "precision", "recall", "f1"))
CONFUSION = Table("confusion.csv", ("true \\ predicted",))
TEST_PREDICTIONS = Table("test_predictions.csv", ("path", "label", "predicted", "probability"))
SETUP = Document("setup.json", formerly="job.json")
STEPS = Lines("steps.jsonl")
STATISTICS = Lines("statistics.jsonl")
CLASSES = Lines("classes.jsonl")
RULES = Document("rules.json")
TRACE = "trace.json.gz"
SYSTEM_FOLDER = "profiler/system/incremental"  # below output/data, so that SageMaker keeps it

# of output/data for a job, of the run's folder for a search
REPORT_HTML = "report.html"
REPORT = Document("report.json")


@dataclass(frozen=True)
class Failure:
    """The first cause of a job's end, and what to do about it; both empty for a job that wrote none."""

    message: str = ""
    hint: str = ""

    @property
    def is_stop(self) -> bool:
        """Whether the job was stopped, and did not fail."""
        return self.message.startswith(_STOPPED)


def stop_message(reason: str, where: str) -> str:
    """The cause of a job that was stopped: what `Failure.is_stop` knows again."""
    return f"{_STOPPED}{reason} {where}"


def failure_text(error: ClassifierError) -> str:
    """The content of output/failure: the sentence, and the hint on a second line, cut to what SageMaker shows."""
    return (f"{error.message}{_HINT}{error.hint}" if error.hint else error.message)[:FAILURE_MAX_CHARS]


def parse_failure(text: str) -> Failure:
    """The inverse of `failure_text`, for any text."""
    message, _, hint = text.strip().partition(_HINT)
    return Failure(message.strip(), hint.strip())


def read_failure(path: Path) -> Failure:
    """What a failure file says."""
    return parse_failure(_text(path))


_RESULT_TYPES: Mapping[str, type | tuple[type, ...]] = {  # of metrics.json
    "outcome": str,
    "reason": str,
    "advice": str,
    "device": str,
    "best_epoch": int,
    "epochs": int,
    "classes": int,
    "unreadable_images": int,
    "bf16": bool,
    "seconds": (int, float),
}


def read_result(folder: Path) -> dict[str, Any]:
    """What is sound in metrics.json: values of the types that a training writes, `metrics` and `images` of numbers,
    as are `calibration` (`vision/temperature.py`), `uncalibrated`, metrics without a temperature, and `abstain`:
    `below` which probability, and `coverage` and `accuracy` of the test images that are answered; empty without any.

    `answered` holds, for valid and test, what guessing would have got: `images` that were answered, of those the images
    of the `largest_class` and of the `largest_five` classes.
    """
    found = RESULT.read_object(folder)
    result = {name: value for name, value in found.items() if isinstance(value, _RESULT_TYPES.get(name, ()))}
    for name, kind in (
        ("metrics", (int, float)),
        ("images", int),
        ("uncalibrated", float),
        ("calibration", (int, float)),
        ("abstain", float),
    ):
        if isinstance(numbers := found.get(name), dict):
            result[name] = {key: value for key, value in numbers.items() if isinstance(value, kind)}
    result["answered"] = sound_counts(found.get("answered"))
    return result if found else {}


_SUSPECTS_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "images": int,
    "count": int,
    "silent": str,
    "method": str,
    "agreement": (int, float),
}
_SUSPECT_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "path": str,
    "label": str,
    "meant": str,
    "label_probability": (int, float),
    "meant_probability": (int, float),
}


def read_suspects(folder: Path) -> dict[str, Any] | None:
    """What SUSPECTED_LABELS says; None when it is not there or damaged.

    `images` were judged, of the `splits`, by the `method` (`left out`: by heads that all other images have trained;
    `validation`: by the model, which has not seen their labels). `agreement` is the share of labels that are the most
    probable class. `silent` says why nothing is said; `count` labels are likely wrong, of which `suspects` has the
    clearest: `path` from the folder of the channels, the `label` and the class that is `meant`, and both probabilities.
    """
    found = SUSPECTED_LABELS.read_object(folder)
    rows = found.get("suspects")
    if not _has(found, _SUSPECTS_TYPES) or not isinstance(rows, list):
        return None
    sound = [{name: row[name] for name in _SUSPECT_TYPES} for row in rows if _has(row, _SUSPECT_TYPES)]
    return {name: found[name] for name in _SUSPECTS_TYPES} | {"suspects": sound}


def _has(values: Any, types: Mapping[str, type | tuple[type, ...]]) -> bool:
    return isinstance(values, dict) and all(
        isinstance(values.get(name), kind) and not isinstance(values[name], bool) for name, kind in types.items()
    )


def sound_counts(splits: Any) -> dict[str, dict[str, int]]:
    """What is sound of `answered` in metrics.json, or in a report."""
    found = splits.items() if isinstance(splits, dict) else ()
    return {str(split): dict(counts) for split, counts in found if _are_counts(counts)}


def _are_counts(value: Any) -> bool:
    """Whether it is what `answered` has of a split: numbers of images, none of which is larger than all of them."""
    if not isinstance(value, dict) or not {"images", "largest_class", "largest_five"} <= value.keys():
        return False
    counts = [value[name] for name in ("largest_class", "largest_five", "images")]
    return all(type(count) is int for count in counts) and 0 < counts[0] <= counts[1] <= counts[2]


@dataclass(frozen=True, kw_only=True)
class BestEpoch:
    """A job's best epoch, from 1, with the objective's value and the validation loss there (infinite if unknown)."""

    epoch: int
    value: float
    loss: float


def best_epoch(history: Iterable[Mapping[str, float]], objective: str = DEFAULT_OBJECTIVE) -> BestEpoch | None:
    """The epoch whose weights a job keeps: the best value of the objective, of equals the lowest validation loss, of
    equals the first. None when no epoch has a finite value."""
    sign = 1.0 if METRIC_BY_NAME[objective].maximize else -1.0
    best: BestEpoch | None = None
    for number, row in enumerate(history, 1):
        value, loss = _finite(row.get(objective)), _finite(row.get(VALIDATION_LOSS))
        if value is None:
            continue
        found = BestEpoch(epoch=number, value=value, loss=math.inf if loss is None else loss)
        if best is None or (sign * found.value, -found.loss) > (sign * best.value, -best.loss):
            best = found
    return best


def read_json(path: Path) -> Any:
    """The value of a strict JSON file, None when there is no such file or it is damaged."""
    return parse_json(_text(path))


def parse_json(text: str) -> Any:
    """The value of strict JSON, None for anything else: what is read here holds no number that is not finite."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def _finite_only(line: str) -> dict[str, Any] | None:
    """The object in a line, without numbers that are not finite; None for any other line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return {key: each for key, each in value.items() if not isinstance(each, float) or math.isfinite(each)}


def _text(path: Path) -> str:
    """The file's text, empty when it cannot be read; bytes that are no UTF-8 become U+FFFD.

    Nothing is read from what is no file: a pipe would make the reader wait for ever.
    """
    try:
        with open_plain(path, "r", encoding="utf-8", errors="replace") as file:
            return str(file.read())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return ""


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
