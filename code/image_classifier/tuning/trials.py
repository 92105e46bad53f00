"""What a search found: a row a trial, the best of them, and the files that keep it (trials.csv, best.json, ...)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from image_classifier.contract.config import TrainConfig, Value
from image_classifier.contract.files import write_text
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.search import Range
from image_classifier.launch.runs import Run

if TYPE_CHECKING:
    import optuna

TRIALS = "trials"
LOSS = "validation:loss"


@dataclass(frozen=True, kw_only=True)
class Best:
    """A job's best epoch (1-based) by the objective, with the validation loss there, which settles ties."""

    value: float
    epoch: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial. `curve` is the objective after each epoch; `value` is None unless the trial completed."""

    number: int
    status: str
    config: TrainConfig
    value: float | None
    best: Best | None
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
        run = Run(path=tuning.path / TRIALS / f"{number:03}")
        record = run.record() if (run.path / "job.json").is_file() else None
        return cls(
            number=number,
            status=words[trial.state.name],
            config=TrainConfig.from_hyperparameters(record.config) if record else TrainConfig(),
            value=trial.value if trial.state.name == "COMPLETE" else None,
            best=objective_at_best(run, objective),
            seconds=record.duration_s if record else 0.0,
            failure=str(trial.user_attrs.get("failure", "")),
            path=run.path,
            curve=tuple(sorted(trial.intermediate_values.items())),
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a search, ready to be shown."""

    run: Run
    data: Path
    objective: str
    best_trial: int
    best_value: float
    best_values: Mapping[str, Value]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    seconds: float = 0.0


def objective_at_best(run: Run, objective: str) -> Best | None:
    """The best epoch in a job's history.jsonl; None when it has none."""
    sign = 1.0 if METRIC_BY_NAME[objective].maximize else -1.0
    best: Best | None = None
    for epoch, row in enumerate(history(run), 1):
        value = row.get(objective)
        if value is None or not math.isfinite(value):
            continue
        loss = float(row.get(LOSS, math.inf))
        if best is None or (sign * value, -loss) > (sign * best.value, -best.loss):
            best = Best(value=float(value), epoch=epoch, loss=loss)
    return best


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
) -> Found:
    """Writes trials.csv, best.json, tuning.svg and report.html. At least one of `rows` has completed."""
    from image_classifier.report import write_report
    from image_classifier.tuning.picture import draw

    best = pick_best(rows, objective)
    if best is None or best.best is None:
        raise ValueError("no trial has completed")
    columns, table = _table(rows, objective, space)
    write_text(run.path / "trials.csv", _csv(rows, objective, space))
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
    write_text(run.path / "best.json", json.dumps(document, indent=1) + "\n")
    draw(run.path / "tuning.svg", rows, best, objective, space)
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
    )


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


def _csv(rows: Sequence[TrialRow], objective: str, space: Mapping[str, Range]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", *space, objective, "best_epoch", "epochs", "seconds", "failure", "folder"])
    for row in rows:
        values = row.config.to_hyperparameters()
        found = [row.best.value, row.best.epoch] if row.best else ["", ""]
        end = [len(row.curve), f"{row.seconds:.1f}", row.failure, f"{TRIALS}/{row.path.name}"]
        writer.writerow([row.number, row.status, *(values[name] for name in space), *found, *end])
    return text.getvalue()


def history(run: Run) -> list[dict[str, float]]:
    """The epochs of a job, metric name -> value; empty when it left none."""
    try:
        lines = (run.paths.output_data / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
