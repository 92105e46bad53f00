"""Sections about the job's inside: rules, layers, data, environment."""

from __future__ import annotations

from typing import Any

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import RULES
from image_classifier.report.charts import meter
from image_classifier.report.formats import DASH, count, number, sentence, words
from image_classifier.report.grids import heatmap
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, figure, note, plain_list, table
from image_classifier.report.sources import as_float
from image_classifier.report.standing import could_not_judge, found_nothing

WIDTH = 960.0
ASLEEP = (
    " Grey at step 0: residual branches begin at zero (zero_init_residual), so that nothing reaches their layers in "
    "the first step; from the next recorded step on they learn."
)
VERDICT_NAMES = {
    "IssuesFound": "fired",
    "NoIssuesFound": "no issue",
    "InsufficientData": "not enough data",
    "Error": "could not run",
}


def rules(facts: Facts) -> Markup:
    """Every rule with its verdict; those that fired first, with advice and evidence."""
    if not facts["rules"]:
        return note(f"No rule judged this job: {RULES.name} is missing.")
    told = [rule for rule in facts["rules"] if rule["verdict"] != "InsufficientData"]
    silent = [rule for rule in facts["rules"] if rule["verdict"] == "InsufficientData" and rule.get("applies", True)]
    elsewhere = [rule for rule in facts["rules"] if not rule.get("applies", True)]
    fired = sum(rule["verdict"] == "IssuesFound" for rule in told)
    judged = fired + sum(map(found_nothing, told))
    first = f"{count(fired, 'rule')} of {judged} fired." if fired else f"None of {count(judged, 'rule')} fired."
    lacking = [rule for rule in facts["rules"] if could_not_judge(rule)]
    if lacking:
        which = "1 rule that matters" if len(lacking) == 1 else f"{len(lacking)} rules that matter"
        asked = "it asks" if len(lacking) == 1 else "they ask"
        first += f" {which} could not judge: nothing is known of what {asked}."
    folded = (
        (silent, f"{count(len(silent), 'rule')} without enough data to judge"),
        (elsewhere, f"{count(len(elsewhere), 'rule')} about what this job does not have"),
    )
    quiet = [details(text, _rule_table(rows)) for rows, text in folded if rows]
    return joined(tag("p", first), _rule_table(told), quiet)


def _rule_table(rows: list[dict[str, Any]]) -> Markup:
    return table(
        ("rule", "verdict", "finding"),
        [(words(row["rule"]), _verdict(row), _finding(row)) for row in rows],
        class_="rules",
    )


def _verdict(rule: dict[str, Any]) -> Markup:
    if rule["verdict"] == "IssuesFound":
        return tag("span", f"● {rule['severity']}", class_=f"verdict {rule['severity']}")
    if rule["verdict"] == "NoIssuesFound" and not found_nothing(rule):  # it does not judge
        return tag("span", "○ numbers only", class_="verdict none")
    kind = {"NoIssuesFound": "good", "Error": "warning"}.get(rule["verdict"], "none")
    return tag(
        "span",
        f"{'✓' if kind == 'good' else '○'} {VERDICT_NAMES.get(rule['verdict'], rule['verdict'])}",
        class_=f"verdict {kind}",
    )


def _finding(rule: dict[str, Any]) -> Markup:
    """What was found; advice and evidence stand open under a rule that fired, folded under the others."""
    rows = [
        (DASH if e["step"] is None else e["step"], e["name"], number(as_float(e["value"]))) for e in rule["evidence"]
    ]
    evidence = table(("step", "what", "value"), rows, numeric=(0, 2), class_="narrow") if rows else None
    parameters = ", ".join(f"{name} = {value}" for name, value in rule["parameters"].items())
    looked = f"{count(rule['datapoints'], 'measurement')} looked at" + (f"; {parameters}" if parameters else "")
    more = joined(evidence, tag("p", looked, class_="soft"))
    if rule["verdict"] != "IssuesFound":
        return details(sentence(rule["summary"]), more)
    cause = rule.get("symptom_of")
    told = f"A symptom of what {words(cause)} found." if cause else sentence(rule["advice"])
    advice = tag("p", told, class_="advice") if told else None
    return joined(tag("p", sentence(rule["summary"])), advice, details("Evidence" if rows else "Parameters", more))


def layers(facts: Facts) -> Markup:
    """Gradients, updates and silent units by layer and step."""
    found = facts["layers"]
    if found is None:
        return note("No gradients or weights were recorded.")
    texts = {
        "gradients": (
            "mean |gradient|",
            "Gradients",
            "A layer whose row fades to the low end of the scale learns nothing; orange is exactly zero, red is "
            "not finite.",
        ),
        "updates": (
            "update / weight",
            "Size of the updates",
            "How far one step moves a layer, against the size of its weights. Around 1e-3 is usual; above 1e-1 a "
            "layer is torn about.",
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
            parts.append(tag("h3", heading))
            if key == "dead" and all(not value for row in grid["values"] for value in row):
                parts.append(note("No unit was silent at any recorded step."))
                continue
            values = [[None if value is None else as_float(value) for value in row] for row in grid["values"]]
            asleep = set(grid.get("asleep") or ())
            drawing = heatmap(
                f"{heading} by layer and step",
                grid["layers"],
                grid["steps"],
                values,
                what=what,
                width=WIDTH,
                zero="none" if key == "dead" else "zero",
                unpainted={(row, 0) for row in asleep},
            )
            parts.append(figure(drawing, caption + (ASLEEP if asleep else "")))
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
    """Images by class and split, their sizes, those that could not be read, and what else was found in the folders."""
    found, parts = facts["dataset"], []
    if found is None:
        parts.append(note("The image folders are not here, so their contents are not listed."))
    else:
        parts += [_data_summary(found), _data_table(found)]
    bad = facts["unreadable"]
    if bad:
        listed = tag("ul", *(tag("li", tag("code", path), f": {reason}") for path, reason in list(bad.items())[:100]))
        parts += [tag("h3", f"{count(len(bad), 'unreadable image')}"), listed]
    if facts["findings"]:
        parts += [tag("h3", "Not used, or of no use"), tag("ul", *map(_finding_item, facts["findings"]))]
    return joined(parts)


def _finding_item(found: dict[str, Any]) -> Markup:
    names = tag("ul", *(tag("li", tag("code", name)) for name in found["files"])) if found["files"] else None
    return tag("li", sentence(found["message"]), f" {sentence(found['hint'])}" if found["hint"] else None, names)


def _data_summary(found: dict[str, Any]) -> Markup:
    totals = ", ".join(f"{count(sum(counts.values()), 'image')} in {name}" for name, counts in found["counts"].items())
    sizes = found["sizes"]
    size = ""
    if sizes:
        size = (
            f" The median picture has {sizes['median_width']} × {sizes['median_height']} pixels, "
            f"sides range from {sizes['shortest_side']} to {sizes['longest_side']} "
            f"({count(sizes['sample'], 'training image')} looked at)."
        )
    split_off = " There is no valid folder: valid was split off train." if found["valid_split_off"] else ""
    return tag("p", f"{count(len(found['classes']), 'class', 'classes')}; {totals}.{size}{split_off}")


MAX_DATA_ROWS = 300


def _data_table(found: dict[str, Any]) -> Markup:
    splits = list(found["counts"])
    most = max((max(counts.values(), default=0) for counts in found["counts"].values()), default=0)
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
