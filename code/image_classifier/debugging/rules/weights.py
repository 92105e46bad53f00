"""The rule over how far a step moves the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import (
    FIRST_UPDATE,
    ends_of_losses,
    guessing_loss,
    has_learned,
    has_mastered,
    updates,
)
from image_classifier.debugging.rules.base import Finding, Rule, healthy, insufficient, issue, listed, percent, short
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rules.rows import finite_part, growing, in_a_row, unique_names
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import Evidence

NEAR_ZERO = 1e-3  # the mean absolute weight of layers that an initialisation makes is ten times that and more


@dataclass(frozen=True, kw_only=True)
class WeightUpdateRatio(Rule):
    """Weights move too little or too much in a step, relative to their size.

    The ratio is l2(change in one optimiser step) / (l2(weights) + 1e-9). Fires when a layer's median ratio over the
    recorded steps from `start_step` on is below `small` or above `large`, or its first ratios already are above
    `large` at `patience` recorded steps in a row. Healthy training moves weights by about 1e-4 to 1e-2 of their size. A
    layer that starts at zero, or near it, has no size yet: of one that ends at more than `grown` times the norm it
    began with, only the steps from half of the largest norm on count.

    The managed rule's bounds are 1e-8 and 10, on any single step. A ratio of 10 replaces the weights ten times over;
    ours is 0.2, which a training does not survive for long either. A median passes over the last steps of a cosine. A
    network that learns all the same, to below half of the loss of guessing, or answers nearly everything rightly, takes
    back what is not above `large` at its `patience` latest recorded steps, too. Of any other a single step counts that
    replaced a layer: a ratio above `replaced`. An optimiser that moves the weights several times in a step (LBFGS) may
    move them so many times as far.
    """

    explains = ("DeadRelu", "AllZero", "ConstantOutput", "LossNotDecreasing", "NoBetterThanGuessing", "ClassImbalance")
    looks_at = "the ratio of each layer outside of the bounds, with the step, and medians"
    remedy = "lower or raise lr; freeze a layer that should not train (fine_tune=head)"
    source = "AWS Debugger's WeightUpdateRatio; 1e-3 as the usual ratio: Karpathy, CS231n notes"
    managed = Managed(reads="tensors", collections=("weights",), fields={"small_threshold": "small"})
    small: float = 1e-8
    large: float = 0.2
    patience: int = 3
    start_step: int = FIRST_UPDATE
    grown: float = 10.0
    replaced: float = 1.0

    def judge(self, run: RunData) -> Finding:
        found, large = updates(run, self.start_step), self.large * _updates_a_step(run)
        layers = found.names
        steps, table = finite_part(found.steps, found.ratios)
        table = np.where(growing(run, layers, steps, self.grown), np.nan, table)
        if len(steps) and np.isnan(table).all():
            return insufficient("all layers began at zero", table.size)
        usual = np.nanmedian(table, axis=1) if table.size else np.empty(0)
        medians = np.where(np.isnan(usual), (self.small + large) / 2, usual)
        if len(steps) < self.patience:
            return insufficient(f"needs {self.patience} recorded steps from step {self.start_step} on", table.size)
        labels = [f"weight {name} update_ratio" for name in layers]
        too_large = in_a_row(table > large, self.patience, steps, table, labels)
        learned = has_learned(run) and not ends_of_losses(run)[1].mean() > guessing_loss(run) / 2
        if learned or has_mastered(run):
            still = np.nan_to_num(table[:, -self.patience :]).min(axis=1, keepdims=True) > large
            late = still[:, 0]
            too_large = in_a_row((table > large) & still, self.patience, steps, table, labels)
            medians = np.where((medians > large) & ~late, large, medians)
        else:
            too_large += self._replaced(run, labels)
            too_large.sort(key=lambda each: each.step or 0)
        at = [(index, int(steps[-1])) for index in np.flatnonzero((medians < self.small) | (medians > large))]
        evidence = [*too_large, *(Evidence(step=s, name=labels[i], value=float(medians[i])) for i, s in at)]
        if not evidence:
            low, high = float(np.nanmin(usual)), float(np.nanmax(usual))
            return healthy(f"layers move by {short(low)} to {short(high)} of their size in a step", table.size)
        names = unique_names(evidence)
        lr = run.job.config.get("lr", "?")
        if evidence[0].value > large:
            return issue(
                f"{len(names)} of {len(layers)} layers change by more than {percent(large)} of their size in one "
                f"step: {listed(names)}",
                f"lower lr (it is {lr}) or raise warmup_epochs",
                evidence,
                table.size,
            )
        return issue(
            f"{len(names)} of {len(layers)} layers hardly move: {listed(names)}",
            f"raise lr (it is {lr}); a layer that should not train is better frozen (fine_tune=head)",
            evidence,
            table.size,
        )

    def _replaced(self, run: RunData, labels: list[str]) -> list[Evidence]:
        """The first step of all that changed a layer by more than its size; of layers that do not begin near zero."""
        found = updates(run, 0)
        steps, table = finite_part(found.steps, found.ratios)
        first = [run.statistics("weights", name).get("abs_mean") for name in found.names]
        sized = np.array([each is not None and each.values[0] > NEAR_ZERO for each in first], np.bool_)[:, None]
        return in_a_row((table > self.replaced * _updates_a_step(run)) & sized, 1, steps, table, labels)


def _updates_a_step(run: RunData) -> float:
    """How often the optimiser may move the weights in one step; 1 where that was not seen."""
    seen = run.statistics("batch", "optimizer").get("updates")
    return max(1.0, float(seen.values[-1])) if seen is not None and len(seen) else 1.0
