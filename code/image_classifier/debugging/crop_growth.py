"""Which steps of a training saw crops of another size, and so took other time and memory for no fault of theirs."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import work_by_epoch
from image_classifier.contract.errors import ConfigError
from image_classifier.debugging.rundata import Floats, RunData, Series

SETTINGS = ("epochs", "image_size", "train_scale", "start_scale", "fine_tune", "feature_views")


def work_of_steps(run: RunData) -> Series:
    """The work of each training step beside one whose crops are as large as what is served: 1 where nobody knows."""
    epochs = run.epochs("train")
    work: tuple[float, ...] = (1.0,)
    if all(name in run.job.config for name in SETTINGS):
        with suppress(ConfigError, TypeError, ValueError):  # of a program that is not ours
            work = work_by_epoch(TrainConfig(warmup_epochs=0.0, **{name: run.job.config[name] for name in SETTINGS}))
    return Series(epochs.steps, np.array(work)[np.clip(epochs.values.astype(int), 1, len(work)) - 1])


def medians_of_like(run: RunData, series: Series) -> Floats:
    """(n,): for each training step of a series, the median of its values over the steps that had as much work."""
    work = work_of_steps(run)
    of_each = work.values[np.isin(work.steps, series.steps)]
    if len(of_each) != len(series) or not len(series):
        return np.full(len(series), float(np.median(series.values)) if len(series) else np.nan)
    found = np.empty(len(series))
    for amount in np.unique(of_each):
        found[of_each == amount] = np.median(series.values[of_each == amount])
    return found


def grown_at(run: RunData) -> float:
    """Unix seconds at which the first of the steps ended that have the work of the last one; 0 where all have."""
    work, times = work_of_steps(run), run.times("train")
    others = np.flatnonzero(work.values != work.values[-1]) if len(work) else np.empty(0, int)
    if not len(others) or len(times) != len(work):
        return 0.0
    return float(times.values[others[-1] + 1])
