"""A tuning run as parallel coordinates: one line a trial, one axis a hyperparameter, the objective last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from image_classifier.report.charts import svg
from image_classifier.report.formats import number
from image_classifier.report.grids import SHADES
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.scales import Scale, fit

MAX_CHOICES = 6
LOG_FROM_RATIO = 20  # values that span more than this are shown on a logarithmic axis


@dataclass(frozen=True)
class TrialLine:
    """One line: the trial's number, its values by axis, and its objective (the last axis)."""

    number: int
    values: Mapping[str, float | str]
    objective: float


class _Column:
    """One vertical axis: numbers on a scale; words and a few whole numbers, such as batch sizes, evenly spread."""

    def __init__(self, name: str, values: Sequence[float | str], top: float, bottom: float) -> None:
        self.name = name
        self._scale: Scale | None = None
        numbers = [float(value) for value in values if not isinstance(value, str)]
        distinct: list[Any] = sorted(set(numbers)) if len(numbers) == len(values) else sorted({str(v) for v in values})
        choices = len(distinct) <= MAX_CHOICES and all(isinstance(each, str) or each.is_integer() for each in distinct)
        if not choices and len(numbers) == len(values):
            log = min(numbers) > 0 and max(numbers) / min(numbers) > LOG_FROM_RATIO
            self._scale = fit(numbers, bottom, top, log=log)
            self.ticks: list[tuple[float, str]] = [(self._scale(tick), number(tick)) for tick in self._scale.ticks(4)]
        else:
            gap = (bottom - top) / max(len(distinct) - 1, 1)
            places = {each: bottom - index * gap for index, each in enumerate(distinct)}
            self._places: Mapping[object, float] = places if len(distinct) > 1 else {distinct[0]: (top + bottom) / 2}
            self.ticks = [(place, _told(each)) for each, place in self._places.items()]

    def __call__(self, value: float | str) -> float:
        if self._scale is not None:
            return self._scale(float(value))
        return self._places[value if value in self._places else str(value)]


def parallel_coordinates(
    trials: Sequence[TrialLine],
    names: Sequence[str],
    objective: str,
    *,
    maximize: bool,
    best: int | None,
    width: float,
    height: float,
) -> Markup:
    """The chart: better trials in stronger colour and on top, number `best` thick."""
    top, bottom, side = 40.0, height - 16, 60.0
    columns = [_Column(name, [trial.values[name] for trial in trials], top, bottom) for name in names]
    columns.append(_Column(objective, [trial.objective for trial in trials], top, bottom))
    gap = (width - 2 * side) / (len(columns) - 1)
    ranked = sorted(trials, key=lambda trial: trial.objective, reverse=not maximize)
    ranked.sort(key=lambda trial: trial.number == best)  # drawn last, so on top
    parts = []
    for place, trial in enumerate(ranked):
        values = [*(trial.values[name] for name in names), trial.objective]
        points = " ".join(
            f"{side + i * gap:.1f},{column(value):.1f}"
            for i, (column, value) in enumerate(zip(columns, values, strict=True))
        )
        shade = f"q{round((SHADES - 1) * place / max(len(ranked) - 1, 1))}"
        told = [
            f"trial {trial.number}",
            *(f"{name}: {_told(trial.values[name])}" for name in names),
            f"{objective}: {number(trial.objective, 4)}",
        ]
        drawn = tag("polyline", class_=f"trial {shade}" + (" best" if trial.number == best else ""), points=points)
        wide = tag("polyline", class_="catch", points=points)
        parts.append(tag("g", tag("title", "\n".join(told)), drawn, wide, class_="hit-line"))
    for i, column in enumerate(columns):
        parts.append(_axis(column, side + i * gap, top, bottom, last=i == len(columns) - 1))
    label = f"Parallel coordinates of {len(trials)} trials over {', '.join([*names, objective])}"
    return svg(width, height, label, joined(parts), class_="chart wide")


def _told(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _axis(column: _Column, x: float, top: float, bottom: float, *, last: bool) -> Markup:
    marks = [
        joined(
            tag("line", class_="axis", x1=x - 4, x2=x, y1=place, y2=place),
            tag("text", text, class_="tick halo", x=x - 7, y=place + 4, text_anchor="end"),
        )
        for place, text in column.ticks
    ]
    anchor = "end" if last else "middle"
    return joined(
        tag("line", class_="axis strong", x1=x, x2=x, y1=top, y2=bottom),
        *marks,
        tag("text", column.name, class_="title strong", x=x, y=top - 18, text_anchor=anchor),
    )
