"""Sections about the job itself: rules, machine, time, layers, data, environment."""

from __future__ import annotations

import re
from typing import Any

from image_classifier.contract.config import TrainConfig
from image_classifier.debugging.report.advice import PHASE_NAMES, REMEDIES
from image_classifier.debugging.report.charts import Axis, Series, axes, frame, hover, legend, line, stacked_bar, svg
from image_classifier.debugging.report.formats import DASH, count, duration, number, percent
from image_classifier.debugging.report.grids import heatmap
from image_classifier.debugging.report.html import Markup, joined, tag
from image_classifier.debugging.report.page import Facts, details, figure, note, plain_list, table
from image_classifier.debugging.report.scales import fit
from image_classifier.debugging.report.sources import as_float

WIDTH = 960.0
SERIES_STYLES = ("c0", "c1", "c2", "c3", "c4", "c5", "c6")
PHASE_STYLES = {
    "data_wait_s": "c1",
    "h2d_s": "c4",
    "forward_s": "c6",
    "backward_s": "c0",
    "optimizer_s": "c2",
    "hook_s": "c3",
    "rest_s": "c5",
}
MODE_NAMES = {"train": "training", "eval": "validation", "test": "test", "other": "loading, checkpoints, model"}
MODE_STYLES = {"train": "c0", "eval": "c1", "test": "c2", "other": "c5"}
VERDICT_NAMES = {
    "IssuesFound": "fired",
    "NoIssuesFound": "no issue",
    "InsufficientData": "not enough data",
    "Error": "could not run",
}
UNITS = {"Bytes": (1e6, "MB"), "BytesPerSecond": (1e6, "MB/s"), "Watts": (1.0, "W")}


def rules(facts: Facts) -> Markup:
    """Every rule with its verdict; those that fired first, with advice and evidence."""
    if not facts["rules"]:
        return note("No rule judged this job: rules.json is missing.")
    told = [rule for rule in facts["rules"] if rule["verdict"] != "InsufficientData"]
    silent = [rule for rule in facts["rules"] if rule["verdict"] == "InsufficientData"]
    fired = sum(rule["verdict"] == "IssuesFound" for rule in told)
    first = f"{count(fired, 'rule')} of {len(told)} fired." if fired else f"None of {count(len(told), 'rule')} fired."
    quiet = (
        details(f"{count(len(silent), 'rule')} without enough data to judge", _rule_table(silent)) if silent else None
    )
    return joined(tag("p", first), _rule_table(told), quiet)


def _rule_table(rows: list[dict[str, Any]]) -> Markup:
    return table(
        ("rule", "verdict", "finding"),
        [(words(row["rule"]), _verdict(row), _finding(row)) for row in rows],
        class_="rules",
    )


def words(name: str) -> str:
    """`LowGPUUtilization` -> `Low GPU utilization`, `IOBottleneck` -> `IO bottleneck`."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]+$|[A-Z][a-z]+|\d+", name) or [name]
    return " ".join([parts[0], *(part if part.isupper() else part.lower() for part in parts[1:])])


def _verdict(rule: dict[str, Any]) -> Markup:
    if rule["verdict"] == "IssuesFound":
        return tag("span", f"● {rule['severity']}", class_=f"verdict {rule['severity']}")
    kind = {"NoIssuesFound": "good", "Error": "warning"}.get(rule["verdict"], "none")
    return tag(
        "span",
        f"{'✓' if kind == 'good' else '○'} {VERDICT_NAMES.get(rule['verdict'], rule['verdict'])}",
        class_=f"verdict {kind}",
    )


def _finding(rule: dict[str, Any]) -> Markup:
    advice = tag("p", rule["advice"], class_="advice") if rule["advice"] else None
    rows = [
        (DASH if e["step"] is None else e["step"], e["name"], number(as_float(e["value"]))) for e in rule["evidence"]
    ]
    evidence = table(("step", "what", "value"), rows, numeric=(0, 2), class_="narrow") if rows else None
    parameters = ", ".join(f"{name} = {value}" for name, value in rule["parameters"].items())
    looked = f"{count(rule['datapoints'], 'measurement')} looked at" + (
        f"; parameters: {parameters}" if parameters else ""
    )
    more = details("Evidence" if rows else "Parameters", joined(evidence, tag("p", looked, class_="soft")))
    return joined(tag("p", rule["summary"]), advice, more)


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
        Series(name=name, points=[(s, as_float(v)) for s, v in zip(found["seconds"], values, strict=True)], style=style)
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
        details("Numbers of every metric", _system_table(found["summary"])),
    )


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
    spent = sum(found["job"].values())
    job = [
        (MODE_STYLES[m], MODE_NAMES[m], s / spent, f"{MODE_NAMES[m]}\n{duration(s)}, {percent(s / spent)}")
        for m, s in found["job"].items()
    ]
    parts = [
        tag("p", _bottleneck(found)),
        tag("h3", "The whole job"),
        stacked_bar("Where the job's time went", job, width=WIDTH),
    ]
    if found["phases"]:
        phases = [
            (
                PHASE_STYLES[row["phase"]],
                PHASE_NAMES[row["phase"]].lower(),
                row["share"],
                f"{PHASE_NAMES[row['phase']]}\n{duration(row['mean_s'])} of a step, {percent(row['share'])}",
            )
            for row in found["phases"]
        ]
        parts += [
            tag("h3", "A training step"),
            stacked_bar("Where a training step's time goes", phases, width=WIDTH),
            _phase_table(found),
        ]
    parts.append(
        figure(
            _durations(found),
            f"The first step took {duration(found['first_step_s'])}; it also starts worker processes and is left out.",
        )
    )
    return joined(parts)


def _bottleneck(found: dict[str, Any]) -> Markup:
    what = found["bottleneck"]
    if what is None:
        return joined(
            f"Training ran at {number(found['images_per_second'])} images/s. The phases of a step were not recorded."
        )
    speed = f"{number(found['images_per_second'])} images/s"
    if what["phase"] == "compute":
        return joined(
            tag("b", "The network's own arithmetic is the limit: "),
            f"{percent(what['share'], 0)} of a step computes, at {speed}. Only a faster device, bf16, or a smaller image_size would change that.",
        )
    return joined(
        tag("b", f"{PHASE_NAMES[what['phase']]} is the bottleneck: {percent(what['share'], 0)} of a step. "),
        f"Without it training would run at up to {number(what['images_per_second'])} images/s instead of {speed}, {percent(what['gain'], 0)} faster. {REMEDIES[what['phase']]}.",
    )


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
    longest = Series(name="longest", points=list(zip(curve["step"], curve["max_s"], strict=True)), style="c5 faint")
    usual = Series(name="median", points=list(zip(curve["step"], curve["median_s"], strict=True)), style="c0")
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


def layers(facts: Facts) -> Markup:
    """Gradients, updates and silent units by layer and step."""
    found = facts["layers"]
    if found is None:
        return note("No gradients or weights were recorded.")
    texts = {
        "gradients": (
            "mean |gradient|",
            "Gradients",
            "A layer whose row fades to the pale end learns nothing; orange is exactly zero, red is not finite.",
        ),
        "updates": (
            "update / weight",
            "Size of the updates",
            "How far one step moves a layer, against the size of its weights. Around 1e-3 is usual; above 1e-1 a layer is torn about.",
        ),
        "dead": (
            "share of silent units",
            "Silent units",
            "Channels that are above zero for less than 1 % of images and positions; grey: none.",
        ),
    }
    parts = []
    for key, (what, heading, caption) in texts.items():
        if key in found:
            grid = found[key]
            values = [[None if value is None else as_float(value) for value in row] for row in grid["values"]]
            drawing = heatmap(
                f"{heading} by layer and step",
                grid["layers"],
                grid["steps"],
                values,
                what=what,
                width=WIDTH,
                zero="none" if key == "dead" else "zero",
            )
            parts += [tag("h3", heading), figure(drawing, caption)]
    rows = [
        (
            row["layer"],
            number(_maybe(row["norm_first"])),
            number(_maybe(row["norm_last"])),
            number(_maybe(row["gradient"])),
            number(_maybe(row["update_ratio"])),
        )
        for row in found["table"]
    ]
    header = ("layer", "weight norm, first", "last", "median of mean |gradient|", "median of update / weight")
    return joined(parts, details("Numbers of every layer", table(header, rows, numeric=range(1, 5))))


def _maybe(value: Any) -> float | None:
    return None if value is None else as_float(value)


def data(facts: Facts) -> Markup:
    """Images by class and split, their sizes, and those that could not be read."""
    found, parts = facts["dataset"], []
    if found is None:
        parts.append(note("The image folders are not here, so their contents are not listed."))
    else:
        parts += [_data_summary(found), _data_table(found)]
    bad = facts["unreadable"]
    if bad:
        listed = tag("ul", *(tag("li", tag("code", path), f": {reason}") for path, reason in list(bad.items())[:100]))
        parts += [tag("h3", f"{count(len(bad), 'unreadable image')}"), listed]
    return joined(parts)


def _data_summary(found: dict[str, Any]) -> Markup:
    totals = ", ".join(f"{count(sum(counts.values()), 'image')} in {name}" for name, counts in found["counts"].items())
    sizes = found["sizes"]
    size = ""
    if sizes:
        size = (
            f" The median picture has {sizes['median_width']} × {sizes['median_height']} pixels, "
            f"sides range from {sizes['shortest_side']} to {sizes['longest_side']} ({count(sizes['sample'], 'training image')} looked at)."
        )
    split_off = " There is no valid folder: valid was split off train." if found["valid_split_off"] else ""
    return tag("p", f"{count(len(found['classes']), 'class', 'classes')}; {totals}.{size}{split_off}")


MAX_DATA_ROWS = 300


def _data_table(found: dict[str, Any]) -> Markup:
    splits = list(found["counts"])
    most = max((max(counts.values(), default=0) for counts in found["counts"].values()), default=0)
    from image_classifier.debugging.report.charts import meter

    rows = []
    for name in sorted(found["classes"], key=lambda each: -found["counts"]["train"].get(each, 0))[:MAX_DATA_ROWS]:
        cells = [
            tag(
                "span",
                f"{(n := found['counts'][split].get(name, 0)):,}",
                meter(n / max(most, 1)) if split == "train" else None,
            )
            for split in splits
        ]
        rows.append((name, *cells))
    counts = [found["counts"]["train"].get(name, 0) for name in found["classes"]]
    ratio = max(counts) / max(min(counts), 1)
    balance = (
        f"The largest class has {number(ratio)} times the training images of the smallest."
        if ratio > 1
        else "All classes have equally many training images."
    )
    more = f" Shown are the {MAX_DATA_ROWS} largest." if len(found["classes"]) > MAX_DATA_ROWS else ""
    content = joined(
        table(("class", *splits), rows, numeric=range(1, len(splits) + 1)),
        note(f"Fingerprint of the data: {found['fingerprint']}"),
    )
    return joined(tag("p", balance + more), details("Images by class", content))


def environment(facts: Facts) -> Markup:
    """Hyperparameters, those that are not the default in bold, and what the job ran on."""
    defaults = TrainConfig.from_hyperparameters({}).to_hyperparameters()
    config = [(name, str(value), defaults.get(name) != str(value)) for name, value in facts["config"].items()]
    machine = [(name, value, False) for name, value in facts["environment"].items()]
    return joined(
        tag("h3", "Hyperparameters"),
        joined(note("Bold: not the default."), plain_list(config)) if config else note("Not known."),
        tag("h3", "Environment"),
        plain_list(machine) if machine else note("Not known."),
    )
