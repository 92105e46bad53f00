"""What a search found: a row a trial, the best of them, and the files that keep it (trials.csv, best.json, ...)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from image_classifier.contract.config import TrainConfig, Value
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.outputs import (
    BEST,
    JOB,
    TRIALS,
    TRIALS_END,
    TRIALS_FOLDER,
    BestEpoch,
    best_epoch,
)
from image_classifier.contract.search import Range
from image_classifier.launch.runs import Run
from image_classifier.tuning.warm_start import NOTHING, WarmStart

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial. `curve` is the objective after each epoch; `value` is None unless the trial completed."""

    number: int
    status: str
    config: TrainConfig
    value: float | None
    best: BestEpoch | None
    seconds: float
    failure: str
    path: Path
    curve: tuple[tuple[int, float], ...]

    @property
    def finished(self) -> bool:
        """It is over: completed, pruned or failed."""
        return self.status in {"Completed", "Pruned", "Failed"}

    @classmethod
    def of(cls, trial: optuna.trial.FrozenTrial, tuning: Run, objective: str) -> Self:
        """Puts together what the study and the trial's folder know."""
        words = {"COMPLETE": "Completed", "PRUNED": "Pruned", "FAIL": "Failed", "RUNNING": "InProgress"}
        number = int(trial.user_attrs["number"])
        run = Run(path=tuning.path / TRIALS_FOLDER / f"{number:03}")
        record = run.record() if (run.path / JOB.name).is_file() else None
        curve, history = sorted(trial.intermediate_values.items()), run.history()
        if words[trial.state.name] == "Pruned" and curve:  # it may have come further before it heard of its end
            history = [row for row in history if row["epoch"] <= curve[-1][0]]
        return cls(
            number=number,
            status=words[trial.state.name],
            config=TrainConfig.from_hyperparameters(record.config) if record else TrainConfig(),
            value=trial.value if trial.state.name == "COMPLETE" else None,
            best=best_epoch(history, objective),
            seconds=record.duration_s if record else 0.0,
            failure=str(trial.user_attrs.get("failure", "")),
            path=run.path,
            curve=tuple(curve),
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a search, ready to be shown. `learned`: lines on the earlier searches it learned from."""

    run: Run
    data: Path
    objective: str
    best_trial: int
    best_value: float
    best_values: Mapping[str, Value]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    seconds: float = 0.0
    learned: tuple[str, ...] = ()


def pick_best(rows: Sequence[TrialRow], objective: str) -> TrialRow | None:
    """The completed trial with the best value; the validation loss settles ties, then the number."""
    sign = 1.0 if METRIC_BY_NAME[objective].maximize else -1.0
    done = [row for row in rows if row.value is not None and row.best is not None]
    return max(
        done,
        key=lambda row: (sign * (row.value or 0.0), -(row.best.loss if row.best else math.inf), -row.number),
        default=None,
    )


def write_results(
    run: Run,
    rows: Sequence[TrialRow],
    objective: str,
    space: Mapping[str, Range],
    *,
    carried: Mapping[str, str],
    earlier: WarmStart = NOTHING,
) -> Found:
    """Writes trials.csv, best.json and the report with its picture. At least one of `rows` has completed.

    Args:
        earlier: what the search learned from others; named in best.json, with a trial of theirs that was better.
    """
    from image_classifier.report import write_report

    best = pick_best(rows, objective)
    if best is None or best.best is None:
        raise ValueError("no trial has completed")
    columns, table = _table(rows, objective, space)
    _write_table(run.path, rows, objective, space)
    texts = best.config.to_hyperparameters()
    document: dict[str, Any] = {
        "hyperparameters": {**carried, **{name: texts[name] for name in space}},
        "objective": objective,
        "value": best.value,
        "epoch": best.best.epoch,
        "trial": best.number,
        "run": run.name,
        "data": run.record().data,
        "config": texts,
    }
    if earlier.runs:
        document["warm_start"] = {"searches": earlier.by_run(), "better": _better(earlier, objective, best.best.value)}
    BEST.write(run.path, document)
    write_report(run.path)
    return Found(
        run=run,
        data=Path(run.record().data),
        objective=objective,
        best_trial=best.number,
        best_value=best.best.value,
        best_values={name: getattr(best.config, name) for name in space},
        columns=columns,
        rows=table,
        learned=_learned(earlier, objective, best.best.value),
    )


def _better(earlier: WarmStart, objective: str, value: float) -> dict[str, Any] | None:
    """The best trial of earlier searches over the same images, None unless it is better than `value`."""
    best, sign = earlier.best(objective), 1.0 if METRIC_BY_NAME[objective].maximize else -1.0
    if best is None or sign * best.value <= sign * value:
        return None
    return {"run": best.run, "trial": best.number, "value": best.value}


def _learned(earlier: WarmStart, objective: str, value: float) -> tuple[str, ...]:
    lines = earlier.lines()
    if better := _better(earlier, objective, value):
        lines.append(
            f"trial {better['trial']} of {better['run']} was better ({objective} {better['value']:.4f}): "
            f"train --best {better['run']} takes that"
        )
    return tuple(lines)


def _table(
    rows: Sequence[TrialRow], objective: str, space: Mapping[str, Range]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Column names, and a row of texts a trial."""
    columns = ("trial", *space, objective, "epoch", "seconds", "status")
    return columns, tuple(
        (
            str(row.number),
            *(str(getattr(row.config, name)) for name in space),
            f"{row.best.value:.4f}" if row.best else "",
            str(row.best.epoch) if row.best else "",
            f"{row.seconds:.0f}",
            f"{row.status}: {row.failure}" if row.failure else row.status,
        )
        for row in rows
    )


def _write_table(folder: Path, rows: Sequence[TrialRow], objective: str, space: Mapping[str, Range]) -> None:
    cells = []
    for row in rows:
        values = row.config.to_hyperparameters()
        found = [row.best.value, row.best.epoch] if row.best else ["", ""]
        end = [len(row.curve), f"{row.seconds:.1f}", row.failure, f"{TRIALS_FOLDER}/{row.path.name}"]
        cells.append([row.number, row.status, *(values[name] for name in space), *found, *end])
    TRIALS.write(folder, cells, further=[*space, objective, *TRIALS_END])
