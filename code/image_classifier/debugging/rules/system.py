"""Rules over the machine's metrics. Those about GPUs have nothing to say of a job without one.

The managed rules wait for 1,000 samples (8.3 minutes at 500 ms); these count seconds, as samples may lie further apart.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.crop_growth import grown_at
from image_classifier.debugging.measures import FIRST_EPOCH_S, MIN_S, WARMUP_S, counted_time, data_wait_share, joint
from image_classifier.debugging.rules.base import (
    Finding,
    Rule,
    healthy,
    insufficient,
    issue,
    not_applicable,
    percent,
    short,
)
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rules.waiting import WAITS, busy_core, more_workers
from image_classifier.debugging.rundata import Floats, RunData, Series
from image_classifier.debugging.schema import Evidence

NO_GPU = "this job had no GPU"
BUSY = 90.0  # percent of a core: the managed CPUBottleneck's threshold
IDLE_GPU = 10.0  # percent: the managed bottleneck rules' threshold


@dataclass(frozen=True, kw_only=True)
class SystemRule(Rule):
    """A rule over system metrics; looks at the time in which steps were made, from the second epoch on.

    In the first epoch files are read for the first time, kernels are chosen and memory is asked for, up to the end of
    its validation. As long as there is no other, it counts from `warmup_s` seconds after its first step on.

    Args:
        warmup_s: seconds of the first epoch that never count.
        min_s: seconds of steps below which nothing is said.
        first_epoch_s: the same, while there is only the first epoch.
    """

    about = "system"
    warmup_s: float = WARMUP_S
    min_s: float = MIN_S
    first_epoch_s: float = FIRST_EPOCH_S

    def window(self, run: RunData) -> tuple[float, float]:
        """First and last Unix second that count; (0, 0) when there are too few."""
        counted = counted_time(run, warmup_s=self.warmup_s, min_s=self.min_s, first_epoch_s=self.first_epoch_s)
        return counted or (0.0, 0.0)

    def in_window(self, run: RunData, dimension: str) -> dict[str, Floats]:
        """`node/name` -> values of the seconds that count."""
        start, end = self.window(run)
        found = {name: within(series, start, end) for name, series in run.system(dimension).items()}
        return {name: values for name, values in found.items() if len(values)}

    def without_gpu(self, run: RunData) -> Finding:
        """The answer to a job without numbers of a GPU: it has none, or nobody sampled it."""
        return insufficient("no GPU metrics were sampled") if run.job.gpus else not_applicable(NO_GPU)

    def too_short(self) -> Finding:
        """The answer to a job that has not run for long enough."""
        return insufficient(f"needs {self.min_s:.0f} s after the first epoch, or one of {self.first_epoch_s:.0f} s")


@dataclass(frozen=True, kw_only=True)
class LowGPUUtilization(SystemRule):
    """The GPU is not used, or only in bursts.

    Over the counted time, by GPU: fires when the 95th percentile of its utilization is below `threshold_p95`, or when
    it is above and the 20th percentile is below `threshold_p20`.

    The managed rule takes the 5th percentile: in a job with short epochs, the pauses between them and for checkpoints
    are more than that.
    """

    looks_at = "percentiles of each GPU's use"
    remedy = "larger batches, faster loading, fewer or smaller GPUs"
    source = "AWS Profiler's LowGPUUtilization"
    managed = Managed(reads="system metrics")
    aspect = "speed"
    threshold_p95: float = 70.0
    threshold_p20: float = 10.0

    def judge(self, run: RunData) -> Finding:
        if not run.system("GPUUtilization"):
            return self.without_gpu(run)
        gpus = self.in_window(run, "GPUUtilization")
        if not gpus:
            return self.too_short()
        datapoints = sum(map(len, gpus.values()))
        evidence = []
        for name, values in gpus.items():
            p20, p95 = np.percentile(values, (20, 95))
            if p95 < self.threshold_p95 or p20 < self.threshold_p20:
                evidence.append(Evidence(step=None, name=f"{name} GPUUtilization p95", value=float(p95)))
                evidence.append(Evidence(step=None, name=f"{name} GPUUtilization p20", value=float(p20)))
        if not evidence:
            mean = float(np.mean([values.mean() for values in gpus.values()]))
            return healthy(f"the GPUs were busy {mean:.0f} % of the time", datapoints)
        p95, p20 = evidence[0].value, evidence[1].value
        wait = data_wait_share(run)
        if wait > WAITS:
            advice = f"data wait is {percent(wait)} of the step: {more_workers(run)}"
        else:
            advice = f"raise batch_size (it is {run.job.config.get('batch_size', '?')}) or take a smaller GPU"
        how = "low throughout" if p95 < self.threshold_p95 else "high only in bursts"
        return issue(
            f"{len(evidence) // 2} of {len(gpus)} GPUs: utilization is {how} "
            f"(95th percentile {p95:.0f} %, 20th {p20:.0f} %)",
            advice,
            evidence,
            datapoints,
        )


@dataclass(frozen=True, kw_only=True)
class CPUBottleneck(SystemRule):
    """The GPU waits while the CPU works.

    Fires when the share of samples with some GPU below `gpu_threshold` and some core above `cpu_threshold` percent is
    above `threshold`. The advice goes by what the core is busy with: loading, where the steps wait for data; else
    launching what the GPU does, or recording.
    """

    looks_at = "the share of moments in which a GPU waits while the CPU is busy"
    remedy = "workers, cache=decoded, augment=light or more cores where steps wait for data; else a larger batch_size"
    source = "AWS Profiler's CPUBottleneck"
    managed = Managed(reads="system metrics")
    aspect = "speed"
    threshold: float = 0.5
    gpu_threshold: float = IDLE_GPU
    cpu_threshold: float = BUSY

    def judge(self, run: RunData) -> Finding:
        return self._share(run, "CPUUtilization", self.cpu_threshold, "a CPU core is busy", busy_core(run))

    def _share(self, run: RunData, dimension: str, limit: float, what: str, advice: str) -> Finding:
        if not run.system("GPUUtilization"):
            return self.without_gpu(run)
        start, end = self.window(run)
        moments, gpu = joint(list(run.system("GPUUtilization").values()), start, end)
        others, cpu = joint(list(run.system(dimension).values()), start, end)
        _, left, right = np.intersect1d(moments, others, return_indices=True)
        if not len(left):
            return self.too_short()
        both = (gpu[:, left].min(axis=0) < self.gpu_threshold) & (cpu[:, right].max(axis=0) > limit)
        share = float(both.mean())
        evidence = [Evidence(step=None, name=f"samples with an idle GPU and {dimension} > {limit:g}", value=share)]
        if share <= self.threshold:
            return healthy(f"a GPU is idle while {what} {percent(share)} of the time", len(left), evidence)
        return issue(f"a GPU is idle while {what} {percent(share)} of the time", advice, evidence, len(left))


@dataclass(frozen=True, kw_only=True)
class IOBottleneck(CPUBottleneck):
    """The GPU waits while the CPU waits for the disk.

    Fires when the share of samples with some GPU < `gpu_threshold` and the I/O wait of the cores > `io_threshold` is
    above `threshold`.
    """

    looks_at = "the share of moments in which a GPU waits while the CPU waits for the disk"
    remedy = "cache=decoded, smaller images, faster storage"
    source = "AWS Profiler's IOBottleneck"
    managed = Managed(reads="system metrics")
    io_threshold: float = 50.0

    def judge(self, run: RunData) -> Finding:
        return self._share(
            run,
            "I/OWaitPercentage",
            self.io_threshold,
            "the cores wait for the disk",
            f"the storage is the limit: copy the images to a local disk (File instead of FastFile mode), make them "
            f"smaller, or raise workers (it is {run.job.workers})",
        )


@dataclass(frozen=True, kw_only=True)
class GPUMemoryIncrease(SystemRule):
    """The GPU's memory fills up in the course of the training.

    Over the counted time, by GPU: the moving average over `window_size` samples; fires when it ends more than
    `increase` percentage points above its lowest value, and its last third's mean is above its middle third's by more
    than a quarter of that. The second condition tells a leak from the step to a higher level that the first validation
    or the allocator's cache makes. While crops grow so does the memory: it counts from the last time they did.
    """

    looks_at = "the GPU's memory at first and at last, in percent"
    remedy = "keep no graph or tensor from step to step"
    source = "AWS Profiler's GPUMemoryIncrease"
    managed = Managed(reads="system metrics")
    increase: float = 5.0
    window_size: int = 10

    def window(self, run: RunData) -> tuple[float, float]:
        start, end = super().window(run)
        return max(start, grown_at(run)), end

    def judge(self, run: RunData) -> Finding:
        if not run.system("GPUMemoryUtilization"):
            return self.without_gpu(run)
        gpus = self.in_window(run, "GPUMemoryUtilization")
        if not gpus or min(map(len, gpus.values())) < 3 * self.window_size:
            return self.too_short()
        evidence = []
        for name, values in gpus.items():
            average = np.convolve(values, np.full(self.window_size, 1 / self.window_size), mode="valid")
            rise = float(average[-1] - average.min())
            _, middle, last = (part.mean() for part in np.array_split(average, 3))
            if rise > self.increase and last - middle > self.increase / 4:
                evidence.append(Evidence(step=None, name=f"{name} GPUMemoryUtilization rise", value=rise))
        datapoints = sum(map(len, gpus.values()))
        if not evidence:
            return healthy("GPU memory use is steady", datapoints)
        return issue(
            f"the memory in use of {evidence[0].name.split(' ')[0]} rose by {evidence[0].value:.0f} percentage points",
            f"look for tensors kept from step to step; lower batch_size (it is {run.job.config.get('batch_size', '?')})"
            " if it may run out",
            evidence,
            datapoints,
        )


@dataclass(frozen=True, kw_only=True)
class BatchSize(SystemRule):
    """The batch is too small for the machine: nothing is busy.

    Fires when the 95th percentiles of CPU (mean over cores), GPU and GPU memory utilization are all below their
    thresholds.
    """

    looks_at = "95th percentiles of CPU, GPU and GPU memory"
    remedy = "a larger batch_size, or a smaller instance"
    source = "AWS Profiler's BatchSize"
    managed = Managed(reads="system metrics")
    cpu_threshold_p95: float = 70.0
    gpu_threshold_p95: float = 70.0
    gpu_memory_threshold_p95: float = 70.0

    def judge(self, run: RunData) -> Finding:
        if not run.system("GPUUtilization"):
            return self.without_gpu(run)
        start, end = self.window(run)
        limits = {
            "CPUUtilization": self.cpu_threshold_p95,
            "GPUUtilization": self.gpu_threshold_p95,
            "GPUMemoryUtilization": self.gpu_memory_threshold_p95,
        }
        evidence, datapoints = [], 0
        for dimension, limit in limits.items():
            _, table = joint(list(run.system(dimension).values()), start, end)
            if not table.size:
                return self.too_short()
            datapoints += table.size
            p95 = float(np.percentile(table.mean(axis=0), 95))
            if p95 < limit:
                evidence.append(Evidence(step=None, name=f"{dimension} p95", value=p95))
        if len(evidence) < len(limits):
            return healthy("something is busy", datapoints)
        size = run.job.config.get("batch_size", "?")
        return issue(
            "CPU, GPU and GPU memory are all used below "
            + ", ".join(f"{limit:g} %" for limit in dict.fromkeys(limits.values())),
            f"raise batch_size (it is {size}) and lr with it, or take a smaller instance",
            evidence,
            datapoints,
        )


@dataclass(frozen=True, kw_only=True)
class LoadBalancing(SystemRule):
    """The GPUs do not share the work evenly.

    The distance of two GPUs is the square root of the Jensen-Shannon divergence (base 2) of their utilization
    histograms, ten bins over 0..100 %; 0 for equal ones, 1 for disjoint ones. Fires when two GPUs' distance exceeds
    `threshold` and their mean utilizations differ by more than `points` percentage points.

    The managed rule has the first condition only. Two GPUs at a steady 92 % and 86 % have little in common by it, as
    they lie in different bins.
    """

    looks_at = "the distance between the GPUs' use"
    remedy = "give all processes equally much to do; look at the slow host"
    source = "AWS Profiler's LoadBalancing; Jensen-Shannon divergence"
    managed = Managed(reads="system metrics")
    threshold: float = 0.5
    points: float = 10.0

    def judge(self, run: RunData) -> Finding:
        if len(run.system("GPUUtilization")) < 2:
            return self.without_gpu(run) if len(run.job.gpus) > 1 else not_applicable("needs two GPUs")
        gpus = self.in_window(run, "GPUUtilization")
        if len(gpus) < 2:
            return self.too_short()
        histograms = {name: np.histogram(values, 10, (0, 100))[0] / len(values) for name, values in gpus.items()}
        distances = {
            (a, b): jensen_shannon(histograms[a], histograms[b]) for a, b in itertools.combinations(histograms, 2)
        }
        datapoints = sum(map(len, gpus.values()))
        means = {name: float(values.mean()) for name, values in gpus.items()}
        far = sorted(
            (
                (distance, (a, b))
                for (a, b), distance in distances.items()
                if distance > self.threshold and abs(means[a] - means[b]) > self.points
            ),
            reverse=True,
        )
        if not far:
            return healthy(
                f"the GPUs' mean utilizations lie between {min(means.values()):.0f} and {max(means.values()):.0f} %",
                datapoints,
            )
        evidence = [Evidence(step=None, name=f"distance of {a} and {b}", value=distance) for distance, (a, b) in far]
        a, b = far[0][1]
        return issue(
            f"the utilizations of {a} and {b} are {short(far[0][0])} apart, on average {means[a]:.0f} and "
            f"{means[b]:.0f} %",
            "see whether one GPU decodes more or larger images, is shared with another job, or is throttled",
            evidence,
            datapoints,
        )


def within(series: Series, start: float, end: float) -> Floats:
    """The values of the seconds in [start, end]."""
    at = series.steps
    return series.values[(at >= start) & (at <= end)]


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Square root of the Jensen-Shannon divergence, base 2, of two histograms that sum to 1. In 0..1."""
    mean = (p + q) / 2

    def divergence(a: Floats) -> float:
        used = a > 0
        return float((a[used] * np.log2(a[used] / mean[used])).sum())

    return float(np.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2)))
