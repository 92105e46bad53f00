"""`[tune]`: how a search is run."""

from __future__ import annotations

from dataclasses import dataclass

from image_classifier.contract.config import param
from image_classifier.contract.metrics import DEFAULT_OBJECTIVE, METRICS

KIND = "tune"  # of a search's run
NO_SEARCHES = "none"
STRATEGIES = ("Bayesian", "Random", "Hyperband")  # SageMaker's words
OBJECTIVES = tuple(metric.name for metric in METRICS if metric.name.startswith("validation:"))


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """`[tune]`: how the search is run; what is searched stands under `[tune.search]`."""

    trials: int = param(8, "training jobs to run", low=1, high=10_000)
    parallel: int = param(1, "training jobs at a time; they share the cores", low=1, high=100)
    epochs: int = param(0, "epochs of a trial, 0 for those of [train]", low=0, high=10_000)
    objective: str = param(DEFAULT_OBJECTIVE, "metric that decides, at its best epoch", choices=OBJECTIVES)
    strategy: str = param(
        STRATEGIES[0],
        "Bayesian learns from the trials that ran, Random does not, Hyperband also ends most after few epochs",
        choices=STRATEGIES,
    )
    prune: bool = param(True, "stop trials that stay below the median of the others")
    warm_start: str = param(NO_SEARCHES, "earlier searches to learn from (--from), with commas between them, 5 at most")
    seed: int = param(0, "seed of the search", low=0, high=2**32 - 1)
    keep_models: bool = param(False, "test every trial and keep its weights (100 MB each), not the best one's alone")
