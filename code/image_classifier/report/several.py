"""Parts of the sections about time and the machine that only several processes or hosts have."""

from __future__ import annotations

from typing import Any

from image_classifier.report.advice import PHASE_NAMES
from image_classifier.report.charts import legend, meter, stacked_bar
from image_classifier.report.formats import DASH, count, duration, number, percent
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, figure, note, table

MAX_BARS = 8  # processes drawn; the table has them all
STYLES = {
    "data_wait_s": "c1",
    "sync_s": "c7",
    "h2d_s": "c4",
    "forward_s": "c6",
    "backward_s": "c0",
    "optimizer_s": "c2",
    "hook_s": "c3",
    "rest_s": "c5",
}  # of the phases, wherever they are drawn


def processes(facts: Facts) -> Markup | None:
    """Where each process's step goes, and which one the others wait for; None for a training in one process."""
    found = facts["processes"]
    if found is None:
        return None
    rows = found["rows"]
    drawn = sorted(rows, key=lambda row: -row["own_s"])[:MAX_BARS]
    bars = [figure(_bar(row), f"Process {row['rank']}") for row in sorted(drawn, key=lambda row: int(row["rank"]))]
    names = legend((STYLES[phase], PHASE_NAMES[phase]) for phase in (*_phases(rows), "rest_s"))
    cut = f" Drawn are the {MAX_BARS} with most of their own to do." if len(rows) > MAX_BARS else ""
    how = (
        "All processes end a step together. One that has more of its own to do (data, copy, forward, optimiser, "
        "recording) makes the others wait: before the forward pass for its batch, in the backward pass for its "
        f"gradients.{cut}"
    )
    return joined(
        tag("h3", f"The {len(rows)} processes"), tag("p", _slowest(found)), note(how), names, bars, _table(rows)
    )


def _slowest(found: dict[str, Any]) -> Markup:
    slowest = found["slowest"]
    if slowest is None:
        return joined(
            "No process holds the others up: what they do before they wait for each other takes equally long."
        )
    rank = slowest["rank"]
    own = next(row for row in found["rows"] if row["rank"] == rank)["phases"]
    others = [row["phases"] for row in found["rows"] if row["rank"] != rank]
    extra = {
        phase: own[phase] - sum(each.get(phase, 0.0) for each in others) / len(others)
        for phase in ("data_wait_s", "h2d_s", "forward_s", "optimizer_s", "hook_s")
        if phase in own
    }
    phase = max(extra, key=lambda each: extra[each])
    return joined(
        tag("b", f"Process {rank} holds the others up: "),
        f"each step it has {duration(slowest['behind_s'])} more of its own to do than the usual process, "
        f"{percent(slowest['share'], 0)} of a step, most of it in “{PHASE_NAMES[phase].lower()}”.",
    )


def _bar(row: dict[str, Any]) -> Markup:
    total = max(row["mean_s"], sum(row["phases"].values()), 1e-9)
    parts = {**row["phases"], "rest_s": total - sum(row["phases"].values())}
    return stacked_bar(
        f"Where a step of process {row['rank']} goes",
        [
            (
                STYLES[phase],
                PHASE_NAMES[phase],
                seconds / total,
                f"{PHASE_NAMES[phase]}\n{duration(seconds)} of a step, {percent(seconds / total)}",
            )
            for phase, seconds in parts.items()
        ],
        named=False,
    )


def _phases(rows: list[dict[str, Any]]) -> list[str]:
    return [phase for phase in STYLES if any(phase in row["phases"] for row in rows)]


def _table(rows: list[dict[str, Any]]) -> Markup:
    phases = _phases(rows)
    shown = [
        (
            row["rank"],
            row["steps"],
            number(row["images_per_second"]),
            duration(row["median_s"]),
            duration(row["own_s"]),
            *(duration(row["phases"].get(phase)) for phase in phases),
        )
        for row in rows
    ]
    header = (
        "process",
        "steps",
        "images/s",
        "median step",
        "of its own",
        *(PHASE_NAMES[phase].lower() for phase in phases),
    )
    return details("Numbers of every process", table(header, shown, numeric=range(len(header))))


def hosts(facts: Facts) -> Markup | None:
    """How busy each host was on average; None for one host."""
    found = (facts["system"] or {}).get("hosts") or []
    if not found:
        return None
    lines = list(dict.fromkeys(name for host in found for name in host["mean"]))
    rows = [
        (host["host"].replace("-", "\u2011"), *(_share(host["mean"].get(name)) for name in lines)) for host in found
    ]
    return joined(
        tag("h3", count(len(found), "host")),
        table(("host", *lines), rows, numeric=range(1, len(lines) + 1)),
        note("Means over the whole job. The chart above shows the mean of the hosts."),
    )


def _share(value: float | None) -> Markup | str:
    return DASH if value is None else tag("span", percent(value / 100, 0), meter(value / 100))
