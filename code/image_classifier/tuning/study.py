"""The memory of a search: Optuna's study, kept in the run's `study.journal`."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from image_classifier.contract.config import Value
from image_classifier.contract.errors import ConfigError, PlatformError
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.outputs import STUDY, TRIALS_FOLDER
from image_classifier.contract.search import Categorical, Integer, Range, with_values
from image_classifier.launch.runs import Run
from image_classifier.tuning.plan import Plan, combinations
from image_classifier.tuning.warm_start import within

if TYPE_CHECKING:
    import optuna

NUMBER = "number"  # of the attributes of a trial in the study: its number in the search, from 1
EARLIER = "earlier"  # the name of a trial of an earlier search


def open_study(run: Run, plan: Plan) -> optuna.Study:
    """The run's study, new or continued; what a killed search left half written or locked is put right.

    Raises:
        PlatformError: the journal is damaged in another way.
    """
    try:
        study = _open(run, plan)
        _add_earlier(study, plan)
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
    return optuna.create_study(
        storage=storage,
        study_name=names[0] if names else run.name,  # the run's folder may have been renamed since
        direction="maximize" if METRIC_BY_NAME[plan.tune.objective].maximize else "minimize",
        load_if_exists=True,
        pruner=_pruner(plan),
    )


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    import optuna

    if plan.tune.strategy == "Hyperband":
        from image_classifier.tuning.rungs import RungPruner

        return RungPruner()
    # a third of the trials, 3 to 10, are drawn at random before the sampler and the pruner use what they learned
    warm_up = 1 + plan.base.epochs // 3
    return optuna.pruners.MedianPruner(n_startup_trials=_start_up(plan.tune.trials), n_warmup_steps=warm_up)


def _add_earlier(study: optuna.Study, plan: Plan) -> None:
    """Puts the earlier trials whose values count into the study, those that a killed search did not get to."""
    from optuna.trial import TrialState, create_trial

    known = {trial.user_attrs.get(EARLIER) for trial in study.get_trials(deepcopy=False)}
    for earlier in plan.earlier.identical:
        if earlier.name not in known:
            trial = create_trial(
                state=TrialState.PRUNED if earlier.pruned else TrialState.COMPLETE,
                value=None if earlier.pruned else earlier.value,
                params=dict(earlier.values),
                distributions={name: distribution(spec) for name, spec in plan.space.items()},
                intermediate_values=dict(earlier.curve),
                user_attrs={EARLIER: earlier.name},
            )
            study.add_trial(trial)


def first_points(plan: Plan) -> list[dict[str, Value]]:
    """Values of a search's first trials: the settings themselves, where it goes by rungs, so that what others are
    measured by is no accident; then the best that searches over other images found, in half of the trials."""
    points = plan.earlier.points_to_try(plan.tune.objective, max(1, plan.tune.trials // 2))
    if plan.tune.strategy == "Hyperband":
        usual = {name: within(spec, getattr(plan.base, name)) for name, spec in plan.space.items()}
        points.insert(0, {name: value for name, value in usual.items() if value is not None})
    return points


def propose(study: optuna.Study, plan: Plan, known: Sequence[optuna.trial.FrozenTrial]) -> optuna.Trial:
    """A trial with values that no other has, numbered.

    Args:
        known: the search's own trials so far.
    """
    from optuna.trial import TrialState

    number, first = len(known) + 1, first_points(plan)
    distributions = {name: distribution(spec) for name, spec in plan.space.items()}
    tried = {values_of(trial, plan) for trial in known} | plan.earlier.points_tried()
    study.sampler = sampler_of(plan, number)
    if number <= len(first):
        study.enqueue_trial(first[number - 1], skip_if_exists=True)
    trial = study.ask(distributions)
    if values_of(trial, plan) in tried:
        study.tell(trial, state=TrialState.FAIL)
        fresh = [values for values in combinations(plan.space) if tuple(values.values()) not in tried]
        if fresh:
            study.enqueue_trial(random.Random(len(tried)).choice(fresh))
        trial = study.ask(distributions)
    trial.set_user_attr(NUMBER, number)
    return trial


def values_of(trial: optuna.Trial | optuna.trial.FrozenTrial, plan: Plan) -> tuple[Value, ...]:
    """What a trial's job is run with of the searched hyperparameters, in the order of the space."""
    config = with_values(plan.base, trial.params)
    return tuple(getattr(config, name) for name in plan.space)


def sampler_of(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """What proposes the values of a search's trial of that number, from 1.

    A seed for each trial: a search that was killed and goes on draws what it would have drawn.
    """
    import optuna

    seed = random.Random(f"{plan.tune.seed} {number}").getrandbits(32)
    if plan.tune.strategy == "Random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_start_up(plan.tune.trials))


def _damaged(run: Run) -> PlatformError:
    return PlatformError(
        f"{run.path / STUDY} is damaged", f"start a new search; what its trials left is in {run.path / TRIALS_FOLDER}"
    )


def _start_up(trials: int) -> int:
    return max(3, min(10, trials // 3))
