"""Sections about what came out: outcome, learning curves, confusions, classes, mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from image_classifier.contract.metrics import METRICS
from image_classifier.contract.outputs import CONFUSION, PER_CLASS
from image_classifier.report.advice import best_row, first_peak
from image_classifier.report.answers import MAX_CLASS_ROWS
from image_classifier.report.charts import Axis, Curve, frame, line_chart, mark, meter
from image_classifier.report.formats import DASH, count, duration, interval, number, percent, points, share_tick, short
from image_classifier.report.grids import confusion as confusion_chart
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, figure, missing, next_steps, note, table
from image_classifier.report.scales import fit, spans_decades
from image_classifier.report.sources import as_float
from image_classifier.report.standing import could_not_judge, found_nothing
from image_classifier.vision.confidence import exact_interval

FILE_NAME_CHARS = 30
SPLIT_NAMES = {"train": "training", "validation": "validation", "test": "test", "best": "best"}  # of metrics
HALF_WIDTH, HEIGHT = 480.0, 280.0  # of a chart that shares its row with another


def outcome(facts: Facts) -> Markup:
    """How it ended, in numbers."""
    found = facts["outcome"]
    notice = None
    if found["status"] != "completed":
        words = {"failed": "The job failed", "stopped": "The job was stopped", "unfinished": "The job has not finished"}
        reason = (
            f"{words[found['status']]}: {found['failure']}."
            if found["failure"]
            else f"{words[found['status']]}; it left no result."
        )
        notice = tag("div", tag("p", tag("b", reason)), class_="notice", role="note")
    figures = [_accuracy(found), *_guessing(found), *_scores(facts), _best_epoch(found), *_others(facts)]
    return joined(notice, tag("dl", *figures, class_="figures"), missing(facts))


def _figure(name: str, value: str, more: str = "") -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", more) if more else None))


def _accuracy(found: dict[str, Any]) -> Markup:
    accuracy = found["accuracy"]
    if accuracy is None:
        return _figure("Accuracy", DASH, "nothing was evaluated")
    more = ""
    if accuracy["low"] is not None:
        best = f" of the best of {accuracy['looks']} validations" if accuracy["looks"] > 1 else ""
        spread = interval(accuracy["low"], accuracy["high"])
        more = f"95 % interval {spread}{best}, {count(accuracy['images'], 'image')}"
    return _figure(f"{accuracy['split'].capitalize()} accuracy", percent(accuracy["value"]), more)


def _guessing(found: dict[str, Any]) -> list[Markup]:
    """What the accuracy has to be compared with."""
    accuracy = found["accuracy"]
    if accuracy is None or accuracy["guessing"] is None:
        return []
    better = "the model is better" if accuracy["better"] else "the model is not shown to be better"
    more = f"always naming the largest class; {better}"
    return [_figure("Guessing", share_tick(accuracy["guessing"]), more)]


def _scores(facts: Facts) -> list[Markup]:
    """What an accuracy hides: classes that are never recognised, and confidence that means nothing."""
    scores = facts.get("scores")
    if scores is None:
        return []
    classes = sum(1 for row in facts["per_class"] if row["images"])
    chance = f"mean recall of the classes; guessing {share_tick(1 / classes)}" if classes else "mean recall of classes"
    parts = (
        ("balanced_accuracy", "Balanced accuracy", chance),
        ("macro_f1", "Macro-F1", "mean F1 of the classes"),
        ("calibration_error", "Calibration error", "expected; see Confidence"),
    )
    return [
        _figure(name, percent(scores[key]) if key != "macro_f1" else f"{scores[key]:.3f}", more)
        for key, name, more in parts
        if scores[key] is not None
    ]


def _best_epoch(found: dict[str, Any]) -> Markup:
    if not found["best_epoch"]:
        return _figure("Best epoch", DASH, "no epoch was finished")
    planned = found["epochs_planned"]
    done = f"of {found['epochs_done']}" + (
        f", {planned} were planned" if planned and planned != found["epochs_done"] else ""
    )
    return _figure("Best epoch", str(found["best_epoch"]), done)


def _others(facts: Facts) -> list[Markup]:
    found, figures = facts["outcome"], []
    top5 = found["metrics"].get("test:top5_accuracy", found["metrics"].get("validation:top5_accuracy"))
    if top5 is not None and (found["classes"] or 0) > 5:
        counts = found["answered"].get("test" if "test:top5_accuracy" in found["metrics"] else "valid") or {}
        guessed = counts["largest_five"] / counts["images"] if "largest_five" in counts else None
        more = "" if guessed is None else f"naming the five largest classes: {share_tick(guessed)}"
        figures.append(_figure("Top-5 accuracy", percent(top5), more))
    if found["seconds"] is not None:
        figures.append(_figure("Time", duration(found["seconds"]), "training, validation and test"))
    if facts["time"]:
        figures.append(_figure("Speed", number(facts["time"]["images_per_second"]), "training images a second"))
    fired = [rule for rule in facts["rules"] if rule["verdict"] == "IssuesFound"]
    if facts["rules"]:
        judged = len(fired) + sum(map(found_nothing, facts["rules"]))
        silent = sum(map(could_not_judge, facts["rules"]))
        lacking = f"; {silent} that matter{'s' if silent == 1 else ''} lacked data" if silent else ""
        figures.append(
            _figure("Rules", f"{len(fired)} fired" if fired else "none fired", f"of {judged} that could judge{lacking}")
        )
    return figures


def what_next(facts: Facts) -> Markup:
    """What to do, most important first."""
    return next_steps(facts)


def learning(facts: Facts) -> Markup:
    """Loss with its batch noise, and accuracy with its sampling noise."""
    history = facts["history"]
    if not history and not facts["batches"]:
        return note("No epoch was finished, and no step was recorded.")
    charts = [chart for chart in (_loss(facts), _accuracies(facts) if history else None) if chart is not None]
    return joined(tag("p", _reading(facts)), tag("div", *charts, class_="pair-of"), _every_epoch(history))


def _every_epoch(history: Sequence[Mapping[str, Any]]) -> Markup | None:
    """A row for each epoch with every metric the trainer reported, those of the same quantity side by side."""
    if not history:
        return None
    names = [metric.name for metric in METRICS if any(metric.name in row for row in history)]
    parts = [(SPLIT_NAMES[split], quantity) for split, _, quantity in (name.partition(":") for name in names)]
    order = list(dict.fromkeys(quantity for _, quantity in parts))
    columns = sorted(zip(names, parts, strict=True), key=lambda column: order.index(column[1][1]))
    header = ("epoch", *(f"{split} {quantity}".replace("_", " ") for _, (split, quantity) in columns), "training time")
    rows = [
        (row["epoch"], *(_value(name, row.get(name)) for name, _ in columns), duration(row.get("seconds")))
        for row in history
    ]
    return details("Numbers of every epoch", table(header, rows, numeric=range(len(header)), class_="epochs"))


def _value(name: str, value: float | None) -> str:
    return percent(value) if name.endswith("accuracy") else number(value, 4)


def _reading(facts: Facts) -> str:
    best = facts["outcome"]["best_epoch"]
    if not best:
        return "The job ended before its first validation."
    row = best_row(facts)
    train, valid = row.get("train:accuracy"), row.get("validation:accuracy")
    if train is None or valid is None:
        return f"Epoch {best} was the best."
    gap = f"training accuracy was {points(abs(train - valid))} {'higher' if train >= valid else 'lower'}"
    if abs(train - valid) < 0.0005:
        gap = "training accuracy was the same"
    first, peak = first_peak(facts["history"])
    kept = f" Kept are the weights of epoch {best}, which had the same and a lower loss." if first < best else ""
    where = f"in epoch {first}" if first == best else f"first in epoch {first}"
    return (
        f"Validation accuracy peaked at {percent(peak)} {where}; in epoch {best}, {gap}.{kept}"
        if kept
        else (f"Validation accuracy peaked at {percent(peak)} {where}; {gap}.")
    )


def _loss(facts: Facts) -> Markup | None:
    batches, history, series = facts["batches"], facts["history"], []
    if batches:
        noise = [
            (x, as_float(low), as_float(high))
            for x, low, high in zip(batches["epoch"], batches["p10"], batches["p90"], strict=True)
            if math.isfinite(as_float(low)) and math.isfinite(as_float(high))
        ]
        means = [(x, as_float(y)) for x, y in zip(batches["epoch"], batches["mean"], strict=True)]
        series.append(Curve(name="training, by batch", points=means, style="c0", band=noise))
        caption = (
            "The area holds the middle 80 % of the batches: differences smaller than it are noise. Labels are not "
            "smoothed."
        )
        if batches["p10"] == batches["p90"]:
            caption = "Every batch is shown; how they differ from one to the next is noise. Labels are not smoothed."
    else:
        points_ = [(row["epoch"], as_float(row.get("train:loss"))) for row in history]
        series.append(Curve(name="training", points=points_, style="c0", dots=True))
        caption = (
            "The training loss is the one that was minimised, with label smoothing. Single steps were not "
            "recorded, so their noise is not shown."
        )
    if history:
        valid = [(row["epoch"], as_float(row.get("validation:loss"))) for row in history]
        series.append(Curve(name="validation", points=valid, style="c1", dots=True))
    return figure(_curve(facts, "Loss by epoch", series, "loss (nats)", form=number), caption)


def _accuracies(facts: Facts) -> Markup:
    history, answered = facts["history"], facts["outcome"]["answered"].get("valid") or {}
    images, guessed = answered.get("images"), answered.get("largest_class")
    band, caption = (
        [],
        "Training accuracy is measured on augmented crops while the network changes, validation accuracy after the "
        "epoch.",
    )
    if images:
        band = [
            (row["epoch"], *exact_interval(row["validation:accuracy"] * images, images))
            for row in history
            if "validation:accuracy" in row
        ]
        caption = f"The area is the 95 % interval of an accuracy measured on {count(images, 'image')}. " + caption
    series = [
        Curve(
            name="training",
            points=[(row["epoch"], as_float(row.get("train:accuracy"))) for row in history],
            style="c0",
            dots=True,
        ),
        Curve(
            name="validation",
            points=[(row["epoch"], as_float(row.get("validation:accuracy"))) for row in history],
            style="c1",
            dots=True,
            band=band,
        ),
    ]
    if images and guessed:
        ends = (history[0]["epoch"], history[-1]["epoch"])
        level = [(epoch, guessed / images) for epoch in dict.fromkeys(ends)]
        series.append(Curve(name="guessing (validation)", points=level, style="c5 dashed"))
        caption += " Dashed: what always naming the largest class gets."
    return figure(_curve(facts, "Accuracy by epoch", series, "accuracy", form=share_tick, high=1.0), caption)


def _curve(
    facts: Facts, label: str, series: Sequence[Curve], title: str, *, form: Any, high: float | None = None
) -> Markup:
    (left, right), (bottom, top) = frame(HALF_WIDTH, HEIGHT)
    values = [value for each in series for _, value in each.points] + [
        v for each in series for _, *ends in each.band for v in ends
    ]
    first = 0.0 if facts["batches"] else 1.0
    last = max([place for each in series for place, _ in each.points], default=1.0)
    x = Axis(scale=fit([], left, right, low=first, high=max(last, first + 1)), title="epoch", form=number)
    x = Axis(scale=x.scale, title="epoch", form=number, ticks=[tick for tick in x.places if tick == int(tick)])
    log = high is None and spans_decades(values)
    scale = fit(values, bottom, top, log=log, zero=high is None, high=high)
    y = Axis(scale=scale, title=f"{title}, logarithmic" if log else title, form=form)
    best = facts["outcome"]["best_epoch"]
    extra = mark(x.scale, y.scale, best, f"best: {best}") if best else None
    return line_chart(label, series, x, y, width=HALF_WIDTH, height=HEIGHT, extra=extra)


def confusion(facts: Facts) -> Markup:
    """The matrix, and the most confused pairs with pictures."""
    found = facts["confusion"]
    if found is None:
        return _no_answers(facts)
    total = facts["outcome"]["images"].get("test")
    of = f" of {count(total, 'test image')}" if total else ""
    first = (
        f"{count(found['errors'], 'error')}{of}."
        if found["errors"]
        else f"No error in{of[3:]}."
        if of
        else "No errors."
    )
    cut = ""
    if found["num_classes"] > len(found["classes"]):
        cut = (
            f" Shown are the {len(found['classes'])} classes of {found['num_classes']} with the most errors; "
            f"{CONFUSION.name} has them all."
        )
    how = (
        "Rows are the true classes, columns the predicted ones. Blue is right, orange is wrong; the stronger the "
        f"colour, the larger the share of the row.{cut}"
    )
    matrix = tag("div", confusion_chart(found["classes"], found["counts"], width=704), class_="scroll", tabindex=0)
    pairs = [_pair(facts, pair) for pair in found["pairs"]]
    listed = tag("div", tag("h3", "Most confused pairs"), tag("ul", *pairs, class_="pairs")) if pairs else None
    return joined(tag("p", first), note(how), tag("div", matrix, listed, class_="confusion"))


def _no_answers(facts: Facts) -> Markup:
    finished = facts["outcome"]["status"] == "completed"
    if not facts["outcome"]["tested"]:
        return note("A search tests its best trial alone.")
    return note("There were no test images." if finished else "The job ended before its test.")


def _pair(facts: Facts, pair: dict[str, Any]) -> Markup:
    share = percent(pair["images"] / max(pair["of"], 1), 0)
    text = tag(
        "p",
        tag("b", pair["true"]),
        " taken for ",
        tag("b", pair["predicted"]),
        f": {pair['images']} of {pair['of']} images ({share})",
    )
    pictures = [
        _picture(facts, path, f"{pair['true']} taken for {pair['predicted']}: {path}") for path in pair["examples"]
    ]
    return tag("li", text, tag("div", *pictures) if any(pictures) else None)


def _picture(facts: Facts, path: str, alt: str) -> Markup | None:
    uri = facts["thumbnails"].get(path)
    return tag("img", src=uri, alt=alt, title=path) if uri else None


def classes(facts: Facts) -> Markup:
    """Precision, recall and F1 of every class, the worst recall first."""
    rows = facts["per_class"]
    if not rows:
        return _no_answers(facts)
    shown = [
        (
            row["class"],
            row["images"],
            tag("span", percent(row["recall"]), meter(row["recall"])),
            interval(row["low"], row["high"]),
            percent(row["precision"]),
            f"{row['f1']:.3f}",
        )
        for row in rows[:MAX_CLASS_ROWS]
    ]
    header = ("class", "images", "recall", "95 % interval", "precision", "F1")
    more = (
        note(f"The {MAX_CLASS_ROWS} classes with the lowest recall of {len(rows)}; {PER_CLASS.name} has them all.")
        if len(rows) > MAX_CLASS_ROWS
        else None
    )
    return joined(
        note(
            "Recall: share of the class's images that were recognised. Precision: share of the answers naming the "
            "class that were right. Lowest recall first."
        ),
        table(header, shown, numeric=range(1, 6)),
        more,
    )


def mistakes(facts: Facts) -> Markup:
    """The most confident wrong answers as pictures."""
    rows = facts["mistakes"]
    if not rows:
        return note("Every test image was classified correctly.") if facts["per_class"] else _no_answers(facts)
    cards = []
    for row in rows:
        alt = f"{row['true']} taken for {row['predicted']}"
        picture = _picture(facts, row["path"], alt) or tag("p", "picture not available", class_="soft")
        text = tag(
            "figcaption",
            tag("b", row["predicted"]),
            f" with {percent(row['probability'], 0)}, but it is ",
            tag("b", row["true"]),
            tag("br"),
            tag("span", short(row["path"].rpartition("/")[2], FILE_NAME_CHARS), title=row["path"]),
        )
        cards.append(tag("figure", picture, text))
    return joined(
        note(
            "Wrong answers given with the highest probability. They show wrong labels, pictures of several things, "
            "and what the network has not seen enough of."
        ),
        tag("div", *cards, class_="gallery"),
    )
