"""How far a measured share can be trusted, and whether it is better than guessing; and how far probabilities can.

The interval is Clopper and Pearson's (1934), the exact one of a binomial share. A narrower one, Wilson's, is right on
average over shares, but its lower end is too high too often where guessing is: of networks that guess among 133 classes
on 133 images it would call 8 in 100 better than guessing, of those that guess among 5 classes on 100 images 3.4. Here
at most 2.5 in 100 are, whatever the number of classes and images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95  # of all intervals
CALIBRATION_BINS = 15  # of Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2
_TINY = 1e-300
_MAX_TERMS = 10_000


def exact_interval(hits: float, total: int, looks: int = 1) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `total` independent trials.

    Args:
        hits: rounded to a whole number, and to 0..total.
        looks: out of so many shares measured this one was chosen because it was the best: all of their intervals hold
            together with 95 % (Bonferroni).
    """
    if total <= 0:
        return 0.0, 1.0
    count = min(max(round(hits), 0), total)
    tail = (1 - LEVEL) / 2 / max(looks, 1)
    low = 0.0 if count == 0 else _solve(lambda share: beta_cdf(share, count, total - count + 1) - tail)
    high = 1.0 if count == total else _solve(lambda share: beta_cdf(share, count + 1, total - count) - (1 - tail))
    return low, high


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), to 1e-12."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # there the fraction of the other side converges fast
        return 1.0 - beta_cdf(1 - x, b, a)
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value, c, d = 1.0, 1.0, 0.0  # Lentz's method
    for term in range(_MAX_TERMS):
        m = term // 2
        if term == 0:
            factor = 1.0
        elif term % 2 == 0:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _away_from_zero(1 + factor * d)
        c = _away_from_zero(1 + factor / c)
        value *= c * d
        if term and abs(c * d - 1) < 1e-13:
            break
    return scale * (value - 1)


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _solve(rising: Callable[[float], float]) -> float:
    """Where a function that rises over 0..1 crosses 0, to 1e-15 and better."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """The answers whose probability lies in (low, high]; the first bin has 0 too.

    Args:
        images: how many.
        confidence: their mean probability.
        accuracy: the share of them that is right.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def confidence_bins(
    probability: NDArray[np.floating], right: NDArray[np.bool_], num_bins: int = CALIBRATION_BINS
) -> list[ConfidenceBin]:
    """The answers by the probability of the class they name, in bins of equal width; bins without answers are left out.

    Args:
        probability: (n,) of the named class, 0..1.
        right: (n,) whether it is the true one.
    """
    confidence = np.nan_to_num(np.asarray(probability, np.float64))  # of a network that diverged
    place = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    return [
        ConfidenceBin(
            low=index / num_bins,
            high=(index + 1) / num_bins,
            images=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for index in range(num_bins)
        if (inside := place == index).any()
    ]


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3): the mean of
    |accuracy - confidence| over the bins, weighted by their images. 0..1; 0 without an answer.

    Of few images even a perfectly calibrated network has one above 0: within a bin of n images an accuracy moves by
    chance by about 0.4 / sqrt(n).
    """
    total = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / max(total, 1)
