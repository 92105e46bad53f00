"""Facts of a tuning run, from its folder: trials, what was best, and how much each hyperparameter mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import DataError
from image_classifier.contract.metrics import DEFAULT_OBJECTIVE, METRIC_BY_NAME
from image_classifier.contract.outputs import BEST, HISTORY, JOB, REPORT, TRIALS, TRIALS_END, read_result
from image_classifier.contract.paths import MlPaths
from image_classifier.report.formats import count
from image_classifier.report.sources import jsonable
from image_classifier.report.standing import measured, standing

FORMAT = 1
SHUFFLES = 999  # a p-value down to 0.001
MIN_TRIALS = 6  # with fewer, chance explains any ranking
MAX_CURVES = 60
MAX_EPOCHS = 120  # of a curve
SURE = 0.05  # p-value below which a hyperparameter is said to matter
_BINS = 3  # a hyperparameter with many values is cut into thirds


def is_tuning(folder: Path) -> bool:
    """Whether the folder is a tuning run's."""
    return (folder / TRIALS.name).is_file()


def gather_tuning(folder: Path) -> dict[str, Any]:
    """The facts of a tuning run.

    Raises:
        DataError: its trials.csv is damaged.
    """
    names, objective, trials = _trials(folder)
    metric = METRIC_BY_NAME.get(objective)
    maximize = metric.maximize if metric is not None else True
    finished = [trial for trial in trials if trial["status"] == "Completed" and trial["value"] is not None]
    best = BEST.read_object(folder) or None
    facts = {
        "format": FORMAT,
        "kind": "tune",
        "name": folder.resolve().name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "objective": objective,
        "maximize": maximize,
        "names": names,
        "trials": trials,
        "best": best,
        "importance": importance(finished, names),
        "curves": _curves(folder, trials, objective),
        "config": JOB.read_object(folder).get("config") or {},
        "missing": [] if best else [f"{BEST.name}: no trial has finished"],
    }
    facts["standing"] = _standing(folder, facts)
    facts["next"] = _what_next(facts, finished)
    return jsonable(facts)  # type: ignore[no-any-return]  # a dict stays one


def _trials(folder: Path) -> tuple[list[str], str, list[dict[str, Any]]]:
    """Hyperparameters' names, the objective's name, and the trials of trials.csv."""
    columns, lines = TRIALS.read_whole(folder)
    try:
        rows = [dict(zip(columns, line, strict=True)) for line in lines if len(line) == len(columns)]
        split = columns.index(TRIALS_END[0]) - 1
        names, objective = columns[len(TRIALS.columns) : split], columns[split]
        trials = [
            {
                "trial": int(row["trial"]),
                "status": row["status"],
                "values": {name: _value(row[name]) for name in names},
                "value": _finite(row[objective]),
                "best_epoch": int(row["best_epoch"]) if row["best_epoch"] else None,
                "epochs": int(row["epochs"]),
                "seconds": float(row["seconds"]),
                "failure": row["failure"],
                "folder": row["folder"],
            }
            for row in rows
        ]
    except (ValueError, KeyError):
        trials = []
    if not trials:
        raise DataError(
            f"{folder / TRIALS.name} is missing or damaged", "the table is written at the end of `deploy.py tune`"
        )
    return names, objective, trials


def _finite(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def importance(trials: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]] | None:
    """How much each hyperparameter alone explains of the ranking of the trials.

    The share of the variance of the objective's ranks that lies between groups of trials with like values (the
    correlation ratio, eta squared): values as they are, or thirds where there are more than 5. `p` is how often a
    share as large comes up when the objective is shuffled over the trials: with few trials, or a sampler that went
    where it was good, a large share may mean little. Interactions are not seen.

    Returns:
        name, share and p, the largest share first; None with fewer than MIN_TRIALS trials.
    """
    if len(trials) < MIN_TRIALS:
        return None
    ranks = _ranks([trial["value"] for trial in trials])
    generator = np.random.default_rng(0)
    shuffled = np.array([generator.permutation(ranks) for _ in range(SHUFFLES)])
    rows = []
    for name in names:
        groups = _groups([trial["values"][name] for trial in trials])
        share = float(_between(ranks[None], groups)[0])
        as_large = int((_between(shuffled, groups) >= share - 1e-12).sum())
        rows.append({"name": name, "share": share, "p": (as_large + 1) / (SHUFFLES + 1)})
    return sorted(rows, key=lambda row: -row["share"])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    array = np.array(values, np.float64)
    ranks: NDArray[np.float64] = (array[:, None] > array).sum(1) + ((array[:, None] == array).sum(1) - 1) / 2
    return ranks


def _groups(values: Sequence[float | str]) -> NDArray[np.int64]:
    """(n,) int64: the group of each trial."""
    distinct = {value: index for index, value in enumerate(dict.fromkeys(values))}
    if len(distinct) <= 5 or any(isinstance(value, str) for value in values):
        return np.array([distinct[value] for value in values])
    ranks = _ranks([float(value) for value in values])
    return (ranks * _BINS / len(values)).astype(np.int64)


def _between(ranks: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """(k,) share of the variance between groups, for each of the (k, n) rows of ranks."""
    middle = ranks.mean(1, keepdims=True)
    total = ((ranks - middle) ** 2).sum(1)
    between = np.zeros(len(ranks))
    for group in np.unique(groups):
        members = ranks[:, groups == group]
        between += members.shape[1] * (members.mean(1) - middle[:, 0]) ** 2
    shares: NDArray[np.float64] = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return shares


def _curves(folder: Path, trials: Sequence[dict[str, Any]], objective: str) -> list[dict[str, Any]]:
    """The objective after each epoch, of up to MAX_CURVES trials whose folders are still there."""
    curves = []
    for trial in trials[:MAX_CURVES]:
        if ".." in Path(trial["folder"]).parts:
            continue
        rows = HISTORY.read(MlPaths(base=folder / trial["folder"]).output_data)
        values = [row.get(objective) for row in rows]
        if any(value is not None for value in values):
            curves.append({"trial": trial["trial"], "values": values[:MAX_EPOCHS]})
    return curves


def _standing(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The standing of the best trial's model: chosen out of all epochs of all trials, unless it was tested."""
    best = facts["best"] or {}
    trial = next((each for each in facts["trials"] if each["trial"] == best.get("trial")), None)
    if trial is None:
        return standing({"status": "unfinished", "accuracy": None}, [], [])
    looks = sum(each["epochs"] for each in facts["trials"])
    data = MlPaths(base=folder / trial["folder"]).output_data
    inside = ".." not in Path(trial["folder"]).parts
    result, report = (read_result(data), REPORT.read_object(data)) if inside else ({}, {})
    metrics = result.get("metrics") or {}
    if not metrics and facts["objective"] == DEFAULT_OBJECTIVE:  # of a search elsewhere only the objective is here
        metrics = {DEFAULT_OBJECTIVE: trial["value"]}
    accuracy = measured(metrics, result.get("answered") or {}, looks)
    rules = _sound(report.get("rules"), ("rule", "verdict", "severity", "summary"))
    advice = _sound(report.get("next"), ("title",))
    return standing({"status": "completed", "accuracy": accuracy}, rules, advice)


def _sound(rows: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a part of a report.json that are objects with these texts."""
    found = rows if isinstance(rows, list) else []
    return [row for row in found if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in texts)]


def _what_next(facts: dict[str, Any], finished: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Items as `advice.what_next` makes them."""
    items = []
    best, failed = facts["best"], [trial for trial in facts["trials"] if trial["status"] == "Failed"]
    if best is not None:
        found = best.get("hyperparameters", {})
        values = ", ".join(f"{name} {found[name]}" for name in facts["names"] if name in found)
        title = f"Train with the best values: python deploy.py train --best {facts['name']}"
        items.append(
            {
                "title": title,
                "reason": f"Trial {best.get('trial')} was the best of {len(finished)} finished ones: {values}.",
            }
        )
        for name, side in _at_the_edge(finished, facts["names"], best.get("trial")):
            title = f"Widen the search of {name}"
            items.append({"title": title, "reason": f"The best trial has the {side} value that was tried."})
    if failed:
        reason = f"{len(failed)} of {len(facts['trials'])} trials failed, the first with: {failed[0]['failure']}."
        items.append({"title": "See why trials failed", "reason": reason})
    idle = [row["name"] for row in facts["importance"] or [] if row["p"] > SURE]
    if facts["importance"] is None:
        reason = f"{count(len(finished), 'finished trial')} cannot tell luck from effect; {MIN_TRIALS} or more can."
        items.append(
            {"title": f"Run more trials: python deploy.py tune --resume {facts['name']} --trials N", "reason": reason}
        )
    elif idle:
        reason = f"No effect of {', '.join(idle)} stands out from chance: fix such a value, or run more trials."
        items.append({"title": "Search fewer hyperparameters", "reason": reason})
    return items


def _at_the_edge(finished: Sequence[dict[str, Any]], names: Sequence[str], best: Any) -> list[tuple[str, str]]:
    """Numeric hyperparameters whose best value is the smallest or largest of four or more that were tried."""
    chosen = next((trial for trial in finished if trial["trial"] == best), None)
    found = []
    for name in names if chosen is not None else ():
        tried = sorted({trial["values"][name] for trial in finished if not isinstance(trial["values"][name], str)})
        if len(tried) >= 4 and chosen is not None and chosen["values"][name] in (tried[0], tried[-1]):
            found.append((name, "smallest" if chosen["values"][name] == tried[0] else "largest"))
    return found
