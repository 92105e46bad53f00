"""What linear heads say of images that they were not trained on, without training one for each: in closed form.

Least squares with a ridge have an exact leave-one-out answer (Allen 1974, PRESS): with the hat matrix H of the fit, the
answer to row i of the head that was trained on all other rows is (f_i - H_ii y_i) / (1 - H_ii).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from image_classifier.contract.machine import usual_threads
from image_classifier.vision.temperature import calibrate, probabilities_of

RIDGES = (0.01, 0.1, 1.0, 10.0)  # times the mean of the features' eigenvalues; that of the least error is taken
MAX_IMAGES = 20_000  # more take more than some seconds, and a share of the memory
_LOGITS = 10.0  # what a vote of 1 is worth: brings the temperature to where it is looked for


def left_out(features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """(n, num_classes) probabilities, each row of a head that all other rows have trained; NaN where the features are
    no numbers.

    Args:
        features: (n, d), n of 2 or more.
        labels: (n,).
    """
    if not np.isfinite(features).all():
        return np.full((len(features), num_classes), np.nan)
    rows = torch.from_numpy(features)
    rows = rows - rows.mean(0, dtype=torch.float64).float()
    rows /= rows.square().mean(0).sqrt().clamp(min=1e-6)
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), num_classes).float()
    priors = targets.mean(0)
    centred = targets - priors
    with _on_all_cores():
        values, directions = _spectrum(rows)
    best: tuple[float, torch.Tensor] | None = None
    for ridge in RIDGES:
        shrunk = values / (values + ridge * values.mean())
        fitted = directions @ (shrunk[:, None] * (directions.T @ centred))
        hat = (directions.square() * shrunk).sum(1) + 1 / len(rows)  # the mean is fitted, too
        answers = (fitted - hat[:, None] * centred) / (1 - hat).clamp(min=1e-3)[:, None]
        error = float((answers - centred).square().mean())
        if best is None or error < best[0]:
            best = error, answers
    assert best is not None
    votes = _LOGITS * (best[1] + priors).double().numpy()
    return probabilities_of(votes, calibrate(votes, labels).temperature)


@contextmanager
def _on_all_cores() -> Iterator[None]:
    """All that are this job's: beside a GPU it has one thread, in which this takes seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, usual_threads()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _spectrum(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The squares of the singular values of (n, d) rows, and (n, r) left singular vectors; but for zeros."""
    if len(rows) <= rows.shape[1]:
        values, directions = torch.linalg.eigh(rows @ rows.T)
    else:
        values, right = torch.linalg.eigh(rows.T @ rows)
        directions = (rows @ right) / values.clamp(min=1e-12).sqrt()
    kept = values > values.max() * 1e-6
    return values[kept], directions[:, kept]
