"""Facts about the network's inside: gradients, weights and activations by layer, over the training steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from image_classifier.debugging.schema import Statistics, StatisticsRecord

MAX_COLUMNS = 40


def layer_statistics(records: Sequence[StatisticsRecord]) -> dict[str, Any] | None:
    """Heatmaps (rows are layers in the order of the network, columns are steps) and a table of the layers."""
    if not records:
        return None
    parts = {
        "gradients": _heatmap(records, lambda record: record.gradients, "abs_mean"),
        "updates": _heatmap(records, lambda record: record.weights, "update_ratio"),
        "dead": _heatmap(records, lambda record: record.activations, "dead_share"),
    }
    found = {name: part for name, part in parts.items() if part is not None}
    return {**found, "table": _table(records)} if found else None


def needed(record: StatisticsRecord) -> StatisticsRecord:
    """The record without what this module does not show."""
    return StatisticsRecord(
        step=record.step,
        gradients=_only(record.gradients, "abs_mean"),
        weights=_only(record.weights, "l2", "update_ratio"),
        activations=_only(record.activations, "dead_share"),
    )


def _only(tensors: Statistics, *statistics: str) -> Statistics:
    return {
        sys.intern(name): {statistic: values[statistic] for statistic in statistics if statistic in values}
        for name, values in tensors.items()
    }


def _heatmap(
    records: Sequence[StatisticsRecord],
    part: Callable[[StatisticsRecord], Statistics],
    statistic: str,
) -> dict[str, Any] | None:
    """Means over groups of recorded steps; a group with a number that is not finite shows that number."""
    kept = [record for record in records if any(statistic in values for values in part(record).values())]
    if not kept:
        return None
    rows = list(dict.fromkeys(name for record in kept for name in part(record)))
    columns, values = [], []
    size = math.ceil(len(kept) / MAX_COLUMNS)
    for start in range(0, len(kept), size):
        members = kept[start : start + size]
        first, last = members[0].step, members[-1].step
        columns.append(str(first) if first == last else f"{first}–{last}")
        values.append([_mean([part(each).get(row, {}).get(statistic) for each in members]) for row in rows])
    return {
        "layers": [layer_name(row) for row in rows],
        "steps": columns,
        "values": [list(row) for row in zip(*values, strict=True)],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def _table(records: Sequence[StatisticsRecord]) -> list[dict[str, Any]]:
    """A row for each weight: norms at the beginning and the end, medians of gradient and update."""
    found: dict[str, tuple[list[float], list[float], list[float]]] = {}  # norms, gradients, updates
    for record in records:
        for name, values in record.weights.items():
            norms, gradients, updates = found.setdefault(name, ([], [], []))
            norms += [values["l2"]] if "l2" in values else []
            updates += [values["update_ratio"]] if "update_ratio" in values else []
            gradients += [record.gradients[name]["abs_mean"]] if name in record.gradients else []
    rows = []
    for name, (norms, gradients, updates) in found.items():
        rows.append(
            {
                "layer": layer_name(name),
                "norm_first": norms[0] if norms else None,
                "norm_last": norms[-1] if norms else None,
                "gradient": float(np.median(gradients)) if gradients else None,
                "update_ratio": float(np.median(updates)) if updates else None,
            }
        )
    return rows


def layer_name(parameter: str) -> str:
    """`layer1.0.conv1.weight` -> `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")
