"""Facts about learning and time: curves with their noise, where a step's time goes, how busy the machine was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from image_classifier.debugging.schema import PHASES, StepRecord, SystemSample
from image_classifier.report.processes import means_of

MAX_BINS = 120  # points of a curve: more cannot be told apart on a screen
MAX_NOISE_BINS = 60
MAX_SINGLE_STEPS = 40  # shown one by one
MIN_STEPS_A_BIN = 8  # fewer have no 10th and 90th percentile worth drawing
COMPUTE_PHASES = ("forward_s", "backward_s", "optimizer_s")
AVOIDABLE_PHASES = ("data_wait_s", "sync_s", "h2d_s", "hook_s", "rest_s")
MAX_AVOIDABLE = 0.99  # a step that does nothing but wait would have no end of gain


def batch_losses(steps: Sequence[StepRecord], steps_per_epoch: int) -> dict[str, list[float]] | None:
    """The training loss batch by batch, in bins: x in epochs, mean, 10th and 90th percentile of each bin.

    The loss is the one against the true labels, without smoothing, so that it can be laid over the validation's.
    """
    train = [record for record in steps if record.mode == "train"]
    if not train or steps_per_epoch < 1:
        return None
    bins = min(MAX_NOISE_BINS, len(train) // MIN_STEPS_A_BIN) if len(train) > MAX_SINGLE_STEPS else len(train)
    curve: dict[str, list[float]] = {"epoch": [], "mean": [], "p10": [], "p90": []}
    for part in np.array_split(np.arange(len(train)), bins):
        losses = np.array([train[i].clean_loss for i in part])
        curve["epoch"].append(float(np.mean([train[i].step + 1 for i in part])) / steps_per_epoch)
        curve["mean"].append(float(losses.mean()))
        curve["p10"].append(float(np.percentile(losses, 10)))
        curve["p90"].append(float(np.percentile(losses, 90)))
    return curve


def wilson(hits: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `total` independent trials (Wilson, 1927)."""
    if total <= 0:
        return 0.0, 1.0
    z = 1.959964
    share = min(max(hits / total, 0.0), 1.0)
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def step_time(steps: Sequence[StepRecord], total_seconds: float | None) -> dict[str, Any] | None:
    """Where the job's and a training step's time goes, the bottleneck, and what removing it would bring."""
    train = [record for record in steps if record.mode == "train"]
    if not train:
        return None
    by_mode = {mode: sum(each.seconds for each in steps if each.mode == mode) for mode in ("train", "eval", "test")}
    spent = sum(by_mode.values())
    if total_seconds is not None and total_seconds > spent:
        by_mode["other"] = total_seconds - spent
    usual = train[1:] or train  # the first step also starts worker processes and compiles kernels
    seconds = np.array([record.seconds for record in usual])
    images = sum(record.images for record in usual)
    phases = _phases(usual, max(float(seconds.sum()), 1e-9))
    speed = images / max(float(seconds.sum()), 1e-9)
    return {
        "job": {mode: value for mode, value in by_mode.items() if value > 0},
        "first_step_s": train[0].seconds,
        "step": _spread(seconds),
        "images_per_second": speed,
        "phases": phases,
        "bottleneck": _bottleneck({row["phase"]: row["share"] for row in phases}, speed) if phases else None,
        "steps": _duration_curve(usual),
    }


def _phases(steps: Sequence[StepRecord], total: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    known = 0.0
    for phase in PHASES:
        values = np.array([value for record in steps if (value := getattr(record, phase)) is not None])
        if len(values):
            spent = float(values.sum())
            known += spent
            rows.append({"phase": phase, "share": spent / total, **_spread(values)})
    if not rows:
        return []
    if known > total:  # events on a GPU overlap the CPU's clock
        return [row | {"share": row["share"] * total / known} for row in rows]
    rest = np.array([record.seconds for record in steps], np.float64)
    for phase in PHASES:
        rest -= np.array([getattr(record, phase) or 0.0 for record in steps])
    rest = np.maximum(rest, 0.0)
    return [*rows, {"phase": "rest_s", "share": (total - known) / total, **_spread(rest)}]


def _bottleneck(shares: Mapping[str, float], speed: float) -> dict[str, Any]:
    """The phase that limits a step, and the largest part that could go without changing what is computed.

    Returns:
        `phase` and its `share`: `compute` when the network's arithmetic takes more than any avoidable part; `avoidable`
        with `avoidable_share`; `gain`: how much faster training would be without it (0.25: a quarter), and the
        `images_per_second` then, both upper bounds.
    """
    removable = {phase: shares.get(phase, 0.0) for phase in AVOIDABLE_PHASES}
    avoidable = max(removable, key=lambda each: removable[each])
    share = min(removable[avoidable], MAX_AVOIDABLE)
    gain = 1 / (1 - share) - 1
    compute = sum(shares.get(each, 0.0) for each in COMPUTE_PHASES)
    phase, limit = ("compute", compute) if compute >= share else (avoidable, share)
    return {
        "phase": phase,
        "share": limit,
        "avoidable": avoidable,
        "avoidable_share": share,
        "gain": gain,
        "images_per_second": speed * (1 + gain),
    }


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return {"mean_s": float(values.mean()), "median_s": float(p50), "p95_s": float(p95), "max_s": float(values.max())}


def _duration_curve(steps: Sequence[StepRecord]) -> dict[str, list[float]]:
    """Step durations in bins: step, median and longest."""
    curve: dict[str, list[float]] = {"step": [], "median_s": [], "max_s": []}
    size = math.ceil(len(steps) / MAX_BINS)  # the same for every bin: the longest of more steps is longer
    for first in range(0, len(steps), size):
        seconds = [record.seconds for record in steps[first : first + size]]
        curve["step"].append(float(steps[first].step))
        curve["median_s"].append(float(np.median(seconds)))
        curve["max_s"].append(max(seconds))
    return curve


def timeline(samples: Sequence[SystemSample], steps: Sequence[StepRecord]) -> dict[str, Any] | None:
    """Utilization over time, and what the job did meanwhile.

    Returns:
        `seconds` since the first sample, in bins; `series`: name -> percent for each bin, None where there is no
        sample; `hosts`: of each of several, the series and their means; `spans`: mode, epoch, start_s and end_s;
        `summary`: a row of statistics for each metric.
    """
    if not samples:
        return None
    origin = min(samples[0].time, steps[0].time - steps[0].seconds) if steps else samples[0].time
    end = max(samples[-1].time, steps[-1].time) if steps else samples[-1].time
    length = max(end - origin, 1e-3)
    bins = max(1, min(MAX_BINS, len({sample.time for sample in samples})))

    def binned(samples: Sequence[SystemSample]) -> dict[str, list[float | None]]:
        series: dict[str, list[float | None]] = {}
        for name, chosen in _percentages(samples).items():
            times, values = np.array(chosen).T
            places = np.clip(((times - origin) / length * bins).astype(int), 0, bins - 1)
            sums, counts = np.bincount(places, values, bins), np.bincount(places, minlength=bins)
            series[name] = [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]
        return series

    nodes: dict[str, list[SystemSample]] = {}
    for sample in samples:
        nodes.setdefault(sample.node, []).append(sample)
    hosts = {node: binned(nodes[node]) for node in sorted(nodes, key=_natural)} if len(nodes) > 1 else {}
    return {
        "seconds": [(index + 0.5) * length / bins for index in range(bins)],
        "length_s": length,
        "series": binned(samples),
        "hosts": [{"host": node, "series": series, "mean": means_of(series)} for node, series in hosts.items()],
        "spans": _spans(steps, origin),
        "summary": _summary(samples),
    }


_LINES = {
    "CPUUtilization": "CPU, mean of the cores",
    "GPUUtilization": "GPU",
    "GPUMemoryUtilization": "GPU memory",
    "MemoryUsedPercent": "memory",
    "I/OWaitPercentage": "waiting for disk",
}


def _percentages(samples: Sequence[SystemSample]) -> dict[str, list[tuple[float, float]]]:
    """Line to draw -> (time, percent) of all cores, GPUs and hosts; drawing them in bins takes their mean."""
    gpus = len({(sample.node, sample.name) for sample in samples if sample.dimension == "GPUUtilization"})
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in _LINES.values()}
    for sample in samples:
        if sample.dimension in _LINES:
            lines[_LINES[sample.dimension]].append((sample.time, sample.value))
    found = {name: points for name, points in lines.items() if points}
    return {f"{name}, mean of {gpus}" if name.startswith("GPU") and gpus > 1 else name: p for name, p in found.items()}


def _natural(node: str) -> tuple[int, str]:
    """Sorts algo-2 before algo-10."""
    return int(node.rpartition("-")[2]) if node.rpartition("-")[2].isdigit() else 0, node


def _spans(steps: Sequence[StepRecord], origin: float) -> list[dict[str, Any]]:
    """Runs of steps of the same mode and epoch."""
    spans: list[dict[str, Any]] = []
    for record in steps:
        start, end = record.time - record.seconds - origin, record.time - origin
        if spans and (spans[-1]["mode"], spans[-1]["epoch"]) == (record.mode, record.epoch):
            spans[-1]["end_s"] = end
        else:
            spans.append({"mode": record.mode, "epoch": record.epoch, "start_s": max(start, 0.0), "end_s": end})
    return spans


def _summary(samples: Iterable[SystemSample]) -> list[dict[str, Any]]:
    """Mean, median, p95 and largest of every metric, over cores, GPUs and hosts together."""
    values: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        values.setdefault((sample.type, sample.dimension), []).append(sample.value)
    rows = []
    for (kind, dimension), found in values.items():
        p50, p95 = np.percentile(found, [50, 95])
        rows.append(
            {
                "type": kind,
                "dimension": dimension,
                "mean": float(np.mean(found)),
                "median": float(p50),
                "p95": float(p95),
                "max": max(found),
            }
        )
    return rows
