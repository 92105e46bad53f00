"""Line charts and bars as inline SVG: axes with units, light gridlines, a tooltip on everything that has a number.

Colours, fonts and dark mode are the style sheets' (chart.css, style.css): shapes carry classes (`c0`..`c5` for series,
`q0`..`q8` for a ramp) and no style. A tooltip is an SVG <title>; the page's script shows it nicer, without the script
browsers show it too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from image_classifier.report.formats import number
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.scales import Scale

Format = Callable[[float], str]
SHARE_WITH_TEXT = 0.12  # of a bar; smaller ones have no room on a phone


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart.

    Args:
        name: for the legend and tooltips.
        points: (x, y); where y is not finite the line is broken.
        style: class of its colour, `c0`..`c5`, optionally with `dashed` or `faint`.
        dots: a dot on every point.
        band: (x, low, high) drawn as an area behind the line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: its scale over the chart's units, its title with the unit, and how its ticks are written."""

    scale: Scale
    title: str
    form: Format = number
    ticks: Sequence[float] | None = None

    @property
    def places(self) -> Sequence[float]:
        """Where the ticks are."""
        return self.scale.ticks() if self.ticks is None else self.ticks


def svg(width: float, height: float, label: str, *content: Markup | None, class_: str = "chart") -> Markup:
    """A drawing with a description for those who cannot see it."""
    return tag(
        "svg",
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        class_=class_,
        width=width,
        height=height,
    )


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """(class, name) of each series, as a row above the chart."""
    items = [
        tag("li", tag("svg", tag("rect", class_=style, width=14, height=4, y=4, rx=2), width=14, height=12), name)
        for style, name in entries
    ]
    return tag("ul", *items, class_="legend", aria_hidden="true")


def axes(x: Axis, y: Axis) -> Markup:
    """Gridlines across, ticks and titles; x's range is left to right, y's bottom to top."""
    left, right, bottom, top = x.scale.start, x.scale.end, y.scale.start, y.scale.end
    parts = []
    for value in y.places:
        at = y.scale(value)
        parts.append(tag("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
        parts.append(tag("text", y.form(value), class_="tick", x=left - 7, y=at + 4, text_anchor="end"))
    parts.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    for value in x.places:
        at = x.scale(value)
        parts.append(tag("line", class_="axis", x1=at, x2=at, y1=bottom, y2=bottom + 4))
        parts.append(tag("text", x.form(value), class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
    parts.append(tag("text", y.title, class_="title", x=4, y=top - 12))
    parts.append(tag("text", x.title, class_="title", x=right, y=bottom + 36, text_anchor="end"))
    return joined(parts)


def line(series: Curve, x: Scale, y: Scale) -> Markup:
    """The series' band, line and dots."""
    parts = []
    if series.band:
        upper = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in series.band]
        lower = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in reversed(series.band)]
        parts.append(tag("polygon", class_=f"band {series.style}", points=" ".join(upper + lower)))
    for run in _unbroken(series.points):
        places = [f"{x(at):.1f},{y(value):.1f}" for at, value in run]
        if len(places) > 1:
            parts.append(tag("polyline", class_=f"line {series.style}", points=" ".join(places)))
        if series.dots or len(places) == 1:
            parts += [tag("circle", class_=series.style, cx=x(at), cy=y(value), r=3) for at, value in run]
    return joined(parts)


def hover(series: Sequence[Curve], x: Axis, y: Axis) -> Markup:
    """Invisible strips, one for each x at which a series has a point; each tells the values there."""
    table: dict[float, list[str]] = {}
    for each in series:
        for at, value in each.points:
            if math.isfinite(value):
                table.setdefault(at, []).append(f"{each.name}: {y.form(value)}")
    places = sorted(table)
    edges = [
        x.scale.start,
        *((x.scale(a) + x.scale(b)) / 2 for a, b in itertools.pairwise(places)),
        x.scale.end,
    ]
    top, height = y.scale.end, y.scale.start - y.scale.end
    strips = []
    for index, at in enumerate(places):
        text = "\n".join([f"{x.title} {x.form(at)}", *table[at]])
        strip = tag("rect", x=edges[index], y=top, width=max(edges[index + 1] - edges[index], 0.5), height=height)
        cursor = tag("line", class_="cursor", x1=x.scale(at), x2=x.scale(at), y1=top, y2=top + height)
        strips.append(tag("g", tag("title", text), strip, cursor, class_="hit"))
    return joined(strips)


def mark(x: Scale, y: Scale, at: float, text: str) -> Markup:
    """A vertical line with a word at its top."""
    place = x(at)
    anchor = "end" if place > (x.start + 2 * x.end) / 3 else "middle"
    return joined(
        tag("line", class_="mark", x1=place, x2=place, y1=y.start, y2=y.end),
        tag("text", text, class_="note", x=place, y=y.end - 8, text_anchor=anchor),
    )


def _unbroken(points: Sequence[tuple[float, float]]) -> Iterable[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for at, value in points:
        if math.isfinite(value):
            run.append((at, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def line_chart(
    label: str,
    series: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    width: float,
    height: float,
    extra: Markup | None = None,
    named: bool = True,
) -> Markup:
    """A line chart, with a legend if `named`; the scales of `x` and `y` are laid out by `frame`."""
    drawing = svg(
        width, height, label, axes(x, y), *(line(each, x.scale, y.scale) for each in series), extra, hover(series, x, y)
    )
    names = [(each.style, each.name) for each in series]
    return joined(legend(names) if named and len(names) > 1 else None, drawing)


def frame(width: float, height: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """(left, right), (bottom, top) of the plot area of a chart with axes."""
    return (56, width - 12), (height - 44, 28)


def stacked_bar(label: str, parts: Sequence[tuple[str, str, float, str]], *, named: bool = True) -> Markup:
    """One bar of `parts` (class, name, share, tooltip), whose shares sum to 1, with the larger shares written in it.

    With a legend if `named`. Laid out in percent, so that it fills any width and its text keeps its size.
    """
    left, cells = 0.0, []
    for style, _, share, tip in parts:
        box = tag("rect", class_=style, x=f"{100 * left:.2f}%", y=0, width=f"{100 * share:.2f}%", height=34)
        text = None
        if share >= SHARE_WITH_TEXT:
            middle = f"{100 * (left + share / 2):.2f}%"
            text = tag("text", f"{100 * share:.0f} %", class_=f"inbar on-{style}", x=middle, y=22, text_anchor="middle")
        cells.append(tag("g", tag("title", tip), box, text))
        left += share
    drawing = tag("svg", *cells, role="img", aria_label=label, class_="chart bar", height=34)
    return joined(legend((style, name) for style, name, share, _ in parts if share > 0) if named else None, drawing)


def meter(share: float, style: str = "c0") -> Markup:
    """A small bar for a table cell, `share` 0..1 of its width."""
    return tag(
        "svg",
        tag("rect", class_="track", width=64, height=8, rx=2),
        tag("rect", class_=style, width=64 * min(max(share, 0), 1), height=8, rx=2),
        width=64,
        height=8,
        class_="meter",
        aria_hidden="true",
    )
