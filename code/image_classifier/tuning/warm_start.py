"""What a search learns from earlier ones, and as what: SageMaker's two kinds of warm start, told apart for each trial.

A trial of the same images by the same version of the code, with the same hyperparameters besides those that are
searched, is IDENTICAL: its value counts like one of the search's own. Of any other, TRANSFER, only the place is taken:
values of other images or more epochs are on another scale, so the best points of such trials are tried again, first.

The earlier runs are read once, when the search is made, and what was read is kept in the search's record: they may be
gone when it goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import image_classifier
from image_classifier.contract.config import TrainConfig, Value, format_value, parameters, parse_value
from image_classifier.contract.errors import ClassifierError, ConfigError
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.outputs import JOB, TRIALS_FOLDER, best_epoch
from image_classifier.contract.search import Categorical, Range
from image_classifier.launch.runs import ACTIVE, Record, Run, Status, find_run
from image_classifier.tuning.tune_settings import KIND, NO_SEARCHES

IDENTICAL = "IdenticalDataAndAlgorithm"  # SageMaker's words, WarmStartType
TRANSFER = "TransferLearning"
MAX_SEARCHES = 5  # ParentHyperParameterTuningJobs' limit
PRUNED = "pruned"  # how the failure of a pruned trial's record begins
_ROUNDING = 1e-5  # relative: a trial is run with 6 digits of what was drawn, and may lie that far outside of its range


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """A trial of an earlier search, as this one sees it.

    Args:
        run, number: the search, and the trial's number there, from 1.
        kind: IDENTICAL or TRANSFER.
        values: the searched hyperparameters of this search, each within its range.
        value: the objective at the trial's best epoch.
        curve: (epoch, objective) of each epoch.
    """

    run: str
    number: int
    kind: str
    values: Mapping[str, Value]
    value: float
    pruned: bool
    curve: tuple[tuple[int, float], ...]

    @property
    def name(self) -> str:
        return f"{self.run}/{self.number:03}"

    def to_json(self) -> dict[str, Any]:
        """What job.json keeps of it."""
        return dataclasses.asdict(self) | {"values": {name: format_value(value) for name, value in self.values.items()}}

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> EarlierTrial:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError for anything else."""
        curve = tuple((int(epoch), float(value)) for epoch, value in row["curve"])
        values = {str(name): parse_value(str(name), str(text)) for name, text in row["values"].items()}
        return cls(
            run=str(row["run"]),
            number=int(row["number"]),
            kind={IDENTICAL: IDENTICAL, TRANSFER: TRANSFER}[row["kind"]],
            values=values,
            value=float(row["value"]),
            pruned=bool(row["pruned"]),
            curve=curve,
        )


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """All that a search learns from earlier ones. `outside`: run -> trials that this search cannot use."""

    trials: tuple[EarlierTrial, ...] = ()
    outside: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(self.outside)

    @property
    def identical(self) -> tuple[EarlierTrial, ...]:
        return tuple(trial for trial in self.trials if trial.kind == IDENTICAL)

    def to_json(self) -> dict[str, Any]:
        """What job.json keeps of it."""
        return {"trials": [trial.to_json() for trial in self.trials], "outside": dict(self.outside)}

    @classmethod
    def parse(cls, document: Mapping[str, Any] | None) -> WarmStart:
        """The inverse of `to_json`; nothing, of a search without. Raises KeyError, TypeError, ValueError."""
        if document is None:
            return cls()
        outside = {str(run): int(count) for run, count in document["outside"].items()}
        return cls(trials=tuple(EarlierTrial.parse(row) for row in document["trials"]), outside=outside)

    def points_tried(self) -> set[tuple[Value, ...]]:
        """Values whose outcome is known, in the order of the space."""
        return {tuple(trial.values.values()) for trial in self.identical}

    def points_to_try(self, objective: str, most: int) -> list[dict[str, Value]]:
        """Values of the best trials of TRANSFER, `most` of them: the best of each run first, then the second best."""
        sign = -1.0 if METRIC_BY_NAME[objective].maximize else 1.0
        ranked: list[tuple[int, int, dict[str, Value]]] = []
        for place, run in enumerate(self.runs):
            found = [trial for trial in self.trials if (trial.run, trial.kind, trial.pruned) == (run, TRANSFER, False)]
            found.sort(key=lambda trial: (sign * trial.value, trial.number))
            ranked += [(rank, place, dict(trial.values)) for rank, trial in enumerate(found)]
        points: list[dict[str, Value]] = []
        for _, _, values in sorted(ranked, key=lambda each: each[:2]):
            if values not in points and tuple(values.values()) not in self.points_tried():
                points.append(values)
        return points[:most]

    def best(self, objective: str) -> EarlierTrial | None:
        """The best of the trials whose values compare with the search's own."""
        sign = 1.0 if METRIC_BY_NAME[objective].maximize else -1.0
        done = [trial for trial in self.identical if not trial.pruned]
        return max(done, key=lambda trial: sign * trial.value, default=None)

    def by_run(self) -> list[dict[str, Any]]:
        """A row a run: how many of its trials count as what, and how many could not be used."""
        return [
            {
                "run": run,
                **{kind: sum((t.run, t.kind) == (run, kind) for t in self.trials) for kind in (IDENTICAL, TRANSFER)},
                "outside": self.outside[run],
            }
            for run in self.runs
        ]

    def lines(self) -> list[str]:
        """`by_run` for a person."""
        return [
            f"learns from {row['run']}: "
            + ", ".join(
                [f"{row[kind]} trials as {kind}" for kind in (IDENTICAL, TRANSFER) if row[kind]]
                + ([f"{row['outside']} lie outside of the ranges"] if row["outside"] else [])
            )
            for row in self.by_run()
        ]


NOTHING = WarmStart()


def searches_named(text: str) -> list[str]:
    """The names in `warm_start`. Raises ConfigError for too many, one twice or one without a name."""
    if text == NO_SEARCHES:
        return []
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"warm_start = {text!r} names no search at one of its places", "example: --from RUN,RUN")
    if len(names) > MAX_SEARCHES:
        raise ConfigError(f"a search can learn from {MAX_SEARCHES} earlier ones at most, not from {len(names)}")
    return names


def learn_from(
    names: Sequence[str],
    runs_dir: Path,
    *,
    base: TrainConfig,
    space: Mapping[str, Range],
    objective: str,
    images: str,
) -> WarmStart:
    """Reads the trials of earlier searches.

    Args:
        names: of their runs, or their folders.
        base, space, objective: the new search.
        images: the fingerprint of its images.

    Raises:
        ConfigError: there is no such search, it still runs, it went by another metric, or no trial of it is of use.
        PlatformError: its record is damaged.
    """
    trials: list[EarlierTrial] = []
    outside: dict[str, int] = {}
    for name in names:
        run = find_run(runs_dir, name, kind=KIND)
        if run.name in outside:
            raise ConfigError(f"{name} is named twice to learn from")
        record = run.record()
        if record.status in ACTIVE:
            raise ConfigError(f"{run.name} is still running", "learn from it when it has ended")
        with run.intact():
            theirs = str(record.details["tune"]["objective"])
        if theirs != objective:
            raise ConfigError(
                f"{run.name} went by {theirs}, this search goes by {objective}: their values do not compare",
                f"give --objective {theirs}, or learn from another search",
            )
        same = bool(images) and (record.details.get("images"), record.version) == (images, image_classifier.__version__)
        found, outside[run.name] = _trials_of(run, base, space, objective, same=same)
        trials += found
        if not found:
            why = "all of its trials lie outside of the ranges" if outside[run.name] else "no trial of it has a result"
            raise ConfigError(f"nothing can be learned from {run.name}: {why}")
    return WarmStart(trials=tuple(trials), outside=outside)


def _trials_of(
    run: Run, base: TrainConfig, space: Mapping[str, Range], objective: str, *, same: bool
) -> tuple[list[EarlierTrial], int]:
    """The trials that lie in the space, and how many do not. `same`: images and code are this search's."""
    found, outside = [], 0
    fixed = [known.name for known in parameters() if known.changes_result and known.name not in space]
    for folder in sorted((run.path / TRIALS_FOLDER).glob("*")):
        if not (folder.name.isdigit() and JOB.is_in(folder)):
            continue
        trial = Run(path=folder)
        record, history = trial.record(), trial.history()
        best = best_epoch(history, objective)
        if best is None or not (record.status == Status.COMPLETED or was_pruned(record)):
            continue
        try:
            config = TrainConfig.from_hyperparameters(record.config)
            values = {name: within(spec, getattr(config, name)) for name, spec in space.items()}
        except ClassifierError:  # of a version with other hyperparameters
            outside += 1
            continue
        if None in values.values():
            outside += 1
            continue
        alike = same and all(getattr(config, name) == getattr(base, name) for name in fixed)
        curve = [(int(row["epoch"]), row[objective]) for row in history if isinstance(row.get(objective), float)]
        found.append(
            EarlierTrial(
                run=run.name,
                number=int(folder.name),
                kind=IDENTICAL if alike else TRANSFER,
                values={name: value for name, value in values.items() if value is not None},
                value=best.value,
                pruned=was_pruned(record),
                curve=tuple(curve),
            )
        )
    return found, outside


def was_pruned(record: Record) -> bool:
    """Whether a trial's search ended it before its last epoch."""
    return record.status == Status.STOPPED and record.failure.startswith(PRUNED)


def within(spec: Range, value: Value) -> Value | None:
    """The value as one of the range's, None where it lies outside."""
    if isinstance(spec, Categorical):
        return value if any(value == each and type(value) is type(each) for each in spec.values) else None
    if isinstance(value, (bool, str)):
        return None
    near = min(max(value, spec.low), spec.high)
    return near if abs(near - value) <= _ROUNDING * abs(near) else None
