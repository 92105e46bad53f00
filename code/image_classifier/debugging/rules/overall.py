"""Tables without a judgement: how much of the machine was used, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass

from image_classifier.debugging.measures import phase_shares, seconds_by_mode, spread, usage
from image_classifier.debugging.rules.base import Finding, healthy, insufficient, listed, percent
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rules.system import SystemRule
from image_classifier.debugging.rules.waiting import ClockRule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import PHASES, Evidence


@dataclass(frozen=True, kw_only=True)
class OverallSystemUsage(SystemRule):
    """How much of the machine was used: a table, no judgement. Never fires.

    Evidence holds max, p99, p95, p50 and min of CPU (mean over a host's cores), I/O wait, memory, GPU, GPU memory.
    """

    looks_at = "max, p99, p95, p50 and min of what was sampled"
    remedy = "nothing: a table"
    source = "AWS Profiler's OverallSystemUsage"
    severity = "info"
    judges = False
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
            values, num_samples = usage(run, dimension, start, end)
            if num_samples:
                datapoints += num_samples
                found = spread(values)
                for label in ("max", "p99", "p95", "p50", "min"):
                    evidence.append(Evidence(step=None, name=f"{dimension} {label}", value=found[label]))
        if not evidence:
            return self.too_short()
        medians = [each for each in evidence if each.name.endswith("p50")]
        summary = listed([f"{each.name.split(' ')[0]} {each.value:.0f} %" for each in medians], most=5)
        return healthy(f"medians: {summary}", datapoints, evidence)


@dataclass(frozen=True, kw_only=True)
class OverallFrameworkMetrics(ClockRule):
    """Where the time of the steps went: a table, no judgement. Never fires.

    Evidence holds the seconds of each mode, and of each phase of the training steps. The summary's shares leave the
    first step out.
    """

    looks_at = "seconds of each mode and phase"
    remedy = "nothing: a table"
    source = "AWS Profiler's OverallFrameworkMetrics"
    severity = "info"
    judges = False
    managed = Managed(reads="framework metrics")

    def judge(self, run: RunData) -> Finding:
        totals = seconds_by_mode(run)
        if "train" not in totals:
            return insufficient("needs steps with a duration")
        evidence = [Evidence(step=None, name=f"{mode} seconds", value=value) for mode, value in totals.items()]
        phases = {name: float(run.step("train", name).values.sum()) for name in PHASES if len(run.step("train", name))}
        evidence += [Evidence(step=None, name=f"train {name}", value=value) for name, value in phases.items()]
        largest = sorted(phase_shares(run).items(), key=lambda item: -item[1])
        shares = [f"{name.removesuffix('_s')} {percent(share)}" for name, share in largest if name in phases]
        return healthy(
            f"training took {totals['train']:.0f} s: {listed(shares, most=6)}",
            len(run.step("train", "seconds")),
            evidence,
        )
