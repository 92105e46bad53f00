"""Facts about several processes: which of them holds the others up."""

from __future__ import annotations

from typing import Any

import numpy as np

from image_classifier.debugging import measures
from image_classifier.debugging.rundata import RunData

# In these a process works for itself; in the others it waits for its peers: in `backward` for their gradients.
OWN_PHASES = ("data_wait_s", "h2d_s", "forward_s", "optimizer_s", "hook_s")
BEHIND = 0.1  # of a step: less is noise


def processes(run: RunData) -> dict[str, Any] | None:
    """What each process of a training spent its steps on; None for a training in one process.

    Returns:
        `rows`, by rank: steps, images_per_second, median_s of a step, mean seconds of each phase, and own_s, the sum of
        those in which it does not wait for others. `slowest`: the rank that has most of its own to do; `behind_s`, how
        much more than the median process, and its share of a mean step; None when that is less than BEHIND.
    """
    rows = [_row(rank, each) for rank, each in {0: run, **run.peers}.items() if len(each.step("train", "seconds"))]
    if len(rows) < 2:
        return None
    slowest = max(rows, key=lambda row: float(row["own_s"]))
    behind = slowest["own_s"] - float(np.median([row["own_s"] for row in rows if row is not slowest]))
    share = behind / max(slowest["mean_s"], 1e-9)
    found = {"rank": slowest["rank"], "behind_s": behind, "share": min(share, 1.0)}
    return {"rows": rows, "slowest": found if share >= BEHIND else None}


def _row(rank: int, run: RunData) -> dict[str, Any]:
    seconds = measures.phase_seconds(run)
    means = {phase: float(series.values.mean()) for phase, series in seconds.items() if phase != measures.REST}
    return {
        "rank": rank,
        "steps": len(run.step("train", "seconds")),
        "images_per_second": measures.images_per_second(run),
        "median_s": measures.median_step_s(run),
        "mean_s": float(measures.usual(run, "seconds").values.mean()),
        "phases": means,
        "own_s": sum(means.get(phase, 0.0) for phase in OWN_PHASES),
    }
