"""What a search tries: the ranges that fit the data and the flags, and how many different trials they allow."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.config import TrainConfig, Value
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.search import Categorical, Integer, Range
from image_classifier.launch.view import SILENT, View
from image_classifier.tuning.tune_settings import TuneSettings
from image_classifier.tuning.warm_start import NOTHING, WarmStart, learn_from, searches_named
from image_classifier.vision.fingerprint import fingerprint
from image_classifier.vision.folders import ImageFolders

LARGEST_GRID = 10_000  # spaces with more combinations count as endless


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is searched, wherever the trials run.

    Args:
        base: the hyperparameters of every trial, before the searched ones are put in.
        carried: hyperparameters given as flags, which best.json passes on to train.
        images: the fingerprint of the images; empty for a search of an earlier version.
        earlier: what is learned from earlier searches, on this machine; SageMaker reads them itself.
    """

    base: TrainConfig
    space: Mapping[str, Range]
    tune: TuneSettings
    carried: Mapping[str, str]
    images: str = ""
    earlier: WarmStart = NOTHING

    def to_json(self) -> dict[str, Any]:
        """What job.json keeps of it beside `base`."""
        return {
            "space": {name: _to_json(spec) for name, spec in self.space.items()},
            "tune": dataclasses.asdict(self.tune),
            "carried": self.carried,
            "images": self.images,
            "warm_start": self.earlier.to_json(),
        }


def make_plan(
    base: TrainConfig,
    space: Mapping[str, Range],
    tune: TuneSettings,
    folders: ImageFolders,
    *,
    given: Collection[str] = (),
    view: View = SILENT,
) -> Plan:
    """Settles what is searched on this data set.

    Args:
        base: the hyperparameters of a trial, before the searched ones are put in.
        space: what may be searched.
        given: hyperparameters that were settled by hand: they are not searched, and best.json passes them on.

    Raises:
        ConfigError: nothing is left to search.
    """
    if tune.epochs:
        base = base.replace(epochs=tune.epochs)
    space = {name: spec for name, spec in space.items() if name not in given}
    if not space:
        raise ConfigError("nothing is left to search: every searched hyperparameter is given as a flag")
    if tune.strategy == "Hyperband" and base.epochs < 2:
        raise ConfigError("Hyperband compares trials after some of their epochs and needs at least 2")
    if tune.strategy == "Hyperband" and not tune.prune:
        raise ConfigError("Hyperband ends trials early, which prune = false forbids", "choose strategy = Bayesian")
    space = _fit_batch_sizes(space, folders, view)
    carried = {name: text for name, text in base.to_hyperparameters().items() if name in given and name != "epochs"}
    tune, images = fit_trials(tune, space, view), fingerprint(folders)
    return Plan(base=base, space=space, tune=tune, carried=carried, images=images)


def with_earlier(plan: Plan, runs_dir: Path, view: View = SILENT) -> Plan:
    """The plan with what the searches named in its settings found. Raises as `learn_from`."""
    earlier = learn_from(
        searches_named(plan.tune.warm_start),
        runs_dir,
        base=plan.base,
        space=plan.space,
        objective=plan.tune.objective,
        images=plan.images,
    )
    for line in earlier.lines():
        view.note(line)
    tune = fit_trials(plan.tune, plan.space, view, tried=len(earlier.points_tried()))
    return dataclasses.replace(plan, earlier=earlier, tune=tune)


def combinations(space: Mapping[str, Range]) -> Iterator[dict[str, Value]]:
    """Every point of a space without continuous ranges; none for an endless one."""
    if num_combinations(space) <= LARGEST_GRID:
        axes = [
            spec.values if isinstance(spec, Categorical) else range(int(spec.low), int(spec.high) + 1)
            for spec in space.values()
        ]
        for point in itertools.product(*axes):
            yield dict(zip(space, point, strict=True))


def num_combinations(space: Mapping[str, Range]) -> float:
    """The number of different points, infinite when a range is continuous."""
    sizes = {
        name: len(set(spec.values))
        if isinstance(spec, Categorical)
        else spec.high - spec.low + 1
        if isinstance(spec, Integer)
        else math.inf
        for name, spec in space.items()
    }
    return math.prod(sizes.values())


def fit_trials(tune: TuneSettings, space: Mapping[str, Range], view: View = SILENT, *, tried: int = 0) -> TuneSettings:
    """The settings with no more trials than the space has points.

    Args:
        tried: points whose outcome an earlier search knows.

    Raises:
        ConfigError: it knows them all.
    """
    all_points = num_combinations(space)
    most = all_points - tried
    if tune.trials <= most:
        return tune
    if most < 1:
        raise ConfigError(f"the earlier searches have tried all {all_points:.0f} combinations of the search space")
    known = f", {tried} of them tried by earlier searches" if tried else ""
    view.note(f"the search space has {all_points:.0f} combinations{known}: {most:.0f} trials instead of {tune.trials}")
    return dataclasses.replace(tune, trials=int(most))


def _fit_batch_sizes(space: Mapping[str, Range], folders: ImageFolders, view: View) -> dict[str, Range]:
    """Leaves out batch sizes that are larger than the training set. Raises ConfigError when none is left."""
    spec, images = space.get("batch_size"), len(folders.train)
    if not isinstance(spec, Categorical):
        return dict(space)
    fitting = tuple(value for value in spec.values if int(value) <= images)
    if not fitting:
        raise ConfigError(
            f"every batch size of the search is larger than the {images} training images",
            "lower batch_size under [tune.search]",
        )
    if left_out := [str(value) for value in spec.values if value not in fitting]:
        view.note(f"batch_size {', '.join(left_out)} left out: there are only {images} training images")
    return {**space, "batch_size": Categorical(values=fitting)}


def _to_json(spec: Range) -> Any:
    """The form that `parse_search_space` reads."""
    return list(spec.values) if isinstance(spec, Categorical) else dataclasses.asdict(spec)
