"""The drawings of a search, for its page and for its picture: the trials at a glance, and how the search went on."""

from __future__ import annotations

from image_classifier.report.charts import Axis, Curve, frame, line_chart
from image_classifier.report.formats import number, share_tick
from image_classifier.report.html import Markup
from image_classifier.report.page import Facts
from image_classifier.report.parallel import TrialLine, parallel_coordinates
from image_classifier.report.scales import fit
from image_classifier.report.sources import as_float

WIDE, WIDE_HEIGHT = 960.0, 360.0
HALF, HALF_HEIGHT = 480.0, 280.0

AT_A_GLANCE = (
    "One line a trial, pruned ones with the best value they reached. The stronger the colour, the better; "
    "orange is the best trial."
)
BY_TRIAL = "The longer the line stays flat, the less another trial is likely to bring."
BY_EPOCH = "Each line is a trial, the best one in orange; lines that end early were pruned."


def at_a_glance(facts: Facts) -> Markup | None:
    """All trials with a value as parallel coordinates; None when fewer than two have one."""
    trials = [
        TrialLine(each["trial"], each["values"], each["value"]) for each in facts["trials"] if each["value"] is not None
    ]
    if len(trials) < 2 or not facts["names"]:
        return None
    return parallel_coordinates(
        trials,
        facts["names"],
        facts["objective"],
        maximize=facts["maximize"],
        best=_best(facts),
        width=WIDE,
        height=WIDE_HEIGHT,
    )


def by_trial(facts: Facts, *, named: bool) -> Markup | None:
    """The objective in the order of the trials, with a legend if `named`; None when no trial has a value."""
    valued = [each for each in facts["trials"] if each["value"] is not None]
    choose, running = max if facts["maximize"] else min, []
    best: float | None = None
    for each in valued:
        if each["status"] == "Completed":
            best = each["value"] if best is None else choose(best, each["value"])
            running.append((float(each["trial"]), best))
    points = [(float(each["trial"]), each["value"]) for each in valued]
    series = [
        Curve(name="best so far", points=running, style="c1"),
        Curve(name="trial", points=points, style="c0 lone", dots=True),
    ]
    return _chart(facts, "Objective by trial", series, "trial", named=named) if valued else None


def by_epoch(facts: Facts) -> Markup | None:
    """The objective after each epoch of each trial; None when no trial has left its epochs."""
    series = [
        Curve(
            name=f"trial {curve['trial']}",
            points=[(float(i), as_float(v)) for i, v in enumerate(curve["values"], 1)],
            style="c1" if curve["trial"] == _best(facts) else "c0 faint",
        )
        for curve in sorted(facts["curves"], key=lambda curve: curve["trial"] == _best(facts))
    ]
    return _chart(facts, "Objective by epoch", series, "epoch", named=False) if series else None


def _best(facts: Facts) -> int | None:
    return (facts["best"] or {}).get("trial")


def _chart(facts: Facts, label: str, series: list[Curve], title: str, *, named: bool) -> Markup:
    (left, right), (bottom, top) = frame(HALF, HALF_HEIGHT)
    places = [x for each in series for x, _ in each.points]
    scale = fit([], left, right, low=min(places), high=max(*places, min(places) + 1))
    x = Axis(scale=scale, title=title, form=number, ticks=[tick for tick in scale.ticks() if tick == int(tick)])
    y = Axis(
        scale=fit([y for each in series for _, y in each.points], bottom, top),
        title=facts["objective"],
        form=share_tick if "accuracy" in facts["objective"] else number,
    )
    return line_chart(label, series, x, y, width=HALF, height=HALF_HEIGHT, named=named)
