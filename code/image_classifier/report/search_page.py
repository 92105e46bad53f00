"""The page of a tuning run: the best trial, all trials, and what mattered."""

from __future__ import annotations

from typing import Any

from image_classifier.report.charts import meter
from image_classifier.report.formats import DASH, count, duration, number, percent
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import (
    Facts,
    Section,
    details,
    figure,
    missing,
    next_steps,
    note,
    page,
    plain_list,
    table,
)
from image_classifier.report.search_charts import AT_A_GLANCE, BY_EPOCH, BY_TRIAL, at_a_glance, by_epoch, by_trial
from image_classifier.report.search_facts import MIN_TRIALS, SHUFFLES, SURE


def render_tuning(facts: Facts) -> str:
    """The facts of `search_facts.gather_tuning` as one HTML document."""
    done = sum(trial["status"] == "Completed" for trial in facts["trials"])
    meta = (
        f"{count(len(facts['trials']), 'trial')}, {done} completed · objective {facts['objective']}, "
        f"{'higher' if facts['maximize'] else 'lower'} is better"
    )
    return page(facts, f"Tuning {facts['name']}", meta, SECTIONS)


def outcome(facts: Facts) -> Markup:
    """The best value and what gave it."""
    best = facts["best"]
    if best is None:
        return joined(note("No trial has finished."), missing(facts))
    values = [
        ("value", _objective(facts, best.get("value"))),
        ("of trial", str(best.get("trial"))),
        ("in epoch", str(best.get("epoch", DASH))),
    ]
    found = best.get("hyperparameters", {})
    values += [(name, _rounded(str(found[name]))) for name in facts["names"] if name in found]
    items = [
        tag(
            "div",
            tag("dt", name if name != "value" else f"Best {facts['objective'].replace(':', ' ')}"),
            tag("dd", value),
        )
        for name, value in values
    ]
    return tag("dl", *items, class_="figures")


def _rounded(text: str) -> str:
    try:
        return number(float(text), 3)
    except ValueError:
        return text


def _objective(facts: Facts, value: Any) -> str:
    if value is None:
        return DASH
    return percent(float(value)) if "accuracy" in facts["objective"] else number(float(value), 4)


def what_next(facts: Facts) -> Markup:
    """What to do, most important first."""
    return next_steps(facts)


def picture(facts: Facts) -> Markup:
    """All trials with a value as parallel coordinates."""
    drawing = at_a_glance(facts)
    if drawing is None:
        return note("Fewer than two trials gave a value.")
    return figure(tag("div", drawing, class_="scroll"), AT_A_GLANCE)


def importance(facts: Facts) -> Markup:
    """How much each hyperparameter alone explains."""
    rows = facts["importance"]
    if rows is None:
        return note(f"With fewer than {MIN_TRIALS} completed trials any ranking is luck.")
    shown = [
        (
            row["name"],
            tag("span", percent(row["share"], 0), meter(row["share"])),
            number(row["p"]),
            "yes" if row["p"] <= SURE else "not clear",
        )
        for row in rows
    ]
    how = (
        "Share: how much of the variance of the completed trials' ranking lies between groups of like values of one "
        "hyperparameter (correlation ratio; thirds where there are many values). p: how often the results gave a "
        f"share as large when they were shuffled {SHUFFLES} times. Interactions are not seen."
    )
    found = table(("hyperparameter", "share of the ranking", "p", "has an effect"), shown, numeric=(1, 2))
    return joined(found, details("How this is computed", tag("p", how)))


def progress(facts: Facts) -> Markup:
    """The objective in the order of the trials, and after each epoch."""
    trials, epochs = by_trial(facts, named=True), by_epoch(facts)
    if trials is None:
        return note("No trial gave a value.")
    return tag("div", figure(trials, BY_TRIAL), None if epochs is None else figure(epochs, BY_EPOCH), class_="pair-of")


def trials(facts: Facts) -> Markup:
    """All trials, the best first."""
    sign = -1 if facts["maximize"] else 1
    ranked = sorted(
        facts["trials"], key=lambda each: (each["value"] is None, sign * (each["value"] or 0.0), each["trial"])
    )
    rows = [
        (
            each["trial"],
            *(number(v, 4) if not isinstance(v, str) else v for v in each["values"].values()),
            _objective(facts, each["value"]),
            each["best_epoch"] or DASH,
            each["epochs"],
            duration(each["seconds"]),
            f"{each['status']}: {each['failure']}" if each["failure"] else each["status"],
        )
        for each in ranked
    ]
    header = ("trial", *facts["names"], facts["objective"], "best epoch", "epochs", "time", "status")
    return table(header, rows, numeric=range(len(header) - 1))


def environment(facts: Facts) -> Markup:
    """What all trials had in common."""
    searched = set(facts["names"])
    shown = [(name, str(value), False) for name, value in facts["config"].items() if name not in searched]
    return details("Hyperparameters of every trial", plain_list(shown)) if shown else note("Not known.")


SECTIONS: tuple[Section, ...] = (
    ("outcome", "Outcome", outcome),
    ("next", "What to do next", what_next),
    ("parallel", "Trials at a glance", picture),
    ("importance", "What mattered", importance),
    ("progress", "Progress of the search", progress),
    ("trials", "All trials", trials),
    ("config", "Configuration", environment),
)
