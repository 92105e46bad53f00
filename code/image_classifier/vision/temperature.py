"""How sure a model may be of its answers: the number that its logits are divided by before they become probabilities.

Fitted on validation images (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2): above 1 it takes
confidence from a network that is surer than it is right, below 1 it gives some to one that is less sure. The order of
the classes, and so the accuracy, stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.vision.confidence import calibration_error, confidence_bins

NONE = 1.0  # the temperature that changes nothing
MIN_PHOTOS = 20  # fewer tell nothing of a hundredth
LOWEST, HIGHEST = 0.05, 20.0
_SPREAD = math.log(2)  # of the logarithm, before any photo was seen: photos that are all right say no more than "surer"
_ROUNDING = 1e-9  # 0.7 of 10 is 7, whatever floats make of it
_HALVINGS = 40  # of the interval of the logarithm: to 1e-11


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a temperature does to the answers to some images.

    Args:
        temperature: LOWEST .. HIGHEST; NONE where the photos were too few.
        photos: that it was fitted on.
        loss_before, loss_after: mean negative log-likelihood of the labels (nats), without and with it.
        error_before, error_after: their expected calibration error, 0..1.
    """

    temperature: float
    photos: int
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float

    def to_json(self) -> dict[str, Any]:
        """As metrics.json has it."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The figures, for a log."""
        return (
            f"temperature {self.temperature:.3f} from {self.photos} validation photos: loss {self.loss_before:.3f} -> "
            f"{self.loss_after:.3f}, calibration error {self.error_before:.3f} -> {self.error_after:.3f}"
        )


def probabilities_of(logits: NDArray[np.floating], temperature: float = NONE) -> NDArray[np.float64]:
    """(..., num_classes) logits -> as many float64, of which each row sums to 1."""
    numbers = np.asarray(logits, np.float64)
    exponentials = np.exp((numbers - numbers.max(-1, keepdims=True)) / temperature)
    result: NDArray[np.float64] = exponentials / exponentials.sum(-1, keepdims=True)
    return result


def calibrate(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Calibration:
    """The temperature of the least negative log-likelihood, and what it does.

    Where every answer is right the likelihood grows for ever as the temperature falls; a normal prior of its logarithm
    around 0, with a standard deviation of ln 2, holds it. The likelihood is never worse than with temperature 1.
    Rows that are not finite count for nothing.

    Args:
        logits: (n, num_classes).
        labels: (n,), the true classes.
    """
    finite = np.isfinite(logits).all(1)
    rows, classes = np.asarray(logits, np.float64)[finite], np.asarray(labels, np.int64)[finite]
    temperature = _fitted(rows, classes) if len(rows) >= MIN_PHOTOS else NONE
    before, after = _figures(rows, classes, NONE), _figures(rows, classes, temperature)
    if after[0] > before[0]:  # by rounding alone
        temperature, after = NONE, before
    return Calibration(
        temperature=temperature,
        photos=len(rows),
        loss_before=before[0],
        loss_after=after[0],
        error_before=before[1],
        error_after=after[1],
    )


def abstain_below(logits: NDArray[np.floating], temperature: float, coverage: float) -> float:
    """The probability that the most probable class must have for a model to answer that share of images like these: in
    the middle between the least sure that is answered and the next one, so that a server's rounding moves neither.

    Args:
        logits: (n, num_classes), of validation images.
        coverage: share of them that is answered, the surest, 0..1; 0 for a model that always answers.

    Returns:
        0 where it always answers, also where the photos are fewer than MIN_PHOTOS.
    """
    rows = np.asarray(logits, np.float64)
    rows = rows[np.isfinite(rows).all(1)]
    if coverage <= 0 or len(rows) < MIN_PHOTOS:
        return 0.0
    confidence = np.sort(probabilities_of(rows, temperature).max(1))[::-1]
    confidence = np.append(confidence, 1 / rows.shape[1])  # nobody is less sure
    answered = max(1, math.ceil(min(coverage, 1.0) * len(rows) - _ROUNDING))
    return float(confidence[answered - 1 : answered + 1].mean())


def usable(temperature: float) -> bool:
    """Whether a number can be a model's temperature."""
    return LOWEST <= temperature <= HIGHEST  # not a NaN


def parse_calibration(values: Any) -> Mapping[str, float]:
    """What is sound of `Calibration.to_json`; empty for anything else."""
    names = Calibration.__dataclass_fields__
    if not isinstance(values, dict) or not names.keys() <= values.keys():
        return {}
    found = {name: values[name] for name in names}
    sound = all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in found.values())
    return found if sound and usable(found["temperature"]) else {}


def _fitted(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Where the slope of the log-likelihood, by the logarithm of the temperature, crosses 0: by halving."""
    own = logits[np.arange(len(labels)), labels]

    def slope(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        expected = (probabilities_of(logits, temperature) * logits).sum(1)
        return float((own - expected).sum()) / temperature + log_temperature / _SPREAD**2

    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return min(max(math.exp((low + high) / 2), LOWEST), HIGHEST)


def _figures(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> tuple[float, float]:
    """Mean negative log-likelihood and expected calibration error; zeros without a photo."""
    if not len(logits):
        return 0.0, 0.0
    scaled = logits / temperature
    most = scaled.max(1)
    totals = most + np.log(np.exp(scaled - most[:, None]).sum(1))
    loss = float((totals - scaled[np.arange(len(labels)), labels]).mean())
    confidence = np.exp(most - totals)
    return loss, calibration_error(confidence_bins(confidence, scaled.argmax(1) == labels))
