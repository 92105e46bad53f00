"""What all rules share: parameters as fields, a verdict from a run, the sentences of the common cases."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from image_classifier.contract.errors import describe
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import MAX_EVIDENCE, Evidence, RuleResult, Verdict


@dataclass(frozen=True)
class Finding:
    """What a rule found, before it carries the rule's name and parameters."""

    verdict: Verdict
    summary: str
    advice: str = ""
    evidence: tuple[Evidence, ...] = ()
    datapoints: int = 0


def healthy(summary: str, datapoints: int, evidence: Sequence[Evidence] = ()) -> Finding:
    """Nothing to complain of."""
    return Finding(Verdict.NO_ISSUES, summary, evidence=tuple(evidence), datapoints=datapoints)


def issue(summary: str, advice: str, evidence: Sequence[Evidence], datapoints: int) -> Finding:
    """The rule fires."""
    return Finding(Verdict.ISSUES, summary, advice, tuple(evidence), datapoints)


def insufficient(summary: str, datapoints: int = 0) -> Finding:
    """Not observed, or not for long enough."""
    return Finding(Verdict.INSUFFICIENT_DATA, summary, datapoints=datapoints)


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A question about a run. Subclasses are frozen dataclasses whose fields are the rule's parameters."""

    severity: ClassVar[Literal["info", "warning", "critical"]] = "warning"
    about: ClassVar[Literal["tensors", "system"]] = "tensors"

    @abstractmethod
    def judge(self, run: RunData) -> Finding:
        """The answer. May raise anything: `check` makes a verdict of it."""

    @property
    def name(self) -> str:
        """The class's name, which is also the managed rule's where there is one."""
        return type(self).__name__

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
        )


def percent(share: float) -> str:
    """0.614 -> `61 %`."""
    return f"{100 * share:.0f} %"


def short(value: float) -> str:
    """A number for a sentence, three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
