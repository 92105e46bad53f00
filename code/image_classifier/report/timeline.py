"""Facts about the machine: how busy it was over time, and what the job did meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from image_classifier.debugging import measures
from image_classifier.debugging.rundata import Floats, RunData, Series

MAX_BINS = 120  # points of a curve: more cannot be told apart on a screen
_LINES = {
    "CPUUtilization": "CPU, mean of the cores",
    "GPUUtilization": "GPU",
    "GPUMemoryUtilization": "GPU memory",
    "MemoryUsedPercent": "memory",
    "I/OWaitPercentage": "waiting for disk",
}


def timeline(run: RunData) -> dict[str, Any] | None:
    """Utilization over time, and what the job did meanwhile.

    Returns:
        `seconds` since the first sample, in bins; `series`: name -> percent for each bin, None where there is no
        sample; `hosts`: of each of several, the series and their means; `spans`: mode, epoch, start_s and end_s;
        `summary`: a row of statistics for each metric, over the time that the rules judge, from `counted_s[0]` to
        `counted_s[1]`; over all of a job too short for them, whose `counted_s` is None. None without a sample.
    """
    moments = _moments(run)
    if not len(moments):
        return None
    spans = measures.spans(run)
    origin = min(float(moments[0]), spans[0].start) if spans else float(moments[0])
    end = max(float(moments[-1]), spans[-1].end) if spans else float(moments[-1])
    length = max(end - origin, 1e-3)
    bins = max(1, min(MAX_BINS, len(moments)))

    def binned(node: str | None = None) -> dict[str, list[float | None]]:
        return {name: _binned(parts, origin, length, bins) for name, parts in _lines(run, node).items()}

    nodes = run.nodes()
    hosts = {node: binned(node) for node in nodes} if len(nodes) > 1 else {}
    counted = measures.counted_time(run)
    return {
        "seconds": [(index + 0.5) * length / bins for index in range(bins)],
        "length_s": length,
        "series": binned(),
        "hosts": [{"host": node, "series": series, "mean": _means(series)} for node, series in hosts.items()],
        "spans": [
            {"mode": e.mode, "epoch": e.epoch, "start_s": max(e.start - origin, 0.0), "end_s": e.end - origin}
            for e in spans
        ],
        "summary": _summary(run, *(counted or ())),
        "counted_s": [moment - origin for moment in counted] if counted else None,
    }


def _moments(run: RunData) -> Floats:
    """The distinct Unix seconds of all samples, in order."""
    every = [series.steps for dimension in run.dimensions() for series in run.system(dimension).values()]
    return np.unique(np.concatenate(every)) if every else np.empty(0)


def _lines(run: RunData, node: str | None) -> dict[str, list[Series]]:
    """Line to draw -> the series of all its cores, GPUs and hosts; drawing them in bins takes their mean."""
    found = {name: list(run.system(dimension, node).values()) for dimension, name in _LINES.items()}
    gpus = len(found["GPU"])
    return {
        f"{name}, mean of {gpus}" if name.startswith("GPU") and gpus > 1 else name: parts
        for name, parts in found.items()
        if parts
    }


def _binned(parts: Sequence[Series], origin: float, length: float, bins: int) -> list[float | None]:
    times, values = (np.concatenate([getattr(each, name) for each in parts]) for name in ("steps", "values"))
    places = np.clip(((times - origin) / length * bins).astype(int), 0, bins - 1)
    sums, counts = np.bincount(places, values, bins), np.bincount(places, minlength=bins)
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]


def _means(series: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean of each line, over the bins that have a value."""
    return {
        name: float(np.mean(known))
        for name, values in series.items()
        if (known := [v for v in values if v is not None])
    }


def _summary(run: RunData, *counted: float) -> list[dict[str, Any]]:
    """Mean, median, p95 and largest of every metric."""
    rows = []
    for dimension, kind in run.dimensions().items():
        values, _ = measures.usage(run, dimension, *counted)
        if len(values):
            of = measures.spread(values)
            numbers = {"mean": of["mean"], "median": of["p50"], "p95": of["p95"], "max": of["max"]}
            rows.append({"type": kind, "dimension": dimension, **numbers})
    return rows
