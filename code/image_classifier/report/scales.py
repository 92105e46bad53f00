"""From numbers to places on a chart: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

FAR_APART = 100.0


@dataclass(frozen=True)
class Scale:
    """Maps low..high to start..end.

    Args:
        low, high: the domain, low < high; both above 0 when `log`.
        start, end: the range, in the chart's units; start > end for an axis that points up.
        log: equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` lies; values outside the domain are moved to its edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the domain, about `wanted` of them."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)


def fit(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    zero: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> Scale:
    """A scale whose domain holds all finite `values`, ending on round numbers where that is natural.

    Args:
        zero: the domain begins at 0.
        low, high: fix an end of the domain instead.
    """
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    least, most = min(kept, default=1.0 if log else 0.0), max(kept, default=1.0)
    if log:
        least, most = (least / 2, most * 2) if least == most else (least, most)
        return Scale(low or least, high or most, start, end, log=True)
    least = 0.0 if zero else least
    if least == most:
        least, most = (least - 0.5, most + 0.5) if least else (0.0, 1.0)
    step = _step(least, most, 5)
    bottom = math.floor(least / step + 1e-9) * step if low is None else low
    top = math.ceil(most / step - 1e-9) * step if high is None else high
    return Scale(bottom, top, start, end)


def spans_decades(values: Iterable[float]) -> bool:
    """Whether the values are positive and so far apart that a linear scale would show the largest only."""
    kept = [value for value in values if math.isfinite(value)]
    return bool(kept) and min(kept) > 0 and max(kept) / min(kept) > FAR_APART


def _step(low: float, high: float, wanted: int) -> float:
    """The round step (1, 2 or 5 times a power of ten) that cuts low..high into about `wanted` pieces."""
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor in (1, 2, 5, 10) if raw <= factor * power * (1 + 1e-9))


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    step = _step(low, high, wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            break
    every = max(1, math.ceil(len(ticks) / (wanted + 2)))
    return ticks[::every]
