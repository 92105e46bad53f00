"""The rules. Importing this defines them all, module by module: their order is that of rules.json and of the report."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from image_classifier.contract.errors import ConfigError

# in the order of the report: each module's rules enter RULES when it is imported
# isort: off
from image_classifier.debugging.rules import losses, tensors, overfitting, classes, waiting, system, framework, overall

# isort: on
from image_classifier.debugging.rules.base import RULES, Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import RuleResult

MODULES = (losses, tensors, overfitting, classes, waiting, system, framework, overall)
__all__ = ["MODULES", "RULES", "judge", "parse_rules"]


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules named in a comma list, with their default parameters; `all` and `none` stand for what they say.

    Raises:
        ConfigError: there is no such rule.
    """
    names = {"all": list(RULES), "none": []}.get(text.strip(), [name.strip() for name in text.split(",")])
    return tuple(_rule(name)() for name in names)


def judge(run: RunData, rules: Sequence[Rule]) -> list[RuleResult]:
    """Every rule's verdict on a run."""
    return [rule.check(run) for rule in rules]


def _rule(name: str) -> type[Rule]:
    if name in RULES:
        return RULES[name]
    near = get_close_matches(name, RULES, n=1)
    raise ConfigError(
        f"there is no rule {name!r}", f"did you mean {near[0]}?" if near else "rules: all, none, or names"
    )
