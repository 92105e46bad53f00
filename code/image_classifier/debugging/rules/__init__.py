"""The rules. Importing this defines them all, module by module: their order is that of rules.json and of the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from difflib import get_close_matches

from image_classifier.contract.errors import ConfigError

# in the order of the report: each module's rules enter RULES when it is imported
# isort: off
from image_classifier.debugging.rules import (
    before_start,
    losses,
    dynamics,
    tensors,
    weights,
    batches,
    heads,
    optimizers,
    overfitting,
    classes,
    waiting,
    system,
    framework,
    overall,
)

# isort: on
from image_classifier.debugging.rules.base import RULES, Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import RuleResult, Verdict

MODULES = (
    before_start,
    losses,
    dynamics,
    tensors,
    weights,
    batches,
    heads,
    optimizers,
    overfitting,
    classes,
    waiting,
    system,
    framework,
    overall,
)
__all__ = ["MODULES", "RULES", "judge", "parse_rules"]


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules named in a comma list, with their default parameters; `all` and `none` stand for what they say.

    Raises:
        ConfigError: there is no such rule.
    """
    names = {"all": list(RULES), "none": []}.get(text.strip(), [name.strip() for name in text.split(",")])
    return tuple(_rule(name)() for name in names)


def judge(run: RunData, rules: Sequence[Rule]) -> list[RuleResult]:
    """Every rule's verdict on a run. Of rules that fired, those that another accounts for are told as its symptoms."""
    return with_causes([rule.check(run) for rule in rules])


# from what is given to what comes of it: of two rules that account for each other, the one of earlier steps is the
# cause, and of the same step the first of these
CAUSES_FIRST = (
    "LabelsOutside",
    "LabelsPermuted",
    "GradientReach",
    "FrozenUntrained",
    "StaleGradient",
    "LeftOutParameters",
    "LearningRate",
    "CheckInputImages",
    "LossForm",
    "WrongHead",
    "NoActivation",
    "NormMode",
    "HeavyDropout",
    "OneBatch",
    "Regulariser",
    "ShortTraining",
    "StartsAnew",
    "AllZero",
    "VanishingGradient",
    "PoorWeightInitialization",
    "UnchangedTensor",
    "ExplodingTensor",
    "WeightUpdateRatio",
    "DeadRelu",
    "ConstantOutput",
)


def with_causes(results: Sequence[RuleResult]) -> list[RuleResult]:
    """The verdicts, with `symptom_of` where a rule that fired accounts for another's finding."""
    fired = [each.rule for each in results if each.verdict is Verdict.ISSUES]
    order = [name for name in (*CAUSES_FIRST, *fired) if name in fired]
    begun = {each.rule: _first_step(each) for each in results}
    causes: dict[str, str] = {}
    for cause in dict.fromkeys(order):
        if cause in RULES and cause not in causes:  # a symptom is no cause of others: its own cause is theirs
            for symptom in RULES[cause].explains:
                if symptom not in fired or symptom in causes or begun[cause] > begun[symptom]:
                    continue
                if begun[cause] < begun[symptom] or _earlier(order, cause, symptom):
                    causes[symptom] = cause
    return [dataclasses.replace(each, symptom_of=causes.get(each.rule, "")) for each in results]


def _first_step(result: RuleResult) -> float:
    """The first step of which a finding has evidence; -inf where it is of the whole training."""
    return min((-math.inf if each.step is None else each.step for each in result.evidence), default=-math.inf)


def _earlier(order: Sequence[str], cause: str, symptom: str) -> bool:
    """Whether the two do not account for each other, or the cause comes first."""
    return cause not in RULES[symptom].explains or order.index(cause) < order.index(symptom)


def _rule(name: str) -> type[Rule]:
    if name in RULES:
        return RULES[name]
    near = get_close_matches(name, RULES, n=1)
    raise ConfigError(
        f"there is no rule {name!r}", f"did you mean {near[0]}?" if near else "rules: all, none, or names"
    )
