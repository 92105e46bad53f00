"""The section about confidence: whether a probability of 80 % is right eight times in ten."""

from __future__ import annotations

from typing import Any

from image_classifier.report.charts import Axis, Curve, frame, line_chart
from image_classifier.report.formats import count, number, percent, share_tick
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, figure, note, table
from image_classifier.report.scales import fit
from image_classifier.vision.confidence import CALIBRATION_BINS, exact_interval
from image_classifier.vision.temperature import MIN_PHOTOS, NONE

WIDTH, HEIGHT = 480.0, 320.0
FIGURES = ("loss_before", "loss_after", "error_before", "error_after")
CLOSE = 0.05  # an error up to which confidence is called about right


def calibration(facts: Facts) -> Markup:
    """The reliability diagram of the test images, its numbers, and the expected calibration error in words."""
    scores = facts.get("scores")
    if scores is None or scores["calibration_error"] is None:
        return note("No image was answered, or an earlier version trained the model and kept no confidence.")
    if not scores["bins"]:
        return joined(
            tag(
                "p",
                f"The expected calibration error on the {scores['split']} images is "
                f"{percent(scores['calibration_error'])}.",
            ),
            _temperature(scores),
            note("The diagram needs test images: single answers to validation images are not kept."),
        )
    return joined(
        tag("p", _reading(scores)),
        _temperature(scores),
        _abstaining(scores),
        tag("div", _diagram(scores["bins"]), class_="pair-of"),
        _table(scores),
    )


def _reading(scores: dict[str, Any]) -> str:
    bins, error = scores["bins"], scores["calibration_error"]
    images = sum(each["images"] for each in bins)
    said = sum(each["images"] * each["confidence"] for each in bins) / images
    right = sum(each["images"] * each["accuracy"] for each in bins) / images
    if abs(said - right) <= CLOSE:
        lean = "on the whole as sure as it is right"
    else:
        lean = "surer than it is right" if said > right else "less sure than it is right"
        low, high = exact_interval(right * images, images)
        lean += ", which with so few images may be chance" if low <= said <= high else ""
    return (
        f"Expected calibration error {percent(error)}: the model gives its answers {percent(said)} on average, and "
        f"{percent(right)} of {count(images, 'answer')} are right; it is {lean}."
    )


def _temperature(scores: dict[str, Any]) -> Markup | None:
    """What the temperature does, on the images that it was fitted on and on those that it has not seen."""
    fitted, plain = scores.get("calibration"), scores.get("uncalibrated") or {}
    if not fitted:
        return None
    if fitted["temperature"] == NONE:
        text = f"No temperature: it was fitted on {count(int(fitted['photos']), 'photo')}, and changes nothing."
        return note(
            text if fitted["photos"] >= MIN_PHOTOS else f"No temperature: {MIN_PHOTOS} photos are needed for it."
        )
    rows = [("validation, fitted on", *(fitted[name] for name in FIGURES))]
    if scores["loss"] is not None and {"loss", "calibration_error"} <= plain.keys():
        after = (scores["loss"], scores["calibration_error"])
        rows.append(("test", plain["loss"], after[0], plain["calibration_error"], after[1]))
    shown = [(row[0], number(row[1]), number(row[2]), percent(row[3]), percent(row[4])) for row in rows]
    text = (
        f"The logits are divided by a temperature of {fitted['temperature']:.3f} before they become probabilities, in "
        "these figures and wherever the model is served. It was fitted on "
        f"{count(int(fitted['photos']), 'validation photo')} (Guo et al. 2017) and changes how sure it is, no answer."
    )
    header = ("images", "loss before", "after", "calibration error before", "after")
    return joined(tag("p", text), table(header, shown, numeric=range(1, 5)))


def _abstaining(scores: dict[str, Any]) -> Markup | None:
    """From what the model abstains, and what its other answers to the test images are worth."""
    found = scores.get("abstain") or {}
    if not {"below", "coverage", "accuracy"} <= found.keys():
        return None
    return tag(
        "p",
        f"The model abstains where its most probable class has less than {found['below']:.3f}: it answers "
        f"{percent(found['coverage'])} of the test images, and {percent(found['accuracy'])} of these are right.",
    )


def _diagram(bins: list[dict[str, Any]]) -> Markup:
    (left, right), (bottom, top) = frame(WIDTH, HEIGHT)
    spread = [(each["confidence"], *exact_interval(each["accuracy"] * each["images"], each["images"])) for each in bins]
    series = [
        Curve(name="as sure as right", points=[(0.0, 0.0), (1.0, 1.0)], style="c5 dashed"),
        Curve(
            name="answers of the model",
            points=[(each["confidence"], each["accuracy"]) for each in bins],
            style="c0",
            dots=True,
            band=spread,
        ),
    ]
    x = Axis(scale=fit([], left, right, low=0.0, high=1.0), title="probability it gives", form=share_tick)
    y = Axis(scale=fit([], bottom, top, low=0.0, high=1.0), title="share that is right", form=share_tick)
    drawing = line_chart(
        "Reliability diagram: share that is right by probability", series, x, y, width=WIDTH, height=HEIGHT
    )
    caption = (
        f"Answers in {CALIBRATION_BINS} bins of equal width by the probability of the class they name; a dot stands at "
        "the bin's mean probability and its share of right answers, the area is the 95 % interval of that share. Below "
        "the dashed line the model is surer than it is right. The expected calibration error is the mean distance "
        "from that line, weighted by images (Guo et al. 2017); with few images some of it is chance."
    )
    return figure(drawing, caption)


def _table(scores: dict[str, Any]) -> Markup:
    rows = [
        (
            f"{share_tick(each['low'])} to {share_tick(each['high'])}",
            each["images"],
            percent(each["confidence"]),
            percent(each["accuracy"]),
        )
        for each in scores["bins"]
    ]
    return details(
        "Numbers of every bin",
        table(("probability", "images", "mean probability", "right"), rows, numeric=(1, 2, 3)),
    )
