"""What is computed from a run's series: one function each for a number that rules judge and the report shows.

A number on the page and the one in a rule's evidence are the same because both are made here. Where phases or time of
steps are meant, training steps are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from image_classifier.debugging.rundata import Floats, RunData, Series
from image_classifier.debugging.schema import GPU_PHASES, MODES, PHASES, Mode

REST = "rest_s"  # what is left of a step: Python between the phases
WARMUP_S, MIN_S, FIRST_EPOCH_S = 10.0, 60.0, 300.0  # see counted_time
LAUNCH_STEPS = 20  # see launch_share
FIRST_UPDATE = 1  # the step before has the first, smallest learning rate of the warm-up


def seconds_by_mode(run: RunData) -> dict[Mode, float]:
    """Seconds of all steps of each mode that has any."""
    found = {mode: float(run.step(mode, "seconds").values.sum()) for mode in MODES}
    return {mode: seconds for mode, seconds in found.items() if seconds}


def usual(run: RunData, name: str) -> Series:
    """A value of the steps but for the first, which also starts worker processes and compiles kernels, and for those
    that fill a cache of decoded images; with them when there is no other."""
    series, first = run.step("train", name), run.times("train").steps[:2]
    filled = after_filling(run)
    if len(filled):
        return series.where(np.isin(series.steps, filled))
    if len(first) < 2 or not np.array_equal(series.steps[:1], first[:1]):
        return series
    return Series(series.steps[1:], series.values[1:])


def after_filling(run: RunData) -> Floats:
    """The training steps of a job that keeps decoded images in which they were all there: those of epochs in which no
    attempt of the job began, nor went on with the rest of one. Empty for a job that keeps none."""
    times, epochs = run.times("train"), run.epochs("train")
    if not run.job.cached or not 0 < len(times) == len(epochs):
        return np.empty(0)
    begun = np.searchsorted(times.values, [0.0, *run.job.restarts])
    filling: set[float] = set()
    for first in begun[begun < len(times)]:
        epoch = float(epochs.values[first])
        at_its_start = first == 0 or epochs.values[first - 1] < epoch
        filling |= {epoch} if at_its_start else {epoch, epoch + 1}
    return times.steps[~np.isin(epochs.values, list(filling))]


def median_step_s(run: RunData) -> float:
    """The median duration of the steps within epochs; NaN without a step. An epoch's first step is not usual either:
    loading starts anew."""
    series = within_epochs(run)
    values = series.values if len(series) else usual(run, "seconds").values
    return float(np.median(values)) if len(values) else math.nan


def within_epochs(run: RunData) -> Series:
    """Seconds of the steps but for each epoch's first."""
    series, epochs = run.step("train", "seconds"), run.epochs("train")
    if len(series) != len(epochs):
        epochs = epochs.where(np.isin(epochs.steps, series.steps))
    return series.where(np.diff(epochs.values, prepend=-1) == 0)


def phase_seconds(run: RunData) -> dict[str, Series]:
    """Phase -> its seconds in the usual steps that have it, in the order of PHASES; last, where there is one, REST."""
    found = {phase: series for phase in PHASES if len(series := usual(run, phase))}
    if not found:
        return {}
    whole = usual(run, "seconds")
    rest = whole.values - sum(_at(series, whole.steps) for series in found.values())
    return {**found, REST: Series(whole.steps, np.maximum(rest, 0.0))}


def phase_shares(run: RunData) -> dict[str, float]:
    """The share of each phase in the time of the usual steps, in the order of PHASES, and of REST; they sum to 1.

    What the CPU's clock measured is its share of the step. What a GPU's events measured may overlap it: if all of it is
    more than the time that the step has left, it is shown in proportion.
    """
    seconds = {phase: float(series.values.sum()) for phase in PHASES if len(series := usual(run, phase))}
    if not seconds:
        return {}
    total = max(float(usual(run, "seconds").values.sum()), 1e-9)
    elsewhere = sum(spent for phase, spent in seconds.items() if phase in GPU_PHASES)
    on_cpu = sum(seconds.values()) - elsewhere
    if on_cpu + elsewhere <= total:
        return {phase: spent / total for phase, spent in seconds.items()} | {REST: (total - on_cpu - elsewhere) / total}
    cpu = min(1.0, total / max(on_cpu, 1e-9))  # more than the step only in a damaged file
    other = max(total - on_cpu, 0.0) / max(elsewhere, 1e-9)
    return {phase: spent * (other if phase in GPU_PHASES else cpu) / total for phase, spent in seconds.items()}


def data_wait_share(run: RunData) -> float:
    """The share of the usual steps' time that went into waiting for data; 0 when it was not measured."""
    return phase_shares(run).get("data_wait_s", 0.0)


def launch_share(run: RunData) -> float:
    """What launching a step's kernels takes, over the usual step; 0 without a GPU, or where it was not measured.

    The least of many steps tells it: where a GPU is behind, the thread is busy waiting for room to launch more, but not
    in an epoch's first steps, when the GPU has nothing else to do. Near 1, the GPU waits for the launches.
    """
    thread, whole = usual(run, "thread_s"), median_step_s(run)
    if not run.job.gpus or len(thread) < LAUNCH_STEPS or not whole > 0:
        return 0.0
    return float(thread.values.min()) / whole


def images_per_second(run: RunData) -> float:
    """Training speed over the usual steps."""
    images, seconds = usual(run, "images"), usual(run, "seconds")
    return float(images.values.sum()) / max(float(seconds.values.sum()), 1e-9)


def planned_steps(run: RunData) -> int:
    """Training steps of the whole job; those that were made, when nobody said how many there will be."""
    planned = int(run.job.config.get("epochs", 0) or 0) * run.job.steps_per_epoch
    return max(planned, len(run.step("train", "loss")))


def guessing_loss(run: RunData) -> float:
    """The cross entropy of naming the classes with their own frequencies, which knows nothing of an image: the entropy
    of the training labels, or, before an epoch is over, ln(classes). NaN without classes."""
    labels = np.array([each.labels for each in run.classes if each.mode == "train"], np.float64)
    counts = labels.sum(axis=0) if labels.size else np.ones(len(run.job.classes))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum()) if len(shares) > 1 else math.nan


HALF_OF_DIFFERENCES = 0.954  # the median distance of two draws from a normal distribution of deviation 1
HALF_OF_SECOND_DIFFERENCES = 1.652  # the median of second differences of such draws: 0.6745 times the root of 6
LEARNED, MASTERED = 0.97, 0.2  # of the guessing loss
TENTH = 10


def ends_of_losses(run: RunData) -> tuple[Floats, Floats]:
    """The training losses against true labels of the first and of the last tenth of the steps so far, three or more."""
    losses = run.step("train", "clean_loss").values
    size = max(3, len(losses) // TENTH)
    return (losses[:size], losses[-size:]) if len(losses) >= 2 * size else (np.empty(0), np.empty(0))


def has_learned(run: RunData) -> bool:
    """Whether the training loss has plainly gone down: the last tenth of it lies below the first by a tenth of that and
    by more than two standard errors, and, of classes, below 0.97 of what guessing has."""
    first, last = ends_of_losses(run)
    if not len(last) or not np.isfinite([*first, *last]).all():
        return False
    error = math.hypot(first.std() / math.sqrt(len(first)), last.std() / math.sqrt(len(last)))
    fall, guessing = first.mean() - last.mean(), guessing_loss(run)
    plain = fall > max(0.1 * abs(first.mean()), 2 * error)
    return bool(plain and not last.mean() >= LEARNED * guessing)


def has_mastered(run: RunData) -> bool:
    """Whether the network answers nearly all it is trained on rightly: a loss below a fifth of what guessing has, or,
    without classes, below a tenth of what it was at first."""
    first, last = ends_of_losses(run)
    if not len(last):
        return False
    guessing = guessing_loss(run)
    least = MASTERED * guessing if math.isfinite(guessing) else first.mean() / TENTH
    return bool(last.mean() < least)


def still_falls(run: RunData) -> bool:
    """Whether the training loss of the last fifth of the steps is plainly below that of the fifth before: by a tenth of
    it, and two standard errors."""
    losses = run.step("train", "clean_loss").values
    part = len(losses) // 5
    if part < 3 or not np.isfinite(losses).all():
        return False
    before, latest = losses[-2 * part : -part], losses[-part:]
    error = math.hypot(before.std(), latest.std()) / math.sqrt(part)
    return bool(before.mean() - latest.mean() > max(0.1 * abs(before.mean()), 2 * error))


def since_not_finite(run: RunData) -> int | None:
    """The first training step whose loss is not finite."""
    losses = run.step("train", "loss")
    bad = np.flatnonzero(~np.isfinite(losses.values))
    return int(losses.steps[bad[0]]) if len(bad) else None


def of_epochs(run: RunData, mode: Mode, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Epochs, and the mean of a step value over each one's images."""
    series, images, epochs = run.step(mode, name), run.step(mode, "images"), run.epochs(mode)
    if not len(series) == len(images) == len(epochs) or len(series) == 0:
        return np.empty(0, np.int64), np.empty(0)
    numbers, place = np.unique(epochs.values.astype(np.int64), return_inverse=True)
    weights = np.bincount(place, images.values)
    return numbers, np.bincount(place, series.values * images.values) / np.maximum(weights, 1)


def both_losses(run: RunData) -> tuple[Floats, Floats, Floats]:
    """Epochs that have been validated, and their mean training and validation losses against true labels."""
    train_epochs, train = of_epochs(run, "train", "clean_loss")
    valid_epochs, valid = of_epochs(run, "eval", "clean_loss")
    common, left, right = np.intersect1d(train_epochs, valid_epochs, return_indices=True)
    return common.astype(np.float64), train[left], valid[right]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Steps of one mode and epoch that followed each other; Unix seconds."""

    mode: Mode
    epoch: int
    start: float
    end: float


def spans(run: RunData) -> list[Span]:
    """What the job did when, in the order of time."""
    parts = []
    for number, mode in enumerate(MODES):
        times, epochs = run.times(mode), run.epochs(mode)
        epochs = epochs if len(epochs) == len(times) else epochs.where(np.isin(epochs.steps, times.steps))
        begins = times.values - run.step(mode, "seconds").values
        parts.append(np.stack([np.full(len(times), float(number)), epochs.values, begins, times.values]))
    table = np.concatenate(parts, axis=1)
    table = table[:, np.argsort(table[3], kind="stable")]
    if not table.size:
        return []
    first = np.flatnonzero((np.diff(table[:2], prepend=-1) != 0).any(axis=0))
    last = np.append(first[1:], table.shape[1]) - 1
    return [
        Span(mode=MODES[int(table[0, i])], epoch=int(table[1, i]), start=float(table[2, i]), end=float(table[3, j]))
        for i, j in zip(first, last, strict=True)
    ]


def counted_time(
    run: RunData, *, warmup_s: float = WARMUP_S, min_s: float = MIN_S, first_epoch_s: float = FIRST_EPOCH_S
) -> tuple[float, float] | None:
    """First and last Unix second of the time in which the machine's use says something of the training.

    In the first epoch files are read for the first time, kernels are chosen and memory is asked for, up to the end of
    its validation. As long as there is no other, it counts from `warmup_s` seconds after its first step on.

    Args:
        warmup_s: seconds of the first epoch that never count.
        min_s: seconds of steps below which nothing is said.
        first_epoch_s: the same, while there is only the first epoch.

    Returns:
        None when there are too few.
    """
    train, epochs = run.times("train").values, run.epochs("train").values
    if not 0 < len(train) == len(epochs):
        return None
    later = train[epochs > epochs.min()]
    start = float(later.min()) if len(later) else float(train.min()) + warmup_s
    end = float(np.concatenate([train, run.times("eval").values]).max())
    return (start, end) if end - start >= (min_s if len(later) else first_epoch_s) else None


def usage(run: RunData, dimension: str, start: float = -math.inf, end: float = math.inf) -> tuple[Floats, int]:
    """A system metric at each moment in [start, end]: the mean of a host's cores, GPUs or whatever has it.

    Returns:
        (moments,) float64, of all hosts one after the other, and how many samples that are.
    """
    tables = [joint(list(run.system(dimension, node).values()), start, end)[1] for node in run.nodes()]
    means = [table.mean(axis=0) for table in tables if table.size]
    return np.concatenate(means) if means else np.empty(0), sum(table.size for table in tables)


def spread(values: Floats) -> dict[str, float]:
    """mean, min, max and the percentiles p50, p95, p99 of one value or more."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    ends = {"min": float(values.min()), "max": float(values.max())}
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99), **ends}


def joint(all_series: list[Series], start: float, end: float) -> tuple[Floats, Floats]:
    """Values at the moments that all series have.

    Returns:
        (moments,) float64 Unix seconds, and (series, moments) float64.
    """
    if not all_series:
        return np.empty(0), np.empty((0, 0))
    distinct = [np.unique(series.steps, return_index=True) for series in all_series]
    moments: Floats = reduce(np.intersect1d, (at for at, _ in distinct))
    moments = moments[(moments >= start) & (moments <= end)]
    places = [first[np.searchsorted(at, moments)] for at, first in distinct]
    return moments, np.array([series.values[place] for series, place in zip(all_series, places, strict=True)])


def aligned(layers: Mapping[str, Series], start_step: float = 0, end_step: float = math.inf) -> tuple[Floats, Floats]:
    """The steps in [start_step, end_step) at which every layer was recorded.

    Returns:
        (steps,) and (layers, steps) float64, with infinity in place of NaN.
    """
    if not layers:
        return np.empty(0), np.empty((0, 0))
    common: Floats = reduce(np.intersect1d, (series.steps for series in layers.values()))
    common = common[(common >= start_step) & (common < end_step)]
    table = np.array([series.values[np.isin(series.steps, common)] for series in layers.values()])
    return common, np.where(np.isnan(table), math.inf, table)


@dataclass(frozen=True, kw_only=True)
class Updates:
    """How far each step moved each layer, relative to the size of its weights.

    Args:
        names: of the L weights.
        steps: (S,) float64: the recorded steps.
        ratios: (L, S) float64.
        medians: (L,) float64, over the steps; empty without a step.
    """

    names: tuple[str, ...]
    steps: Floats
    ratios: Floats
    medians: Floats


def updates(run: RunData, start_step: float = FIRST_UPDATE) -> Updates:
    """The updates from `start_step` on, at the steps at which every layer was recorded."""
    layers = dict(run.tensors("weights", "update_ratio"))
    steps, ratios = aligned(layers, start_step)
    medians = np.median(ratios, axis=1) if ratios.size else np.empty(0)
    return Updates(names=tuple(layers), steps=steps, ratios=ratios, medians=medians)


def _at(series: Series, steps: Floats) -> Floats:
    """The series' values at these steps, 0 where it has none."""
    if np.array_equal(series.steps, steps):
        return series.values
    known = dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
    return np.array([known.get(step, 0.0) for step in steps.tolist()])
