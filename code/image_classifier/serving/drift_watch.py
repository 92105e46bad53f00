"""Whether what the endpoint is asked looks like what its model was validated on: beside the requests, not in them.

workers -> rings in shared memory -> the server program, four times a second -> at each look: a metric, and one
line in the log when something departs from the model's reference, or is back
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from image_classifier.serving.scratch import Scratch
from image_classifier.serving.sightings import SightingReader
from image_classifier.vision.drift import STATISTICS, Histogram

MIN_ANSWERS = 200  # to a look: with fewer, chance hides a shift in hundreds of validation photographs
LOOK_S = 60.0  # between two looks of a busy endpoint, which takes all answers since the last one
MAX_ANSWERS = 10_000  # more tell no more; the latest count

_log = logging.getLogger("image_classifier.serving")


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One statistic's population stability index at the last look, and the limit that it is held against."""

    index: float
    limit: float

    @property
    def is_one(self) -> bool:
        return self.index > self.limit


class DriftWatch:
    """Counts answers and compares them with the model's reference. Use from one thread; the figures may be read by any.

    Args:
        reference: of the model; empty of an older one, and then nothing is watched.
        look_s: seconds between two looks.
    """

    def __init__(self, scratch: Scratch, reference: Mapping[str, Histogram], *, look_s: float = LOOK_S) -> None:
        self._scratch = scratch
        self._reference = reference
        self._look_s = look_s
        self._readers: dict[int, SightingReader] = {}
        self._waiting: list[NDArray[np.float64]] = []
        self._num_waiting = 0
        self._looked = -math.inf  # of time.monotonic(): the first look is as soon as there is enough to see
        self.num_answers = 0  # that were looked at
        self.found: Mapping[str, Departure] = {}  # at the last look, by statistic; empty before the first

    def begin(self) -> None:
        """What was answered until now does not count: it was the program that asked."""
        self._find_rings()
        for reader in self._readers.values():
            reader.skip()

    def read(self) -> None:
        """Takes what workers have answered since the last call; looks at it when it is enough. Raises nothing."""
        if not self._reference:
            return
        try:
            self._read()
        except Exception:  # no server ends for want of a watch
            _log.exception("drift: the watch failed and is over")
            self._reference = {}

    def _read(self) -> None:
        self._find_rings()
        for reader in self._readers.values():
            if len(rows := reader.read()):
                self._waiting.append(rows)
                self._num_waiting += len(rows)
        if self._num_waiting >= MIN_ANSWERS and time.monotonic() - self._looked >= self._look_s:
            self._look(np.concatenate(self._waiting)[-MAX_ANSWERS:])
            self._waiting, self._num_waiting, self._looked = [], 0, time.monotonic()

    def _look(self, answers: NDArray[np.float64]) -> None:
        before = {name for name, each in self.found.items() if each.is_one}
        self.num_answers += len(answers)
        self.found = {
            name: Departure(index=known.stability_index(column), limit=known.limit(len(column)))
            for name, column in zip(STATISTICS, answers.T, strict=True)
            if (known := self._reference.get(name)) is not None
        }
        now = {name: each for name, each in self.found.items() if each.is_one}
        if now.keys() - before:
            said = ", ".join(f"{name} {each.index:.2f} (limit {each.limit:.2f})" for name, each in now.items())
            _log.warning(
                "drift: the last %d answers depart from the model's validation images, population stability index: %s",
                len(answers),
                said,
            )
        elif before and not now:
            _log.warning("drift: the last %d answers are like the model's validation images again", len(answers))

    def _find_rings(self) -> None:
        """Opens those of new workers, and closes those of workers that have ended."""
        rings = self._scratch.rings()
        self._readers = {process: reader for process, reader in self._readers.items() if process in rings}
        for process in rings.keys() - self._readers.keys():
            with suppress(OSError, ValueError):  # it has just ended, or is just being made
                self._readers[process] = SightingReader(rings[process])
