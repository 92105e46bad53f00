"""Tables without a judgement: how much of the machine was used, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.rules.base import Finding, healthy, insufficient, listed, percent
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rules.system import SystemRule, joint
from image_classifier.debugging.rules.waiting import ClockRule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import MODES, PHASES, Evidence


@dataclass(frozen=True, kw_only=True)
class OverallSystemUsage(SystemRule):
    """How much of the machine was used: a table, no judgement. Never fires.

    Evidence holds max, p99, p95, p50 and min of CPU (mean over cores), I/O wait, memory, GPU, GPU memory.
    """

    severity = "info"
    managed = Managed(reads="system metrics")

    def judge(self, run: RunData) -> Finding:
        start, end = self.window(run)
        evidence, datapoints = [], 0
        dimensions = (
            "CPUUtilization",
            "I/OWaitPercentage",
            "MemoryUsedPercent",
            "GPUUtilization",
            "GPUMemoryUtilization",
        )
        for dimension in dimensions:
            _, table = joint(list(run.system(dimension).values()), start, end)
            if table.size:
                datapoints += table.size
                quantiles = np.percentile(table.mean(axis=0), (100, 99, 95, 50, 0))
                for label, value in zip(("max", "p99", "p95", "p50", "min"), quantiles, strict=True):
                    evidence.append(Evidence(step=None, name=f"{dimension} {label}", value=float(value)))
        if not evidence:
            return self.too_short()
        medians = [each for each in evidence if each.name.endswith("p50")]
        summary = listed([f"{each.name.split(' ')[0]} {each.value:.0f} %" for each in medians], most=5)
        return healthy(f"medians: {summary}", datapoints, evidence)


@dataclass(frozen=True, kw_only=True)
class OverallFrameworkMetrics(ClockRule):
    """Where the time of the steps went: a table, no judgement. Never fires.

    Evidence holds the seconds of each mode, and of each phase of the training steps.
    """

    severity = "info"
    managed = Managed(reads="framework metrics")

    def judge(self, run: RunData) -> Finding:
        totals = {mode: float(run.step(mode, "seconds").values.sum()) for mode in MODES}
        if not totals["train"]:
            return insufficient("needs steps with a duration")
        evidence = [Evidence(step=None, name=f"{mode} seconds", value=value) for mode, value in totals.items() if value]
        phases = {name: float(run.step("train", name).values.sum()) for name in PHASES if len(run.step("train", name))}
        evidence += [Evidence(step=None, name=f"train {name}", value=value) for name, value in phases.items()]
        largest = sorted(phases.items(), key=lambda item: -item[1])
        shares = [f"{name.removesuffix('_s')} {percent(value / totals['train'])}" for name, value in largest]
        return healthy(
            f"training took {totals['train']:.0f} s: {listed(shares, most=6)}",
            len(run.step("train", "seconds")),
            evidence,
        )
