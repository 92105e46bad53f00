"""Hyperband's rungs on this machine: which trials go on after 1, 3, 9, ... epochs (asynchronous successive halving)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import optuna
from optuna.study import StudyDirection

FIRST_RUNG = 1  # epochs; HyperbandStrategyConfig's MinResource in our requests
REDUCTION = (
    3  # of the trials that come to a rung, one in so many goes on: the value of the papers (1603.06560, 1810.05934)
)


class RungPruner(optuna.pruners.BasePruner):
    """Ends a trial at a rung unless its best epoch so far is in the best third of all trials that came there.

    Nobody waits: a trial is compared with those that came before it, so the first one always goes on. What decides is
    the study's epochs alone, and so a search that was killed decides as it would have.
    """

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether the trial is to end after its last epoch."""
        last = trial.last_step
        passed = list(_rungs(last or 0))
        if not passed:
            return False
        rung, maximize = passed[-1], study.direction == StudyDirection.MAXIMIZE
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        found = [_best(each.intermediate_values, rung, maximize) for each in others if (each.last_step or 0) >= rung]
        mine = _best(trial.intermediate_values, rung, maximize)
        better = sum(value > mine for value in found)
        return better >= max(1, (len(found) + 1) // REDUCTION)


def _rungs(last: int) -> Iterator[int]:
    """The rungs up to an epoch."""
    rung = FIRST_RUNG
    while rung <= last:
        yield rung
        rung *= REDUCTION


def _best(curve: Mapping[int, float], rung: int, maximize: bool) -> float:
    """The best value up to a rung, the larger the better."""
    values = [value if maximize else -value for epoch, value in curve.items() if epoch <= rung]
    return max(values, default=float("-inf"))
