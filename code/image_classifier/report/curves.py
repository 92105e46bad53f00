"""Facts about learning and time: the loss with its noise, where the job's and a step's time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from image_classifier.debugging import measures
from image_classifier.debugging.rundata import Floats, RunData, Series

MAX_BINS = 120  # points of a curve: more cannot be told apart on a screen
MAX_NOISE_BINS = 60
MAX_SINGLE_STEPS = 40  # shown one by one
MIN_STEPS_A_BIN = 8  # fewer have no 10th and 90th percentile worth drawing
COMPUTE_PHASES = ("forward_s", "backward_s", "optimizer_s")
AVOIDABLE_PHASES = ("data_wait_s", "sync_s", "h2d_s", "hook_s", measures.REST)
MAX_AVOIDABLE = 0.99  # a step that does nothing but wait would have no end of gain


def batch_losses(run: RunData) -> dict[str, list[float]] | None:
    """The training loss batch by batch, in bins: x in epochs, mean, 10th and 90th percentile of each bin.

    The loss is the one against the true labels, without smoothing, so that it can be laid over the validation's.
    """
    losses, steps_per_epoch = run.step("train", "clean_loss"), _steps_per_epoch(run)
    count = len(losses)
    if not count or steps_per_epoch < 1:
        return None
    bins = min(MAX_NOISE_BINS, count // MIN_STEPS_A_BIN) if count > MAX_SINGLE_STEPS else count
    curve: dict[str, list[float]] = {"epoch": [], "mean": [], "p10": [], "p90": []}
    for steps, values in zip(np.array_split(losses.steps, bins), np.array_split(losses.values, bins), strict=True):
        curve["epoch"].append(float(np.mean(steps + 1)) / steps_per_epoch)
        curve["mean"].append(float(values.mean()))
        curve["p10"].append(float(np.percentile(values, 10)))
        curve["p90"].append(float(np.percentile(values, 90)))
    return curve


def _steps_per_epoch(run: RunData) -> int:
    if run.job.steps_per_epoch:
        return run.job.steps_per_epoch
    _, counts = np.unique(run.epochs("train").values, return_counts=True)
    return int(counts.max(initial=0))


def step_time(run: RunData, total_seconds: float | None) -> dict[str, Any] | None:
    """Where the job's and a training step's time goes, the bottleneck, and what removing it would bring.

    Args:
        total_seconds: of the whole job, when it is known.
    """
    whole = run.step("train", "seconds")
    if not len(whole):
        return None
    by_mode = measures.seconds_by_mode(run)
    other = (total_seconds or 0.0) - sum(by_mode.values())
    usual, speed = measures.usual(run, "seconds"), measures.images_per_second(run)
    shares, seconds = measures.phase_shares(run), measures.phase_seconds(run)
    phases = [{"phase": phase, "share": share, **_spread(seconds[phase].values)} for phase, share in shares.items()]
    return {
        "job": by_mode | ({"other": other} if other > 0 else {}),
        "first_step_s": float(whole.values[0]),
        "step": _spread(usual.values) | {"median_s": measures.median_step_s(run)},
        "images_per_second": speed,
        "phases": phases,
        "bottleneck": _bottleneck(shares, speed) if shares else None,
        "launch_share": measures.launch_share(run),
        "steps": _duration_curve(usual),
    }


def _spread(values: Floats) -> dict[str, float]:
    found = measures.spread(values)
    return {"mean_s": found["mean"], "median_s": found["p50"], "p95_s": found["p95"], "max_s": found["max"]}


def _bottleneck(shares: Mapping[str, float], speed: float) -> dict[str, Any]:
    """The phase that limits a step, and the largest part that could go without changing what is computed.

    Returns:
        `phase` and its `share`: `compute` when the network's arithmetic takes more than any avoidable part; `avoidable`
        with `avoidable_share`; `gain`: how much faster training would be without it (0.25: a quarter), and the
        `images_per_second` then, both upper bounds.
    """
    removable = {phase: shares.get(phase, 0.0) for phase in AVOIDABLE_PHASES}
    avoidable = max(removable, key=lambda each: removable[each])
    share = min(removable[avoidable], MAX_AVOIDABLE)
    gain = 1 / (1 - share) - 1
    compute = sum(shares.get(each, 0.0) for each in COMPUTE_PHASES)
    phase, limit = ("compute", compute) if compute >= share else (avoidable, share)
    return {
        "phase": phase,
        "share": limit,
        "avoidable": avoidable,
        "avoidable_share": share,
        "gain": gain,
        "images_per_second": speed * (1 + gain),
    }


def _duration_curve(seconds: Series) -> dict[str, list[float]]:
    """Step durations in bins: step, median and longest."""
    curve: dict[str, list[float]] = {"step": [], "median_s": [], "max_s": []}
    size = math.ceil(len(seconds) / MAX_BINS)  # the same for every bin: the longest of more steps is longer
    for first in range(0, len(seconds), size):
        values = seconds.values[first : first + size]
        curve["step"].append(float(seconds.steps[first]))
        curve["median_s"].append(float(np.median(values)))
        curve["max_s"].append(float(values.max()))
    return curve
