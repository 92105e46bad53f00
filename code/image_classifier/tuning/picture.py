"""The picture of a search: each hyperparameter against the objective, and how the trials learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classifier.contract.config import format_value
from image_classifier.contract.files import replacing
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.search import Categorical, Range

if TYPE_CHECKING:
    from image_classifier.tuning.trials import TrialRow

MOST_PANELS = 3  # hyperparameters shown; the learning curves come on top
# Okabe and Ito's colours, told apart by colour-blind people too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#777777"


def draw(path: Path, rows: Sequence[TrialRow], best: TrialRow, objective: str, space: Mapping[str, Range]) -> None:
    """Writes the picture as SVG. Raises PlatformError when it cannot be written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ranges = [name for name, spec in space.items() if not isinstance(spec, Categorical)]
    lists = [name for name in space if name not in ranges]
    panels = (ranges or lists)[:MOST_PANELS]
    colour_by = next((name for name in lists if name not in panels), None)
    colours = _colours(rows, space, colour_by)
    with mpl.rc_context(
        {"svg.hashsalt": "tuning", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(4.2 * (len(panels) + 1) + 1.6, 4.0), layout="constrained")
        axes = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, panels, strict=False):
            _against(axis, name, space[name], rows, best=best, colours=colours)
        axes[0].set_ylabel(f"{objective}, best epoch")
        _curves(axes[-1], rows, best, colours)
        _legend(figure, colour_by, colours, rows)
        direction = "highest" if METRIC_BY_NAME[objective].maximize else "lowest"
        figure.suptitle(f"{len(rows)} trials, {direction} {objective} {best.value:.4f} in trial {best.number}")
        with replacing(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def _colours(rows: Sequence[TrialRow], space: Mapping[str, Range], name: str | None) -> dict[int, str]:
    """Trial number -> colour, by the value of the hyperparameter `name`."""
    spec = space.get(name or "")
    if name is None or not isinstance(spec, Categorical):
        return {row.number: COLOURS[0] for row in rows}
    of_value = {value: COLOURS[index % len(COLOURS)] for index, value in enumerate(spec.values)}
    return {row.number: of_value.get(getattr(row.config, name), GREY) for row in rows}


def _against(
    axis: Any, name: str, spec: Range, rows: Sequence[TrialRow], *, best: TrialRow, colours: Mapping[int, str]
) -> None:
    """One hyperparameter against the objective at each trial's best epoch."""
    places = {value: index for index, value in enumerate(spec.values)} if isinstance(spec, Categorical) else None
    for row in rows:
        setting = getattr(row.config, name)
        x = places[setting] if places is not None else setting
        colour = colours[row.number]
        if row.best is None:
            axis.plot(x, 0.02, "x", color="#B00020", markersize=8, transform=axis.get_xaxis_transform(), clip_on=False)
            continue
        filled = row.value is not None
        axis.plot(x, row.best.value, "o", color=colour, fillstyle="full" if filled else "none", markersize=8, alpha=0.9)
        if row is best:
            axis.plot(x, row.best.value, "*", color=colour, markeredgecolor="black", markersize=18, zorder=5)
    if places is not None:
        axis.set_xticks(list(places.values()), [format_value(value) for value in places])
        axis.set_xlim(-0.5, len(places) - 0.5)
    elif not isinstance(spec, Categorical):
        axis.set_xscale("log" if spec.log else "linear")
        margin = (spec.high / spec.low) ** 0.04 if spec.log else (spec.high - spec.low) * 0.04
        axis.set_xlim(
            *((spec.low / margin, spec.high * margin) if spec.log else (spec.low - margin, spec.high + margin))
        )
    axis.set_xlabel(f"{name} (log scale)" if not isinstance(spec, Categorical) and spec.log else name)
    axis.grid(alpha=0.25)


def _curves(axis: Any, rows: Sequence[TrialRow], best: TrialRow, colours: Mapping[int, str]) -> None:
    """The objective after each epoch of each trial; the best one thick, the pruned ones dashed."""
    from matplotlib.ticker import MaxNLocator

    for row in rows:
        if not row.curve:
            continue
        epochs, values = zip(*row.curve, strict=True)
        axis.plot(
            epochs,
            values,
            "-" if row.value is not None else "--",
            marker="." if len(epochs) > 1 else "o",
            color=colours[row.number],
            linewidth=3 if row is best else 1.2,
            alpha=1.0 if row is best else 0.7,
        )
        if row is best:
            axis.annotate(
                f"trial {row.number}", (epochs[-1], values[-1]), xytext=(-6, 6), textcoords="offset points", ha="right"
            )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.set_title("each trial, epoch by epoch", fontsize=10)
    axis.grid(alpha=0.25)


def _legend(figure: Any, colour_by: str | None, colours: Mapping[int, str], rows: Sequence[TrialRow]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if colour_by is not None:
        seen = {getattr(row.config, colour_by): colours[row.number] for row in rows}
        for value, colour in sorted(seen.items(), key=lambda item: str(item[0]).rjust(12)):
            handles.append(Line2D([], [], marker="o", linestyle="", color=colour, label=f"{colour_by} {value}"))
    handles.append(
        Line2D([], [], marker="*", linestyle="", color="white", markeredgecolor="black", markersize=12, label="best")
    )
    if any(row.status == "Pruned" for row in rows):
        handles.append(Line2D([], [], marker="o", linestyle="--", fillstyle="none", color=GREY, label="pruned"))
    if any(row.best is None for row in rows):
        handles.append(Line2D([], [], marker="x", linestyle="", color="#B00020", label="failed"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
