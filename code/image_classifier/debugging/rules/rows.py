"""What rules over tables of layers and steps have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from image_classifier.debugging.rundata import Floats, Mask, RunData
from image_classifier.debugging.schema import Evidence


def finite_part(steps: Floats, table: Floats) -> tuple[Floats, Floats]:
    """The steps before the first at which a number is not finite: what comes after tells of nothing but that."""
    bad = np.flatnonzero(~np.isfinite(table).all(axis=0)) if table.size else np.empty(0, np.int64)
    end = int(bad[0]) if len(bad) else len(steps)
    return steps[:end], table[:, :end]


def in_a_row(
    bad: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], patience: int, steps: Floats, table: Floats, names: list[str]
) -> list[Evidence]:
    """For each row that is bad at `patience` steps in a row, the last of the first such run."""
    found = []
    for row, name in enumerate(names):
        length = 0
        for column in range(len(steps)):
            length = length + 1 if bad[row, column] else 0
            if length == patience:
                found.append(Evidence(step=int(steps[column]), name=name, value=float(table[row, column])))
                break
    return found


def until_the_last(bad: Mask, patience: int, steps: Floats, table: Floats, names: list[str]) -> list[Evidence]:
    """For each row that is bad at the `patience` latest steps, the first of the steps at which it has been since."""
    found = []
    for row, name in enumerate(names):
        good = np.flatnonzero(~bad[row])
        first = int(good[-1]) + 1 if len(good) else 0
        if len(steps) - first >= patience:
            found.append(Evidence(step=int(steps[first]), name=name, value=float(table[row, first])))
    return found


def unique_names(evidence: list[Evidence]) -> list[str]:
    """The tensors' own names, each once: `gradient fc.weight abs_mean` -> `fc.weight`."""
    return list(dict.fromkeys(each.name.split(" ")[1] for each in evidence))


EQUAL = 1e-5  # relative, of a mean and a largest value in float32


def equal_weights(run: RunData) -> list[Evidence]:
    """The layers, two or more, whose weights all were one number, other than 0, at the first recorded step."""
    found = []
    for name, largest in run.tensors("weights", "abs_max"):
        mean = run.statistics("weights", name)["abs_mean"].values
        if len(mean) and largest.values[0] > 0 and abs(mean[0] / largest.values[0] - 1) < EQUAL:
            label = f"weight {name} abs_max"
            found.append(Evidence(step=int(largest.steps[0]), name=label, value=float(largest.values[0])))
    return found if len(found) > 1 else []


def growing(run: RunData, layers: Sequence[str], steps: Floats, grown: float) -> Mask:
    """(layers, steps): whether a layer that began near zero had not half of its largest norm by then.

    Args:
        grown: a largest norm of more than so many times the first tells that it began near zero.
    """
    found = np.zeros((len(layers), len(steps)), np.bool_)
    for row, name in enumerate(layers):
        norms = run.statistics("weights", name).get("l2")
        if norms is None or not len(norms) or not np.isfinite(norms.values).all():
            continue
        of_steps = norms.values[np.isin(norms.steps, steps)]
        if norms.values.max() > grown * norms.values[0] and len(of_steps) == len(steps):
            found[row] = of_steps < norms.values.max() / 2
    return found
