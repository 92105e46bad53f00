"""The hyperparameter search space: the same description for Optuna on this machine and for SageMaker's tuner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from image_classifier.contract.config import TrainConfig, Value, parameter, parse_value
from image_classifier.contract.errors import ConfigError

MAX_CATEGORICAL_VALUES = 30  # CreateHyperParameterTuningJob's limit
MAX_RANGES = 30  # the same API's limit on the number of ranges


@dataclass(frozen=True, kw_only=True)
class Continuous:
    """Any float in [low, high]; `log` searches the exponent uniformly and needs low > 0."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Integer:
    """Any integer in [low, high]; `log` searches the exponent uniformly and needs low > 0."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One of `values`, without an order."""

    values: tuple[Value, ...]


Range = Continuous | Integer | Categorical
SearchSpace = Mapping[str, Range]

DEFAULT_SEARCH_SPACE: SearchSpace = {
    "lr": Continuous(low=0.001, high=0.1, log=True),
    "batch_size": Categorical(values=(16, 32, 64, 128)),
}


def parse_search_space(table: Mapping[str, Any]) -> dict[str, Range]:
    """Reads `[tune.search]` of the config file.

    Args:
        table: hyperparameter name -> a list of values, or a table with `low`, `high` and optionally `log`.

    Raises:
        ConfigError: an unknown hyperparameter, an empty or reversed range, a value the hyperparameter does not take.
    """
    if not table:
        raise ConfigError("the search space is empty", "name at least one hyperparameter under [tune.search]")
    if len(table) > MAX_RANGES:
        raise ConfigError(f"the search space has {len(table)} hyperparameters, at most {MAX_RANGES} are possible")
    return {name: _parse_range(name, spec) for name, spec in table.items()}


def _parse_range(name: str, spec: Any) -> Range:
    param = parameter(name)
    if isinstance(spec, list):
        if not 1 <= len(spec) <= MAX_CATEGORICAL_VALUES:
            raise ConfigError(f"{name}: a list has 1 to {MAX_CATEGORICAL_VALUES} values, this one has {len(spec)}")
        return Categorical(values=tuple(parse_value(name, str(value)) for value in spec))
    if not isinstance(spec, Mapping) or not {"low", "high"} <= set(spec) <= {"low", "high", "log"}:
        raise ConfigError(
            f"{name}: {spec!r} is not a range",
            f"write a list of values, or {name} = {{ low = 0.001, high = 0.1, log = true }}",
        )
    if param.type not in (int, float):
        raise ConfigError(f"{name} is not a number and has no range", f"write a list: {name} = [...]")
    low, high = (parse_value(name, str(spec[end])) for end in ("low", "high"))
    log = spec.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{name}: log is true or false, not {log!r}")
    if not low < high:  # type: ignore[operator]  # both are numbers: checked above
        raise ConfigError(f"{name}: low ({low}) must be below high ({high})")
    if log and float(low) <= 0:
        raise ConfigError(f"{name}: a log range needs low above 0, not {low}")
    if param.type is int:
        return Integer(low=int(low), high=int(high), log=log)
    return Continuous(low=float(low), high=float(high), log=log)


def with_values(config: TrainConfig, values: Mapping[str, Value]) -> TrainConfig:
    """`config` with the sampled `values` put in. Floats from a sampler are kept to 6 significant digits, so that the
    number in the table is the number that was trained with."""
    rounded = {
        name: float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value
        for name, value in values.items()
    }
    return config.replace(**rounded)
