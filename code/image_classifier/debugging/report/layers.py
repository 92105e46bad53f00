"""Facts about the network's inside: gradients, weights and activations by layer, over the training steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from image_classifier.debugging.schema import Statistics, StatisticsRecord

MAX_COLUMNS = 40
_NORM_LAYER = re.compile(r"(^|\.)(bn\d*|norm\d*|downsample\.1)$")  # torchvision's names of batch norms


def layer_statistics(records: Sequence[StatisticsRecord]) -> dict[str, Any] | None:
    """Heatmaps (rows are layers in the order of the forward pass, columns are steps) and a table of the layers.

    Batch norms and biases are left out: their numbers say nothing that the convolutions' do not.
    """
    if not records:
        return None
    parts = {
        "gradients": _heatmap(records, lambda record: record.gradients, "abs_mean", weights_only=True),
        "updates": _heatmap(records, lambda record: record.weights, "update_ratio", weights_only=True),
        "dead": _heatmap(records, lambda record: record.activations, "dead_share", weights_only=False),
    }
    found = {name: part for name, part in parts.items() if part is not None}
    return {**found, "table": _table(records)} if found else None


def _heatmap(
    records: Sequence[StatisticsRecord],
    part: Callable[[StatisticsRecord], Statistics],
    statistic: str,
    *,
    weights_only: bool,
) -> dict[str, Any] | None:
    """Means over groups of recorded steps; a group with a number that is not finite shows that number."""
    kept = [record for record in records if any(statistic in values for values in part(record).values())]
    if not kept:
        return None
    rows = [name for name in part(kept[0]) if not weights_only or is_weight(name)]
    columns, values = [], []
    for group in np.array_split(np.arange(len(kept)), min(MAX_COLUMNS, len(kept))):
        members = [kept[i] for i in group]
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
    names = [name for name in dict.fromkeys(n for record in records for n in record.weights) if is_weight(name)]
    rows = []
    for name in names:
        norms = [record.weights[name]["l2"] for record in records if "l2" in record.weights.get(name, {})]
        gradients = [record.gradients[name]["abs_mean"] for record in records if name in record.gradients]
        updates = [u for record in records if (u := record.weights.get(name, {}).get("update_ratio")) is not None]
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


def is_weight(parameter: str) -> bool:
    """Whether a parameter is the weight of a convolution or a linear layer."""
    layer, _, kind = parameter.rpartition(".")
    return kind == "weight" and not _NORM_LAYER.search(layer)


def layer_name(parameter: str) -> str:
    """`layer1.0.conv1.weight` -> `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")
