"""What all rules share: parameters as fields, a verdict from a run, a place in the list, sentences of common cases."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from image_classifier.contract.errors import describe
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import MAX_EVIDENCE, Evidence, RuleResult, Verdict

# what an item of the report's advice is about
Aspect = Literal["learning", "generalization", "classes", "speed"]


@dataclass(frozen=True)
class Finding:
    """What a rule found, before it carries the rule's name and parameters."""

    verdict: Verdict
    summary: str
    advice: str = ""
    evidence: tuple[Evidence, ...] = ()
    datapoints: int = 0
    applies: bool = True


def healthy(summary: str, datapoints: int, evidence: Sequence[Evidence] = ()) -> Finding:
    """Nothing to complain of."""
    return Finding(Verdict.NO_ISSUES, summary, evidence=tuple(evidence), datapoints=datapoints)


def issue(summary: str, advice: str, evidence: Sequence[Evidence], datapoints: int) -> Finding:
    """The rule fires."""
    return Finding(Verdict.ISSUES, summary, advice, tuple(evidence), datapoints)


def insufficient(summary: str, datapoints: int = 0) -> Finding:
    """Not observed, or not for long enough."""
    return Finding(Verdict.INSUFFICIENT_DATA, summary, datapoints=datapoints)


def not_applicable(summary: str) -> Finding:
    """There is nothing of what the rule asks about in this job, and more of it would not change that."""
    return Finding(Verdict.INSUFFICIENT_DATA, summary, applies=False)


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A question about a run. Subclasses are frozen dataclasses whose fields are the rule's parameters.

    A class with a `judge` is a rule: it enters RULES when it is defined, and states `managed` itself. What AWS is sent
    of it, what the report's advice makes of it and what the documentation says of it follow from the class.

    Class attributes:
        severity: how much it matters when it fires.
        about: what it reads: what the recorder saw, or the machine and its clock, which smdebug's files do not hold.
        managed: AWS's rule for the same question; None when AWS has none.
        aspect: of what the report's advice says nothing more once this rule has fired and spoken; None of nothing.
        explains: rules whose findings it accounts for: they are its symptoms where it has fired.
        looks_at, remedy, source: what its evidence shows, what helps when it fires, where it comes from; with the
            docstring, which has the formula, what `deploy.py rules --explain` prints.
        judges: False for a table of statistics: that it ends without an issue means nothing.
    """

    severity: ClassVar[Literal["info", "warning", "critical"]] = "warning"
    about: ClassVar[Literal["tensors", "system"]] = "tensors"
    managed: ClassVar[Managed | None]
    aspect: ClassVar[Aspect | None] = None
    explains: ClassVar[tuple[str, ...]] = ()
    looks_at: ClassVar[str] = ""
    remedy: ClassVar[str] = ""
    source: ClassVar[str] = ""
    judges: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        """Enters a rule into RULES.

        Raises:
            TypeError: it does not state `managed` (a base's is another rule's), or has the name of another rule.
        """
        super().__init_subclass__()
        if getattr(cls.judge, "__isabstractmethod__", False):  # a base of rules
            return
        if "managed" not in vars(cls):
            raise TypeError(
                f"the rule {cls.__name__} does not say what AWS has in its place: managed = Managed or None"
            )
        if cls.__name__ in RULES:
            raise TypeError(f"there is a rule {cls.__name__} already, in {RULES[cls.__name__].__module__}")
        RULES[cls.__name__] = cls

    @abstractmethod
    def judge(self, run: RunData) -> Finding:
        """The answer. May raise anything: `check` makes a verdict of it."""

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    @property
    def idle_s(self) -> float:
        """For how many seconds no step must have ended before it can fire without one; infinite when it never can."""
        return math.inf

    def check(self, run: RunData) -> RuleResult:
        """The answer as it is kept; never raises."""
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # numbers that are not finite are findings, not faults
                finding = self.judge(run)
        except Exception as error:  # a rule must never end a job
            finding = Finding(Verdict.ERROR, f"the rule failed: {describe(error)}")
        return RuleResult(
            rule=self.name,
            verdict=finding.verdict,
            severity=self.severity,
            summary=finding.summary,
            advice=finding.advice,
            evidence=finding.evidence[:MAX_EVIDENCE],
            parameters=dataclasses.asdict(self),
            datapoints=finding.datapoints,
            applies=finding.applies,
        )


RULES: dict[str, type[Rule]] = {}  # every rule there is by its name, in the order in which they were defined


def percent(share: float) -> str:
    """0.614 -> `61 %`."""
    return f"{100 * share:.0f} %"


def short(value: float) -> str:
    """A number for a sentence, three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def first_run(bad: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], patience: int) -> int | None:
    """Index at which `bad` has held `patience` times in a row for the first time."""
    length = 0
    for index, value in enumerate(bad):
        length = length + 1 if value else 0
        if length == patience:
            return index
    return None


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
