"""What rules over tables of layers and steps have in common."""

from __future__ import annotations

import numpy as np

from image_classifier.debugging.rundata import Floats
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


def unique_names(evidence: list[Evidence]) -> list[str]:
    """The tensors' own names, each once: `gradient fc.weight abs_mean` -> `fc.weight`."""
    return list(dict.fromkeys(each.name.split(" ")[1] for each in evidence))
