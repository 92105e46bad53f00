"""What answers and pictures usually look like, and whether later ones still do.

At the end of a training eight numbers of each of some validation photographs (`STATISTICS`) become histograms in the
manifest; a server counts the same numbers of what it is asked into the same bins. They are compared by the population
stability index, sum (p - q) ln(p / q) over the bins. By custom 0.25 is a shift that matters (Siddiqi 2006, "Credit Risk
Scorecards"); of few photographs chance alone makes more of it, so that chance has to be exceeded too: where both
samples are from one distribution, the index over (1/n + 1/m) has the chi-square distribution of bins - 1 degrees of
freedom (Yurdakul and Naranjo 2020, "Statistical properties of the population stability index").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATISTICS = (
    "top1",  # index of the most probable class
    "confidence",  # its probability
    "mean_red",  # 0..255, as the next five
    "mean_green",
    "mean_blue",
    "contrast_red",  # standard deviation over the picture
    "contrast_green",
    "contrast_blue",
)
GRID = 32  # rows and columns of a picture that are looked at
MIN_PHOTOS = 20  # fewer tell nothing
MAX_PHOTOS = 10**9
MAX_BINS = 10
BIN_PHOTOS = 5  # in each bin at least: below, the index is not distributed like chi-square (Cochran 1954)
LARGE_SHIFT = 0.25
CHANCE = 1e-6  # of a false alarm, for each statistic and look
_PRIOR = 0.5  # answers added to each bin (Jeffreys): no logarithm of nothing


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts in bins of about equally many photographs. Raises ValueError when the numbers make no histogram.

    Args:
        edges: between the bins, rising; a value that equals one lies above it.
        counts: one more than edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or len(self.counts) > MAX_BINS:
            raise ValueError("a histogram's counts do not fit its edges")
        if not np.isfinite(self.edges).all() or (np.diff(self.edges) <= 0).any():
            raise ValueError("a histogram's edges do not rise")
        if any(type(count) is not int or count < 0 for count in self.counts):
            raise ValueError("a histogram's counts are none")
        if not MIN_PHOTOS <= sum(self.counts) <= MAX_PHOTOS:
            raise ValueError("a histogram's counts are none")

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Histogram:
        """Of (n,) values, n >= MIN_PHOTOS."""
        bins = min(MAX_BINS, len(values) // BIN_PHOTOS)
        edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="higher"))
        edges = edges[edges > values.min()]  # below the smallest value there is nothing
        if not len(edges):  # all values are the same: larger ones would lie in its bin
            edges = np.array([values[0], np.nextafter(values[0], np.inf)])
        return cls(edges=tuple(map(float, edges)), counts=tuple(_count(edges, values)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Histogram:
        """From what `dataclasses.asdict` gives. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(edges=tuple(float(edge) for edge in values["edges"]), counts=tuple(values["counts"]))

    def stability_index(self, values: NDArray[np.float64]) -> float:
        """The population stability index of other values, (n,), n >= 1."""
        usual, now = (
            (np.asarray(counts) + _PRIOR) / (sum(counts) + _PRIOR * len(counts))
            for counts in (self.counts, _count(self.edges, values))
        )
        return float(np.sum((now - usual) * np.log(now / usual)))

    def limit(self, num_values: int) -> float:
        """What the index of `num_values` values must exceed to be a departure."""
        freedom = max(1, len(self.edges))
        # the chi-square quantile by Wilson and Hilferty (1931)
        spread = 2 / (9 * freedom)
        quantile = freedom * (1 - spread + NormalDist().inv_cdf(1 - CHANCE) * math.sqrt(spread)) ** 3
        return max(LARGE_SHIFT, quantile * (1 / num_values + 1 / sum(self.counts)))


def reference_of(statistics: NDArray[np.float64]) -> dict[str, Histogram]:
    """(n, 8) float64, in the order of STATISTICS -> a histogram of each; empty of fewer than MIN_PHOTOS."""
    if len(statistics) < MIN_PHOTOS or not np.isfinite(statistics).all():
        return {}
    return {name: Histogram.of(column) for name, column in zip(STATISTICS, statistics.T, strict=True)}


def sample(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., H, W, 3) -> (..., GRID, GRID, 3): the pixels of a grid, which tell mean and contrast well enough."""
    rows, columns = (np.arange(GRID) * side // GRID for side in pixels.shape[-3:-1])
    return pixels[..., rows[:, None], columns[None, :], :]


def picture_statistics(samples: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, GRID, GRID, 3) -> (n, 6): three means and three standard deviations, 0..255."""
    return np.concatenate([samples.mean((1, 2)), samples.std((1, 2))], axis=1)


def _count(edges: Sequence[float] | NDArray[np.float64], values: NDArray[np.float64]) -> list[int]:
    found: list[int] = np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1).tolist()
    return found
