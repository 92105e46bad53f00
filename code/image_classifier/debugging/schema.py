"""The files in which a job writes what it observed of itself, and what its rules say. Standard library only.

    output/tensors/attempt-N/                 smdebug: losses, labels and predictions every step, reduced tensors
    output/data/profiler/system/incremental/  system metrics, in the format smdebug's readers parse
        YYYYMMDDHH/<unix minute>.algo-N.json  one SystemSample a line
    output/data/setup.json                    JobFacts: the configuration and the machine
    output/data/steps.jsonl                   one StepRecord a line: losses, and where the step's time went
    output/data/statistics.jsonl              one StatisticsRecord a line: gradients, weights, activations by layer
    output/data/classes.jsonl                 one ClassCounts a line: labels and right answers of an epoch by class
    output/data/rules.json                    a list of RuleResults, in the order of the rule table
    output/data/report.html, report.json      all of this explained (report)
    output/data/trace.json.gz                 a torch.profiler window, opens in https://ui.perfetto.dev

Steps are counted from 0 over the whole job, each mode for itself, also through an interruption: a line written again
after one replaces the line before it. Times are Unix seconds, durations seconds. In .jsonl files a number that is not
finite is written as Python's json module writes it: NaN, Infinity. With several processes, all but rank 0 add
`-rank-R` to the stem of the file's name (`steps-rank-1.jsonl`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from image_classifier.contract.files import open_plain
from image_classifier.contract.outputs import CLASSES, SETUP, STATISTICS, STEPS, SYSTEM_FOLDER

Mode = Literal["train", "eval", "test"]
MODES: tuple[Mode, ...] = ("train", "eval", "test")  # smdebug's TRAIN, EVAL and PREDICT

PHASES = ("data_wait_s", "sync_s", "h2d_s", "forward_s", "backward_s", "optimizer_s", "hook_s")
"""Where a step's time goes, in the order of the step; `sync` is waiting until the other processes have their batch too,
`h2d` the copy of the batch to the device, `hook` the observing itself. What is left of `seconds` is Python between the
phases."""
GPU_PHASES = frozenset({"h2d_s", "forward_s", "backward_s", "optimizer_s"})  # a GPU does these in its own time


@dataclass(frozen=True, kw_only=True, slots=True)  # slots: a long job has a million
class StepRecord:
    """One step: a line of steps.jsonl.

    Args:
        step: from 0, over the whole job, of this mode.
        epoch: from 1; for `test`, the best epoch.
        mode: train, eval (the validation after an epoch) or test.
        time: when the step ended, Unix seconds.
        seconds: from the end of the step before to the end of this one, on the CPU's clock.
        images: in the batch, over the readable ones.
        loss: mean over the batch, of the loss that is minimised (with label smoothing, when training).
        clean_loss: mean cross entropy against the true labels, comparable between modes.
        data_wait_s, sync_s, h2d_s, forward_s, backward_s, optimizer_s, hook_s: see PHASES. On a GPU, h2d to optimizer
            are measured on the GPU by events. None where the mode has no such phase, or it was not measured.
        thread_s: processor time of the thread that makes the steps, in `seconds`. Where a GPU computes, it launches the
            kernels; it is also busy while it waits for room to launch more, so that only the least of many steps tells
            what launching takes.
    """

    step: int
    epoch: int
    mode: Mode
    time: float
    seconds: float
    images: int
    loss: float
    clean_loss: float
    data_wait_s: float | None = None
    sync_s: float | None = None
    h2d_s: float | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    optimizer_s: float | None = None
    hook_s: float | None = None
    thread_s: float | None = None


Statistics = Mapping[str, Mapping[str, float]]  # tensor's name -> statistic -> value


@dataclass(frozen=True, kw_only=True)
class StatisticsRecord:
    """The tensors of one training step: a line of statistics.jsonl. A part that was not recorded is empty.

    Args:
        step: as in StepRecord, of mode train.
        gradients: parameter -> abs_mean, l2, abs_max; of the gradient the optimiser used. Trained parameters with two
            dimensions or more (filters and matrices), in the order of the network.
        weights: the same parameters -> abs_mean, l2, abs_max before the step, and update_ratio, the l2 norm of the
            step's change divided by the l2 norm of the weights (+ 1e-9).
        activations: activation layer and its call (`layer1.0.relu_output_2`) -> input_std, of what goes in, over
            images and positions, mean over units (channels); abs_max and zero_share of what comes out; dead_share, of
            its units that are above 0 for less than 1 % of images and positions; looks, how many of these there were.
            In the order of the forward pass.
        inputs: channel (`0`, `1`, `2`) -> mean, std of the batch, normalised as the network sees it; images.
        batch: what was made of the batch: outputs, labels, row_sums, column_sums, shares, fit, pairs, norms; see
            outputstats.
    """

    step: int
    gradients: Statistics = field(default_factory=dict)
    weights: Statistics = field(default_factory=dict)
    activations: Statistics = field(default_factory=dict)
    inputs: Statistics = field(default_factory=dict)
    batch: Statistics = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """The classes of one epoch's images: a line of classes.jsonl.

    Args:
        step: last step of the epoch, of this mode.
        epoch: from 1.
        labels: by class, how many images had it as their label.
        hits: by class, how many of these were classified correctly.
    """

    mode: Mode
    step: int
    epoch: int
    labels: tuple[int, ...]
    hits: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemSample:
    """One system metric at one moment: a line of a profiler file. `to_line` writes the names smdebug expects.

    | type    | name             | dimension                                  | value                     |
    |---------|------------------|--------------------------------------------|---------------------------|
    | cpu     | cpu0, cpu1, ...  | CPUUtilization                             | percent of the core       |
    | cpu     | cpu              | I/OWaitPercentage                          | percent of all cores      |
    | memory  | memory           | MemoryUsedPercent                          | percent of the machine    |
    | memory  | process          | ProcessMemoryBytes                         | bytes, with its children  |
    | disk    | disk             | DiskReadBytesPerSecond, ...Write...        | bytes a second            |
    | network | network          | NetworkReceivedBytesPerSecond, ...Sent...  | bytes a second            |
    | gpu     | gpu0, gpu1, ...  | GPUUtilization, GPUMemoryUtilization       | percent                   |
    | gpu     | gpu0, gpu1, ...  | GPUPowerWatts                              | watts                     |

    GPUMemoryUtilization is the share of the GPU's memory that is in use.
    """

    type: str
    name: str
    dimension: str
    value: float
    node: str
    time: float

    def to_line(self) -> str:
        """As smdebug's readers parse it."""
        names = ("Type", "Name", "Dimension", "Value", "NodeId", "Timestamp")
        return json.dumps(dict(zip(names, dataclasses.astuple(self), strict=True)))

    @classmethod
    def from_line(cls, line: str) -> SystemSample:
        """The inverse of `to_line`. Raises ValueError or KeyError on anything else."""
        row, _ = _DECODER.raw_decode(line)
        if not math.isfinite(float(row["Value"])):
            raise ValueError(f"{row['Dimension']} is {row['Value']}")
        return cls(
            type=sys.intern(row["Type"]),
            name=sys.intern(row["Name"]),
            dimension=sys.intern(row["Dimension"]),
            value=float(row["Value"]),
            node=sys.intern(row["NodeId"]),
            time=float(row["Timestamp"]),
        )


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What the rules and the report know of a job besides its measurements: setup.json.

    Args:
        config: hyperparameter -> value, all of them.
        classes: in the order of the labels.
        images: split -> number of images.
        steps_per_epoch: training steps.
        started: Unix seconds at which the job's (first attempt's) process began.
        restarts: those of its later attempts.
        prepared: seconds that each attempt computed features before its first step.
        cores: CPU cores the job may use.
        gpus: GPUs' names, empty without one.
        world_size: training processes.
        workers: data loading processes, as `auto` decided.
        cached: whether decoded training images are kept in memory: wanted, and granted by the system.
        environment: name -> text: python, torch, platform, device, number format, host.
        preflight: what was found before the first step, see debugging/preflight.py; empty where nobody looked.
        replicas: of each epoch's end, how many processes had other weights than the first; empty with one process.
        validated_in_training: how many validations began with the network in training mode, where that matters.
    """

    config: dict[str, Any]
    classes: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    steps_per_epoch: int = 0
    started: float = 0.0
    restarts: list[float] = field(default_factory=list)
    prepared: list[float] = field(default_factory=lambda: [0.0])
    cores: int = 1
    gpus: list[str] = field(default_factory=list)
    world_size: int = 1
    workers: int = 0
    cached: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    preflight: dict[str, Any] = field(default_factory=dict)
    replicas: list[int] = field(default_factory=list)
    validated_in_training: int = 0


class Verdict(StrEnum):
    """What a rule says."""

    NO_ISSUES = "NoIssuesFound"
    ISSUES = "IssuesFound"
    INSUFFICIENT_DATA = "InsufficientData"
    ERROR = "Error"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One measurement that made a rule fire: `name` says of what (`gradient layer1.0.conv1.weight abs_mean`), `step`
    when, None for a measurement over the whole job."""

    step: int | None
    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class RuleResult:
    """What one rule says of one job: an element of rules.json.

    Args:
        rule: its name, in CamelCase: VanishingGradient.
        verdict: see Verdict.
        severity: how much it matters when it fires: info, warning or critical.
        summary: one sentence: what was found, or what is missing.
        advice: one sentence that names hyperparameters; empty unless issues were found.
        evidence: at most MAX_EVIDENCE; for a rule of statistics (OverallSystemUsage), its table whatever the verdict.
        parameters: of the rule, name -> value.
        datapoints: how many measurements it looked at.
        symptom_of: the rule that fired and accounts for this finding; empty for a finding of its own.
        applies: False where the job has nothing of what it asks about, such as a GPU: it lacks no data then.
    """

    rule: str
    verdict: Verdict
    severity: Literal["info", "warning", "critical"]
    summary: str
    advice: str = ""
    evidence: tuple[Evidence, ...] = ()
    parameters: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    datapoints: int = 0
    applies: bool = True
    symptom_of: str = ""


MAX_EVIDENCE = 20
_DECODER = json.JSONDecoder()  # `json.loads` looks for white space twice; reading takes half the time without


def to_json(record: Any) -> str:
    """One line of JSON for any dataclass here. Fields that are None or empty are left out of step and statistics
    records."""
    row = dataclasses.asdict(record)
    if isinstance(record, (StepRecord, StatisticsRecord)):
        row = {name: value for name, value in row.items() if value is not None and value != {}}
    return json.dumps(row, ensure_ascii=False)


def rule_results_to_json(results: Iterable[RuleResult]) -> str:
    """The text of rules.json: strict JSON, a value that is not finite as the text `nan`, `inf` or `-inf`."""
    rows = [dataclasses.asdict(each) for each in results]
    for row in rows:
        for each in row["evidence"]:
            each["value"] = each["value"] if math.isfinite(each["value"]) else str(each["value"])
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def rule_results_from_json(text: str) -> list[RuleResult]:
    """The inverse. Raises ValueError, KeyError or TypeError on anything else."""
    return parse_rule_results(json.loads(text))


def parse_rule_results(rows: Any) -> list[RuleResult]:
    """The same of JSON that was read already. Raises ValueError, KeyError, TypeError, AttributeError, OverflowError."""
    results = []
    for row in rows:
        texts = [row[name] for name in ("rule", "severity", "summary", "advice")]
        if not all(isinstance(text, str) for text in texts) or not isinstance(row["parameters"], dict):
            raise TypeError("no verdict of a rule")
        evidence = tuple(Evidence(**each | {"value": float(each["value"])}) for each in row["evidence"])
        results.append(RuleResult(**row | {"verdict": Verdict(row["verdict"]), "evidence": evidence}))
    return results


def each_step(folder: Path, rank: int = 0) -> Iterator[StepRecord]:
    """The lines of steps.jsonl in output/data, as they were written; none without the file."""
    for row in _rows(folder / of_rank(STEPS.name, rank)):
        record = StepRecord(**row | {"mode": sys.intern(row["mode"])})
        if 0 <= record.seconds < math.inf and 0 <= record.time < math.inf:  # else damaged; a loss may be anything
            yield record


def read_steps(folder: Path, rank: int = 0) -> list[StepRecord]:
    """steps.jsonl of output/data: of each mode and step the last line, ordered by time; empty without the file."""
    rows = {(record.mode, record.step): record for record in each_step(folder, rank)}
    return sorted(rows.values(), key=lambda record: record.time)


def each_statistics(folder: Path) -> Iterator[StatisticsRecord]:
    """The lines of statistics.jsonl in output/data, as they were written; none without the file."""
    for row in _rows(folder / STATISTICS.name):
        yield StatisticsRecord(**row)


def read_statistics(folder: Path) -> list[StatisticsRecord]:
    """statistics.jsonl of output/data, of each step the last line, in the order of the steps; empty without the
    file."""
    rows = {record.step: record for record in each_statistics(folder)}
    return [rows[step] for step in sorted(rows)]


def read_classes(folder: Path) -> list[ClassCounts]:
    """classes.jsonl of output/data, of each mode and step the last line; empty without the file."""
    rows: dict[tuple[str, int], ClassCounts] = {}
    for row in _rows(folder / CLASSES.name):
        record = ClassCounts(**row | {"labels": tuple(row["labels"]), "hits": tuple(row["hits"])})
        rows[record.mode, record.step] = record
    return list(rows.values())


def each_sample(folder: Path) -> Iterator[SystemSample]:
    """All system metrics of a job, of every host, file by file in the order of their names; none without any.

    Args:
        folder: output, or output/data, or the folder output.tar.gz was unpacked in.
    """
    roots = (folder / SYSTEM_FOLDER, folder / "data" / SYSTEM_FOLDER)
    for path in sorted(path for root in roots for path in root.glob("*/*.json") if path.is_file()):
        with open_plain(path, "r", encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    sample = SystemSample.from_line(line)
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                    OverflowError,
                    RecursionError,
                ):  # cut off, or foreign
                    continue
                yield sample


def read_system(folder: Path) -> list[SystemSample]:
    """The same in the order of time."""
    return sorted(each_sample(folder), key=lambda sample: sample.time)


def read_job(folder: Path) -> JobFacts | None:
    """setup.json of output/data, None without it. Raises TypeError when it is damaged, or another version's."""
    return JobFacts(**SETUP.read(folder)) if SETUP.is_in(folder) else None


def of_rank(name: str, rank: int) -> str:
    """The name of a file of one process: `steps.jsonl`, `steps-rank-1.jsonl`."""
    stem, dot, suffix = name.partition(".")
    return name if rank == 0 else f"{stem}-rank-{rank}{dot}{suffix}"


def other_ranks(folder: Path) -> list[int]:
    """The processes besides the main one that left steps in output/data."""
    stem, _, suffix = STEPS.name.partition(".")
    pattern = re.compile(rf"{re.escape(stem)}-rank-(\d+)\.{re.escape(suffix)}")
    return sorted(int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines, but for a line that was cut off when a process was killed."""
    if not path.is_file():
        return
    with open_plain(path, "r", encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row, end = _DECODER.raw_decode(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and line[end:] in ("\n", ""):
                yield row
