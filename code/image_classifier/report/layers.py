"""Facts about the network's inside: gradients, weights and activations by layer, over the training steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from image_classifier.debugging import measures
from image_classifier.debugging.rundata import EMPTY, Floats, RunData
from image_classifier.vision import network

MAX_COLUMNS = 40


def layer_statistics(run: RunData) -> dict[str, Any] | None:
    """Heatmaps (rows are layers in the order of the network, columns are steps) and a table of the layers."""
    parts = {
        "gradients": _heatmap(run, "gradients", "abs_mean"),
        "updates": _heatmap(run, "weights", "update_ratio"),
        "dead": _heatmap(run, "activations", "dead_share"),
    }
    found = {name: part for name, part in parts.items() if part is not None}
    for name in ("gradients", "updates"):
        if name in found:
            found[name]["asleep"] = _asleep(run, found[name])
    return {**found, "table": _table(run)} if found else None


def _heatmap(run: RunData, kind: str, statistic: str) -> dict[str, Any] | None:
    """Means over groups of recorded steps; a group with a number that is not finite shows that number."""
    series = dict(run.tensors(kind, statistic))
    if not series:
        return None
    rows = run.tensor_names(kind)
    steps: Floats = np.unique(np.concatenate([each.steps for each in series.values()]))
    size = math.ceil(len(steps) / MAX_COLUMNS)
    first = steps[::size]
    last = np.append(steps[size - 1 :: size], steps[-1])[: len(first)]
    values = []
    for row in rows:
        each = series.get(row, EMPTY)
        begins, ends = np.searchsorted(each.steps, first), np.searchsorted(each.steps, last, side="right")
        values.append([float(each.values[i:j].mean()) if j > i else None for i, j in zip(begins, ends, strict=True)])
    return {
        "layers": [layer_name(row) for row in rows],
        "steps": [f"{a:.0f}" if a == b else f"{a:.0f}–{b:.0f}" for a, b in zip(first, last, strict=True)],
        "values": values,
    }


def _asleep(run: RunData, grid: dict[str, Any]) -> list[int]:
    """Rows that are zero at step 0 alone, because they lie in a residual branch that begins at zero.

    A batch norm whose scale is zero (zero_init_residual, which a network without starting weights has) lets no gradient
    through to the convolutions before it until its first update.
    """
    if run.job.config.get("weights") != "none" or grid["steps"][:1] != ["0"] or len(grid["steps"]) < 2:
        return []
    branches = {convolution.name for block in network.blocks() for convolution in block.path}
    return [
        row
        for row, (layer, values) in enumerate(zip(grid["layers"], grid["values"], strict=True))
        if layer in branches and values[0] == 0 and next((each for each in values[1:] if each is not None), 0)
    ]


def _table(run: RunData) -> list[dict[str, Any]]:
    """A row for each weight: norms at the beginning and the end, medians of gradient and update."""
    updates, rows = measures.updates(run), []
    ratios = dict(zip(updates.names, updates.medians.tolist(), strict=False))  # none of a run of one step
    for name in run.tensor_names("weights"):
        norms = run.statistics("weights", name).get("l2", EMPTY).values
        gradients = run.statistics("gradients", name).get("abs_mean", EMPTY).values
        rows.append(
            {
                "layer": layer_name(name),
                "norm_first": float(norms[0]) if len(norms) else None,
                "norm_last": float(norms[-1]) if len(norms) else None,
                "gradient": float(np.median(gradients)) if len(gradients) else None,
                "update_ratio": ratios.get(name),
            }
        )
    return rows


def layer_name(parameter: str) -> str:
    """`layer1.0.conv1.weight` -> `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")
