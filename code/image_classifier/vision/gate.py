"""What a coarser number format costs a model: measured once, at the end of its training, and kept in its manifest.

A server takes the fastest format that it can compute among those whose figures are good enough, and holds the engine to
its golden samples within what was measured for that format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.vision.confidence import calibration_error, confidence_bins, exact_interval

FLOAT32, BFLOAT16, FLOAT16, INT8 = "float32", "bfloat16", "float16", "int8"

MIN_PHOTOS = 20  # fewer tell nothing of a hundredth
MIN_AGREEMENT = 0.99
MAX_ACCURACY_LOSS = 0.005
FEW_PHOTOS = 1000  # below, a sentence shows how much chance there is in a share

FLOAT32_TOLERANCE = 0.001
"""Largest difference of a probability from the recorded one for an engine that computes in float32: another engine
moves it by less than 1e-4 (measured on ResNet50)."""
UNMEASURED_TOLERANCE = 0.05  # of a 16-bit format for whose cost a model has no figure, where somebody asks for it
MAX_TOLERANCE = 0.25  # with more, an answer proves nothing
_MARGIN = 1.5  # the photographs of the gate are others than the golden samples
_ROUNDING = 1e-9  # one of 200 is half a point, whatever floats make of it


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Answers in one number format beside those in float32, for photographs that chose no range.

    Args:
        photos: how many.
        agreement: share with the same most probable class, 0..1.
        accuracy_before, accuracy_after: in float32 and in this format, 0..1.
        largest, median: over the photographs, of the largest change of a probability in each.
        calibration_before, calibration_after: expected calibration error, 0..1.
        method: how the ranges were chosen, for int8; else empty.
    """

    photos: int
    agreement: float
    accuracy_before: float
    accuracy_after: float
    largest: float
    median: float
    calibration_before: float
    calibration_after: float
    method: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Gate:
        """From what `dataclasses.asdict` gives. Raises KeyError, TypeError or ValueError for anything else."""
        numbers = {each.name: float(values[each.name]) for each in dataclasses.fields(cls) if each.type == "float"}
        if not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers.values()):
            raise ValueError("a figure of a gate is no share")
        photos, method = values["photos"], values["method"]
        if type(photos) is not int or photos < 1 or not isinstance(method, str):
            raise ValueError("a gate has no photographs")
        return cls(photos=photos, method=method, **numbers)

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability of a golden sample from the recorded one."""
        return min(MAX_TOLERANCE, _MARGIN * self.largest + FLOAT32_TOLERANCE)

    @property
    def refusal(self) -> str:
        """Why no server should take this format of its own accord, with the figure; empty when it may."""
        if self.photos < MIN_PHOTOS:
            return f"it was measured on {self.photos} photos, {MIN_PHOTOS} are needed"
        if self.agreement < MIN_AGREEMENT:
            return f"{self.answers}, {MIN_AGREEMENT:.0%} are needed"
        loss = self.accuracy_before - self.accuracy_after
        if loss > MAX_ACCURACY_LOSS + _ROUNDING:
            low, high = (100 * end for end in exact_interval(loss * self.photos, self.photos))
            chance = f" ({low:.1f} .. {high:.1f})" if self.photos < FEW_PHOTOS else ""
            points, most = 100 * loss, 100 * MAX_ACCURACY_LOSS
            return f"accuracy falls by {points:.1f} points{chance} on {self.photos} photos, {most:g} are allowed"
        return ""

    @property
    def answers(self) -> str:
        """How often the answer is float32's, in words."""
        low, high = exact_interval(self.agreement * self.photos, self.photos)
        chance = f" ({low:.1%} .. {high:.1%})" if self.photos < FEW_PHOTOS else ""
        return f"{self.agreement:.1%} of {self.photos} photos{chance} have float32's answer"

    @property
    def sentence(self) -> str:
        """All figures, for a log."""
        before, after = self.calibration_before, self.calibration_after
        return (
            f"{self.answers}; accuracy {self.accuracy_before:.3f} -> {self.accuracy_after:.3f}, a probability moves by "
            f"up to {self.largest:.3f} (median {self.median:.4f}), calibration error {before:.3f} -> {after:.3f}"
        )


def measure(
    exact: NDArray[np.float64], rounded: NDArray[np.float64], labels: NDArray[np.int64], method: str = ""
) -> Gate:
    """Compares answers, (n, num_classes) each, n >= 1, of which the true classes are `labels`, (n,).

    What is not a number counts as an answer that is as wrong as can be.
    """
    rounded = np.where(np.isfinite(rounded), rounded, 0.0)
    changes = np.abs(exact - rounded).max(1)
    before, after = exact.argmax(1), rounded.argmax(1)
    return Gate(
        photos=len(labels),
        agreement=float((before == after).mean()),
        accuracy_before=float((before == labels).mean()),
        accuracy_after=float((after == labels).mean()),
        largest=float(changes.max()),
        median=float(np.median(changes)),
        calibration_before=calibration_error(confidence_bins(exact.max(1), before == labels)),
        calibration_after=calibration_error(confidence_bins(rounded.max(1), after == labels)),
        method=method,
    )
