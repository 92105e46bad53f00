"""Sections about performance: where a step's time goes, and how busy the machine was."""

from __future__ import annotations

import re
from typing import Any

from image_classifier.contract.outputs import TRACE
from image_classifier.report.advice import PHASE_NAMES, REMEDIES
from image_classifier.report.charts import Axis, Curve, axes, frame, hover, legend, line, stacked_bar, svg
from image_classifier.report.formats import duration, number, percent, words
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, figure, note, table
from image_classifier.report.scales import fit
from image_classifier.report.several import STYLES, hosts, processes
from image_classifier.report.sources import as_float

WIDTH = 960.0
MIN_GAIN = 0.05  # a speed-up below this is not worth a person's time
SERIES_STYLES = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
MODE_NAMES = {"train": "Training", "eval": "Validation", "test": "Test", "other": "Loading, checkpoints, model"}
MODE_STYLES = {"train": "c0", "eval": "c1", "test": "c2", "other": "c5"}
UNITS = {"Bytes": (1e6, "MB"), "BytesPerSecond": (1e6, "MB/s"), "Watts": (1.0, "W")}


def system(facts: Facts) -> Markup:
    """Utilization over time above what the job did meanwhile."""
    found = facts["system"]
    if found is None:
        return note("No system metrics were sampled.")
    width, height = WIDTH, 300.0
    (left, right), (bottom, top) = frame(width, height)
    bottom -= 26
    x = Axis(
        scale=fit([], left, right, low=0.0, high=found["length_s"]),
        title="time since the start",
        form=_clock,
        ticks=_time_ticks(found["length_s"]),
    )
    y = Axis(scale=fit([], bottom, top, low=0.0, high=100.0), title="utilization (%)", form=number)
    series = [
        Curve(name=name, points=[(s, as_float(v)) for s, v in zip(found["seconds"], values, strict=True)], style=style)
        for (name, values), style in zip(found["series"].items(), SERIES_STYLES, strict=False)
    ]
    strip = [_span(span, x, bottom) for span in found["spans"]]
    moved = Axis(scale=fit([], bottom + 24, bottom + 24, low=0.0, high=1.0), title="", ticks=())
    below = axes(x, moved)
    drawing = svg(
        width, height, "Utilization of the machine over time", axes(Axis(scale=x.scale, title="", ticks=()), y),
        *(line(each, x.scale, y.scale) for each in series), *strip, below, hover(series, x, y), class_="chart wide",
    )  # fmt: skip
    modes = [mode for mode in MODE_NAMES if any(span["mode"] == mode for span in found["spans"])]
    caption = "The strip shows what the job was doing; its numbers are epochs." if modes else "No steps were recorded."
    return joined(
        legend((each.style, each.name) for each in series),
        figure(tag("div", drawing, class_="scroll", tabindex=0), caption),
        legend((MODE_STYLES[mode], MODE_NAMES[mode]) for mode in modes),
        hosts(facts),
        details(f"Numbers of every metric, {_counted(found)}", _system_table(found["summary"])),
    )


def _counted(found: dict[str, Any]) -> str:
    """The time that the table is about; a report of an earlier version does not say."""
    counted = found.get("counted_s")
    if counted is None:
        return "over the whole job"
    return f"from {_clock(counted[0])} to {_clock(counted[1])}: the time that the rules judge"


def _time_ticks(length_s: float) -> list[float]:
    """Places on a clock, about six of them: a person reads 2:30 more easily than 150."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
    step = next((each for each in steps if length_s / each <= 8), 86_400 * round(length_s / 86_400 / 6 + 1))
    return [float(step * index) for index in range(int(length_s / step) + 1)]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{rest} s"
        if minutes == 0
        else f"{minutes}:{rest:02d}"
        if minutes < 60
        else f"{minutes // 60}:{minutes % 60:02d} h"
    )


def _span(span: dict[str, Any], x: Axis, bottom: float) -> Markup:
    left, right = x.scale(span["start_s"]), x.scale(span["end_s"])
    name = f"{MODE_NAMES[span['mode']]}, epoch {span['epoch']}\n{duration(span['end_s'] - span['start_s'])}"
    label = None
    if span["mode"] == "train" and right - left > 18:
        label = tag("text", span["epoch"], class_="inbar", x=(left + right) / 2, y=bottom + 19, text_anchor="middle")
    box = tag(
        "rect", class_=MODE_STYLES[span["mode"]], x=left, y=bottom + 6, width=max(right - left - 0.5, 0.5), height=17
    )
    return tag("g", tag("title", name), box, label)


def _system_table(rows: list[dict[str, Any]]) -> Markup:
    shown = []
    for row in rows:
        match = re.search(r"(BytesPerSecond|Bytes|Watts)$", row["dimension"])
        factor, unit = UNITS[match.group(1)] if match else (1.0, "%")
        values = [number(row[key] / factor) for key in ("mean", "median", "p95", "max")]
        name = re.sub(r"(BytesPerSecond|Bytes|Watts|Percentage|Percent)$", "", row["dimension"])
        shown.append((name if "/" in name else words(name), row["type"], unit, *values))
    return table(("metric", "of", "unit", "mean", "median", "95th percentile", "largest"), shown, numeric=range(3, 7))


def time(facts: Facts) -> Markup:
    """Where the job's and a step's time goes, and what removing the bottleneck would bring."""
    found = facts["time"]
    if found is None:
        return note("No step was timed.")
    spent = max(sum(found["job"].values()), 1e-9)
    job = [
        (MODE_STYLES[m], MODE_NAMES[m], s / spent, f"{MODE_NAMES[m]}\n{duration(s)}, {percent(s / spent)}")
        for m, s in found["job"].items()
    ]
    parts: list[Markup | None] = [
        tag("p", _bottleneck(found)),
        tag("h3", "The whole job"),
        stacked_bar("Where the job's time went", job),
    ]
    if found["phases"]:
        phases = [
            (
                STYLES[row["phase"]],
                PHASE_NAMES[row["phase"]],
                row["share"],
                f"{PHASE_NAMES[row['phase']]}\n{duration(row['mean_s'])} of a step, {percent(row['share'])}",
            )
            for row in found["phases"]
        ]
        parts += [
            tag("h3", "A training step" if facts["processes"] is None else "A training step of process 0"),
            stacked_bar("Where a training step's time goes", phases),
            _phase_table(found),
        ]
    parts.append(processes(facts))
    parts.append(
        figure(
            _durations(found),
            f"The first step took {duration(found['first_step_s'])}; it also starts worker processes and is left out.",
        )
    )
    if facts["trace"]:
        parts.append(note(f"A few steps are traced in detail in {TRACE}: open it in https://ui.perfetto.dev."))
    return joined(parts)


def _bottleneck(found: dict[str, Any]) -> Markup:
    what = found["bottleneck"]
    speed = f"{number(found['images_per_second'])} images/s"
    if what is None:
        return joined(f"Training ran at {speed}. The phases of a step were not recorded.")
    then = (
        f"at up to {number(what['images_per_second'])} images/s instead of {speed}, {percent(what['gain'], 0)} faster"
    )
    name, share = PHASE_NAMES[what["avoidable"]], percent(what["avoidable_share"], 0)
    if what["phase"] != "compute":
        first = f"{name} is the bottleneck: {share} of a step. "
        return joined(tag("b", first), f"Without it training would run {then}. {REMEDIES[what['avoidable']]}.")
    first = f"The network's own arithmetic is the limit: {percent(what['share'], 0)} of a step. "
    if what["gain"] < MIN_GAIN:
        return joined(tag("b", first), f"At {speed}, only a faster device, bf16 or a smaller image_size would help.")
    rest = f"The largest part that could go is “{name.lower()}” with {share}: without it training would run {then}. "
    return joined(tag("b", first), rest, f"{REMEDIES[what['avoidable']]}.")


def _phase_table(found: dict[str, Any]) -> Markup:
    keys = ("mean_s", "median_s", "p95_s", "max_s")
    rows = [
        (PHASE_NAMES[row["phase"]], percent(row["share"]), *(duration(row[key]) for key in keys))
        for row in found["phases"]
    ]
    rows.append((tag("b", "Whole step"), "100.0 %", *(duration(found["step"][key]) for key in keys)))
    return details(
        "Numbers of every phase",
        table(("phase", "share", "mean", "median", "95th percentile", "longest"), rows, numeric=range(1, 6)),
    )


def _durations(found: dict[str, Any]) -> Markup:
    curve, width, height = found["steps"], WIDTH, 220.0
    (left, right), (bottom, top) = frame(width, height)
    x = Axis(
        scale=fit([], left, right, low=curve["step"][0], high=max(curve["step"][-1], curve["step"][0] + 1)),
        title="training step",
        form=number,
    )
    y = Axis(
        scale=fit([*curve["max_s"], *curve["median_s"]], bottom, top, zero=True),
        title="duration of a step",
        form=duration,
    )
    longest = Curve(name="longest", points=list(zip(curve["step"], curve["max_s"], strict=True)), style="c5 faint")
    usual = Curve(name="median", points=list(zip(curve["step"], curve["median_s"], strict=True)), style="c0")
    shown = [usual] if curve["median_s"] == curve["max_s"] else [longest, usual]
    drawing = svg(
        width,
        height,
        "Duration of training steps",
        axes(x, y),
        *(line(each, x.scale, y.scale) for each in shown),
        hover(shown, x, y),
        class_="chart wide",
    )
    return joined(
        legend((each.style, each.name) for each in shown) if len(shown) > 1 else None,
        tag("div", drawing, class_="scroll", tabindex=0),
    )
