"""The drawings of a search's page as one SVG file, for a document or an image viewer."""

from __future__ import annotations

import re
import textwrap

from image_classifier.report.formats import count, number
from image_classifier.report.html import Markup, tag
from image_classifier.report.page import Facts, asset
from image_classifier.report.search_charts import (
    AT_A_GLANCE,
    BY_EPOCH,
    BY_TRIAL,
    HALF,
    HALF_HEIGHT,
    WIDE,
    WIDE_HEIGHT,
    at_a_glance,
    by_epoch,
    by_trial,
)
from image_classifier.report.sources import as_float

MARGIN, HEADLINE, CAPTION = 24.0, 40.0, 44.0
LINE_HEIGHT = 16.0
CHARACTER = 6.2  # of the captions, on average, in the drawing's units
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # https://www.w3.org/TR/xml/#charsets


def draw_tuning(facts: Facts) -> str:
    """The facts of `gather_tuning` as an SVG document in the page's light colours, complete in itself."""
    title, parts, height = _title(facts), [], MARGIN + HEADLINE
    wide = at_a_glance(facts)
    if wide is not None:
        parts.append(_placed(wide, (MARGIN, height), (WIDE, WIDE_HEIGHT), AT_A_GLANCE))
        height += WIDE_HEIGHT + CAPTION
    half = [(by_trial(facts, named=False), f"Dots are trials. {BY_TRIAL}"), (by_epoch(facts), BY_EPOCH)]
    drawn = [(drawing, caption) for drawing, caption in half if drawing is not None]
    for index, (drawing, caption) in enumerate(drawn):
        parts.append(_placed(drawing, (MARGIN + index * HALF, height), (HALF, HALF_HEIGHT), caption))
    height += HALF_HEIGHT + CAPTION if drawn else 0.0
    width = WIDE + 2 * MARGIN
    document = tag(
        "svg",
        tag("title", title),
        tag("style", Markup(_light_colours())),
        tag("rect", class_="paper", width=width, height=height),
        tag("text", title, class_="headline", x=MARGIN, y=MARGIN + LINE_HEIGHT),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        font_family=FONTS,
    )
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + NOT_XML.sub("", document) + "\n"


def _title(facts: Facts) -> str:
    best = facts["best"]
    trials = f"{facts['name']}: {count(len(facts['trials']), 'trial')}"
    if best is None:
        return f"{trials}, none has finished"
    direction = "highest" if facts["maximize"] else "lowest"
    value = number(as_float(best.get("value")), 4)
    return f"{trials}, {direction} {facts['objective']} {value} in trial {best.get('trial')}"


def _placed(drawing: Markup, at: tuple[float, float], size: tuple[float, float], caption: str) -> Markup:
    """A drawing at its place, with the caption below."""
    (x, y), (width, height) = at, size
    lines = textwrap.wrap(caption, int((width - MARGIN) / CHARACTER))
    texts = [tag("text", text, y=height + (i + 1) * LINE_HEIGHT) for i, text in enumerate(lines)]
    return tag("g", drawing, *texts, transform=f"translate({x:g} {y:g})")


def _light_colours() -> str:
    """The charts' rules with the colours written out: image viewers know no variables."""
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", asset("style.css").split("}", 1)[0]))
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], asset("chart.css"))
