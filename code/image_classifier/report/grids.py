"""Charts made of cells: layers over steps, and which class is taken for which."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from image_classifier.report.charts import svg
from image_classifier.report.formats import number, percent, short, text_width
from image_classifier.report.html import Markup, joined, tag

ROW_HEIGHT = 10.0  # of a heatmap
SHADES = 9  # q0 .. q8 in the style sheet
LABEL_CHARS = 22
LABEL_SIZE = 11.0  # pixels: `small` in chart.css; the rows of a heatmap are 10


def heatmap(
    label: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    what: str,
    width: float,
    zero: str = "zero",
    unpainted: Collection[tuple[int, int]] = (),
) -> Markup:
    """Values on a logarithmic colour ramp; numbers that are not finite have a colour of their own.

    Args:
        rows, columns: their names.
        values: one sequence a row; None or NaN where nothing was recorded.
        what: the quantity, for legend and tooltips.
        zero: class of a value that is exactly 0: `zero` alarms, `none` does not.
        unpainted: (row, column) of zeros that alarm nobody.
    """
    positive = [v for row in values for v in row if v is not None and math.isfinite(v) and v > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    shade = _shades(low, high, zero)
    left, top = 12 + max(text_width(short(row, LABEL_CHARS), LABEL_SIZE) for row in rows), 6.0
    wide = (width - left - 4) / len(columns)
    cells = []
    for i, row in enumerate(rows):
        at = top + i * ROW_HEIGHT
        shown = short(row, LABEL_CHARS)
        cells.append(tag("text", shown, class_="tick dense", x=left - 6, y=at + ROW_HEIGHT - 1.5, text_anchor="end"))
        for j, value in enumerate(values[i]):
            if value is None:
                continue
            tip = f"{row}\nsteps {columns[j]}\n{what} {number(value)}"
            kind = "none" if (i, j) in unpainted else shade(value)
            cells.append(
                Markup(
                    f'<rect class="{kind}" x="{left + j * wide:.1f}" y="{at:g}" width="{wide + 0.2:.1f}" '
                    f'height="{ROW_HEIGHT + 0.2:g}">{tag("title", tip)}</rect>'
                )
            )
    bottom = top + len(rows) * ROW_HEIGHT
    for j in {0, len(columns) // 4, len(columns) // 2, 3 * len(columns) // 4, len(columns) - 1}:
        at_x = left + (j + 0.5) * wide
        anchor = "start" if j == 0 else "end" if j == len(columns) - 1 else "middle"
        cells.append(tag("text", columns[j], class_="tick", x=at_x, y=bottom + 17, text_anchor=anchor))
    cells.append(tag("text", "training step", class_="title", x=width - 4, y=bottom + 35, text_anchor="end"))
    drawing = svg(width, bottom + 40, label, Markup("".join(cells)), class_="chart wide")
    return joined(ramp(low, high, what), tag("div", drawing, class_="scroll"))


def _shades(low: float, high: float, zero: str) -> Callable[[float], str]:
    span = math.log(high / low) if high > low else 1.0

    def shade(value: float) -> str:
        if not math.isfinite(value):
            return "bad"
        if value <= 0:
            return zero
        return f"q{min(int(SHADES * math.log(value / low) / span), SHADES - 1)}"

    return shade


def ramp(low: float, high: float, what: str) -> Markup:
    """The legend of a heatmap: the ramp between its two ends."""
    swatches = [tag("rect", class_=f"q{i}", x=16 * i, width=16, height=10) for i in range(SHADES)]
    bar = tag("svg", *swatches, width=16 * SHADES, height=10)
    return tag("p", f"{what}  {number(low)} ", bar, f" {number(high)}", class_="ramp", aria_hidden="true")


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]], *, width: float) -> Markup:
    """Rows are true classes, columns predicted ones; shades are shares of the row, the numbers are images."""
    size = len(classes)
    longest = max(text_width(short(name, LABEL_CHARS), LABEL_SIZE) for name in classes)
    left = 12 + longest
    side = min((width - left - 4) / size, 54.0)
    top = 12 + longest
    cells = []
    for i, name in enumerate(classes):
        middle = (i + 0.5) * side
        shown = short(name, LABEL_CHARS)
        if side >= 11 or i % max(1, math.ceil(11 / side)) == 0:
            cells.append(tag("text", shown, class_="tick small", x=left - 6, y=top + middle + 4, text_anchor="end"))
            turn = f"translate({left + middle + 4:.1f},{top - 6:.1f}) rotate(-90)"
            cells.append(tag("text", shown, class_="tick small", transform=turn))
        total = sum(counts[i])
        for j, images in enumerate(counts[i]):
            if images:
                cells.append(_cell(classes, i, j, images, total, x=left + j * side, y=top + i * side, side=side))
    outline = tag("rect", class_="outline", x=left, y=top, width=size * side, height=size * side)
    label = f"Confusion matrix of {size} classes: rows are true classes, columns predicted ones"
    drawn = left + size * side + 4
    return svg(drawn, top + size * side + 4, label, outline, *cells, class_="chart matrix")


def _cell(
    classes: Sequence[str], i: int, j: int, images: int, total: int, *, x: float, y: float, side: float
) -> Markup:
    share = images / max(total, 1)
    shade = min(int(share * 5), 4)
    tip = f"{classes[i]} taken for {classes[j]}\n{images} of {total} images, {percent(share)}"
    if i == j:
        tip = f"{classes[i]} recognised\n{images} of {total} images, {percent(share)}"
    kind = f"{'hit' if i == j else 'miss'}{shade}"
    text = (
        tag("text", images, class_=f"count on-{kind}", x=x + side / 2, y=y + side / 2 + 4, text_anchor="middle")
        if side >= 18
        else None
    )
    return tag(
        "g", tag("title", tip), tag("rect", class_=kind, x=x + 0.5, y=y + 0.5, width=side - 1, height=side - 1), text
    )
