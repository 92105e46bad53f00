"""The rule table: every rule there is, in the order of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from image_classifier.contract.errors import ConfigError
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.classes import CheckInputImages, ClassImbalance
from image_classifier.debugging.rules.framework import (
    Dataloader,
    MaxInitializationTime,
    OverallFrameworkMetrics,
    StepOutlier,
)
from image_classifier.debugging.rules.losses import LossNotDecreasing, Overfit, Overtraining, StalledTraining
from image_classifier.debugging.rules.system import (
    BatchSize,
    CPUBottleneck,
    GPUMemoryIncrease,
    IOBottleneck,
    LoadBalancing,
    LowGPUUtilization,
    OverallSystemUsage,
)
from image_classifier.debugging.rules.tensors import (
    AllZero,
    DeadRelu,
    ExplodingTensor,
    PoorWeightInitialization,
    UnchangedTensor,
    VanishingGradient,
    WeightUpdateRatio,
)
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import RuleResult

RULES: tuple[type[Rule], ...] = (
    ExplodingTensor,
    LossNotDecreasing,
    VanishingGradient,
    PoorWeightInitialization,
    DeadRelu,
    WeightUpdateRatio,
    UnchangedTensor,
    AllZero,
    Overfit,
    Overtraining,
    ClassImbalance,
    CheckInputImages,
    StalledTraining,
    Dataloader,
    LowGPUUtilization,
    CPUBottleneck,
    IOBottleneck,
    GPUMemoryIncrease,
    BatchSize,
    LoadBalancing,
    StepOutlier,
    MaxInitializationTime,
    OverallSystemUsage,
    OverallFrameworkMetrics,
)
RULE_BY_NAME: Mapping[str, type[Rule]] = {rule.__name__: rule for rule in RULES}


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules named in a comma list, with their default parameters; `all` and `none` stand for what they say.

    Raises:
        ConfigError: there is no such rule.
    """
    names = {"all": list(RULE_BY_NAME), "none": []}.get(text.strip(), [name.strip() for name in text.split(",")])
    return tuple(_rule(name)() for name in names)


def judge(run: RunData, rules: Sequence[Rule]) -> list[RuleResult]:
    """Every rule's verdict on a run."""
    return [rule.check(run) for rule in rules]


def _rule(name: str) -> type[Rule]:
    if name in RULE_BY_NAME:
        return RULE_BY_NAME[name]
    near = get_close_matches(name, RULE_BY_NAME, n=1)
    raise ConfigError(
        f"there is no rule {name!r}", f"did you mean {near[0]}?" if near else "rules: all, none, or names"
    )
