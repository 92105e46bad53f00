"""What AWS's managed Debugger rules compute, on the same records: the baseline column of bench_foreign.py.

Formulas and defaults are those of AWS's documentation and of smdebug-rulesconfig 1.0.1, in their plainest reading: on
single steps and single batches, without what our rules of the same names do besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from image_classifier.debugging.measures import aligned, both_losses
from image_classifier.debugging.rules.losses import LossNotDecreasing, everything
from image_classifier.debugging.rules.overfitting import Overfit
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import Verdict


def _table(run: RunData, kind: str, statistic: str) -> np.ndarray:  # type: ignore[type-arg]
    return aligned(dict(run.tensors(kind, statistic)))[1]


def _unchanged(run: RunData) -> bool:
    for kind in ("gradients", "weights"):
        for name, series in run.tensors(kind, "l2"):
            rows = np.array([each.values for key, each in run.statistics(kind, name).items() if key != "update_ratio"])
            close = np.isclose(rows[:, 1:], rows[:, :-1], rtol=1e-5, atol=1e-8).all(axis=0)
            if len(series) >= 3 and any(close[i : i + 2].all() for i in range(len(close) - 1)):
                return True
    return False


def _imbalanced(run: RunData) -> bool:
    for each in run.classes:
        labels, hits = np.array(each.labels), np.array(each.hits)
        if labels.size and (
            labels.max() > 10 * max(labels.min(), 1) or ((labels > 0) & (1 - hits / np.maximum(labels, 1) > 0.7)).any()
        ):
            return True
    return False


def _overtrained(run: RunData) -> bool:
    _, train, valid = both_losses(run)

    def idle(losses: np.ndarray, patience: int) -> bool:  # type: ignore[type-arg]
        best = np.minimum.accumulate(losses) if len(losses) else losses
        return any(best[i] - losses[i + 1 : i + 1 + patience].min() <= 0.01 for i in range(len(losses) - patience))

    return idle(train, 5) and idle(valid, 10)


def _poorly_initialised(run: RunData) -> bool:
    stds = aligned(dict(run.tensors("activations", "input_std")), 0, 10)[1]
    return bool(stds.size) and bool(((stds.max(axis=0) / np.maximum(stds.min(axis=0), 1e-30)) ** 2 > 10).any())


AWS: Mapping[str, Callable[[RunData], bool]] = {
    "VanishingGradient": lambda run: bool((_table(run, "gradients", "abs_mean") < 1e-7).any()),
    "ExplodingTensor": lambda run: any(not np.isfinite(series.values).all() for _, series in everything(run)),
    "LossNotDecreasing": lambda run: LossNotDecreasing(literal=True).check(run).verdict is Verdict.ISSUES,
    "Overfit": lambda run: Overfit(literal=True, patience=1).check(run).verdict is Verdict.ISSUES,
    "Overtraining": _overtrained,
    "PoorWeightInitialization": _poorly_initialised,
    "DeadRelu": lambda run: bool((_table(run, "activations", "dead_share") > 0.5).any()),
    "WeightUpdateRatio": lambda run: bool(
        ((ratios := _table(run, "weights", "update_ratio")) > 10).any() or (ratios < 1e-8).any()
    ),
    "UnchangedTensor": _unchanged,
    "AllZero": lambda run: any(
        bool((_table(run, kind, "abs_max") == 0).any()) for kind in ("gradients", "weights", "activations")
    ),
    "ClassImbalance": _imbalanced,
    "CheckInputImages": lambda run: any(
        abs(float(series.values.mean())) > 0.2 for _, series in run.tensors("inputs", "mean")
    ),
}


def aws_fires(run: RunData) -> list[str]:
    """The names of AWS's rules that fire."""
    with np.errstate(all="ignore"):
        return [name for name, fires in AWS.items() if fires(run)]
