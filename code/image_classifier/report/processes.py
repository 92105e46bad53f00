"""Facts about several processes and hosts: which of them holds the others up, and how busy each host was."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from image_classifier.contract.outputs import STEPS
from image_classifier.debugging.schema import PHASES, StepRecord, of_rank, read_steps

# In these a process works for itself; in the others it waits for its peers: in `backward` for their gradients.
OWN_PHASES = ("data_wait_s", "h2d_s", "forward_s", "optimizer_s", "hook_s")
BEHIND = 0.1  # of a step: less is noise


def processes(folder: Path, main: Sequence[StepRecord]) -> dict[str, Any] | None:
    """What each process of a training spent its steps on; None for a training in one process.

    Args:
        folder: output/data, with the steps of other processes than the main one in files of their own.
        main: the main process's steps.

    Returns:
        `rows`, by rank: steps, images_per_second, median_s of a step, mean seconds of each phase, and own_s, the sum of
        those in which it does not wait for others. `slowest`: the rank that has most of its own to do; `behind_s`, how
        much more than the median process, and its share of a mean step; None when that is less than BEHIND.
    """
    pattern = re.compile(re.escape(of_rank(STEPS.name, 1)).replace("1", r"(\d+)"))
    ranks = sorted(int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))
    if not ranks:
        return None
    rows = [row for rank in (0, *ranks) if (row := _row(rank, read_steps(folder, rank) if rank else main)) is not None]
    if len(rows) < 2:
        return None
    slowest = max(rows, key=lambda row: float(row["own_s"]))
    behind = slowest["own_s"] - float(np.median([row["own_s"] for row in rows if row is not slowest]))
    share = behind / max(slowest["mean_s"], 1e-9)
    found = {"rank": slowest["rank"], "behind_s": behind, "share": min(share, 1.0)}
    return {"rows": rows, "slowest": found if share >= BEHIND else None}


def _row(rank: int, steps: Sequence[StepRecord]) -> dict[str, Any] | None:
    train = [record for record in steps if record.mode == "train"]
    usual = train[1:] or train  # the first step also starts worker processes and compiles kernels
    if not usual:
        return None
    seconds = np.array([record.seconds for record in usual])
    means = {phase: _mean(usual, phase) for phase in PHASES}
    return {
        "rank": rank,
        "steps": len(train),
        "images_per_second": sum(record.images for record in usual) / max(float(seconds.sum()), 1e-9),
        "median_s": float(np.median(seconds)),
        "mean_s": float(seconds.mean()),
        "phases": {phase: mean for phase, mean in means.items() if mean is not None},
        "own_s": sum(means[phase] or 0.0 for phase in OWN_PHASES),
    }


def _mean(steps: Sequence[StepRecord], phase: str) -> float | None:
    values = [value for record in steps if (value := getattr(record, phase)) is not None]
    return float(np.mean(values)) if values else None


def means_of(series: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean of each line of a timeline, over the bins that have a value."""
    return {
        name: float(np.mean(known))
        for name, values in series.items()
        if (known := [v for v in values if v is not None])
    }
