"""The memory of a search: Optuna's study, kept in the run's `study.journal`."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from image_classifier.contract.errors import ConfigError, PlatformError
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.outputs import STUDY, TRIALS_FOLDER
from image_classifier.contract.search import Categorical, Integer, Range, with_values
from image_classifier.launch.runs import Run
from image_classifier.tuning.plan import Plan

if TYPE_CHECKING:
    import optuna


def open_study(run: Run, plan: Plan) -> optuna.Study:
    """The run's study, new or continued; what a killed search left half written or locked is put right.

    Raises:
        PlatformError: the journal is damaged in another way.
    """
    try:
        study = _open(run, plan)
        for trial in study.get_trials(deepcopy=False):
            if "number" in trial.user_attrs:
                int(trial.user_attrs["number"])
                with_values(plan.base, trial.params)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise _damaged(run) from None  # whatever Optuna's own reader makes of it
    except ConfigError as error:
        raise _damaged(run) from error
    return study


def distribution(spec: Range) -> Any:
    """A range in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(spec, Categorical):
        return CategoricalDistribution(spec.values)
    if isinstance(spec, Integer):
        return IntDistribution(spec.low, spec.high, log=spec.log)
    return FloatDistribution(spec.low, spec.high, log=spec.log)


def _open(run: Run, plan: Plan) -> optuna.Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = run.path / STUDY
    journal.with_name(f"{STUDY}.lock").unlink(missing_ok=True)  # the run is ours alone: its last owner is gone
    if os.path.lexists(journal):
        if not journal.is_file():
            raise ValueError("no file")
        whole, newline, rest = journal.read_bytes().rpartition(b"\n")
        if rest:
            os.truncate(journal, len(whole + newline))
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    trials, epochs = plan.tune.trials, plan.base.epochs
    return optuna.create_study(
        storage=storage,
        study_name=names[0] if names else run.name,  # the run's folder may have been renamed since
        direction="maximize" if METRIC_BY_NAME[plan.tune.objective].maximize else "minimize",
        load_if_exists=True,
        # a third of the trials, 3 to 10, are drawn at random before the sampler and the pruner use what they learned
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_start_up(trials), n_warmup_steps=1 + epochs // 3),
    )


def sampler_of(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """What proposes the values of a search's trial of that number, from 1.

    A seed for each trial: a search that was killed and goes on draws what it would have drawn.
    """
    import optuna

    seed = random.Random(f"{plan.tune.seed} {number}").getrandbits(32)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_start_up(plan.tune.trials))


def _damaged(run: Run) -> PlatformError:
    return PlatformError(
        f"{run.path / STUDY} is damaged", f"start a new search; what its trials left is in {run.path / TRIALS_FOLDER}"
    )


def _start_up(trials: int) -> int:
    return max(3, min(10, trials // 3))
