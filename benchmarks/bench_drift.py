"""The drift watch: how often it cries wolf, and how soon it tells of what changed.

    PYTHONPATH=code:. python benchmarks/bench_drift.py [--endpoints 4000]

Answers are drawn, not computed: the statistic asked is the rule's, and a rule is tried on thousands of endpoints. Each
has a reference of its own, of so many validation photographs, and sees eight statistics of which none, or one, has
changed. Writes benchmarks/results/drift.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from benchmarks.record import write_result
from numpy.typing import NDArray

from image_classifier.serving.drift_watch import MIN_ANSWERS
from image_classifier.vision.confidence import exact_interval
from image_classifier.vision.drift import CHANCE, LARGE_SHIFT, STATISTICS, Histogram

PHOTOS = (20, 50, 100, 400)
CLASSES = 5
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
BRIGHTNESS = (115.0, 35.0)  # mean and deviation over photographs, of a channel's mean, as those of flowers


def brightness(moved: float = 0.0, scaled: float = 1.0) -> Draw:
    mean, deviation = BRIGHTNESS
    return lambda rng, count: np.clip((rng.normal(mean, deviation, count) + moved) * scaled, 0, 255)


def classes(share: float = 0.0) -> Draw:
    """`share` of the answers are the first class, whatever they would have been."""
    return lambda rng, count: np.where(rng.random(count) < share, 0, rng.integers(0, CLASSES, count)).astype(np.float64)


def confidence(a: float, b: float) -> Draw:
    return lambda rng, count: rng.beta(a, b, count)


USUAL = {"a mean": brightness(), "top-1 of 5 classes": classes(), "confidence": confidence(6, 1.5)}
CHANGED: Mapping[str, tuple[str, Draw]] = {
    "half as bright": ("a mean", brightness(scaled=0.5)),
    "25 levels darker": ("a mean", brightness(moved=-25)),
    "10 levels darker": ("a mean", brightness(moved=-10)),
    "one class only": ("top-1 of 5 classes", classes(1.0)),
    "40 % one class, else as before": ("top-1 of 5 classes", classes(0.4)),
    "much less sure": ("confidence", confidence(3, 3)),
    "a little less sure": ("confidence", confidence(5, 1.8)),
}


def departures(endpoints: int, photos: int, answers: int, usual: Draw, now: Draw) -> int:
    """At how many endpoints one look at so many answers finds a departure."""
    rng = np.random.default_rng(photos)
    found = 0
    for _ in range(endpoints):
        known = Histogram.of(usual(rng, photos))
        found += known.stability_index(now(rng, answers)) > known.limit(answers)
    return found


def share(found: int, endpoints: int) -> str:
    low, high = (100 * end for end in exact_interval(found, endpoints))
    return f"{100 * found / endpoints:.1f} ({low:.1f} .. {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=4000)
    endpoints = parser.parse_args().endpoints
    healthy = [
        f"| {name} | " + " | ".join(str(departures(endpoints, n, MIN_ANSWERS, draw, draw)) for n in PHOTOS) + " |"
        for name, draw in USUAL.items()
    ]
    changed = [
        f"| {name} | {answers} | "
        + " | ".join(share(departures(endpoints // 10, n, answers, USUAL[usual], now), endpoints // 10) for n in PHOTOS)
        + " |"
        for name, (usual, now) in CHANGED.items()
        for answers in (MIN_ANSWERS, 10 * MIN_ANSWERS)
    ]
    photos = " | ".join(f"{n} photos" for n in PHOTOS)
    rule = "|---" * len(PHOTOS)
    write_result(
        "drift.md",
        [
            "# The drift watch",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_drift.py --endpoints {endpoints}`",
            "",
            f"A statistic departs when its population stability index is above {LARGE_SHIFT} and above what chance "
            f"does but once in {1 / CHANCE:,.0f} looks. Drawn numbers; an endpoint has {len(STATISTICS)} statistics.",
            "",
            f"False alarms in {endpoints} looks at {MIN_ANSWERS} answers each that are drawn as the validation "
            "photographs were, each look with a reference of its own:",
            "",
            f"| statistic | {photos} |",
            f"|---{rule}|",
            *healthy,
            "",
            f"What has changed is found at the first look, % of {endpoints // 10} endpoints (95 % interval):",
            "",
            f"| what changed | answers | {photos} |",
            f"|---|---{rule}|",
            *changed,
        ],
    )


if __name__ == "__main__":
    main()
