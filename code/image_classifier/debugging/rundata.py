"""What is known of a run, in one shape, whoever observed it: the recorder in the job, a saved trial, or saved files.

A rule reads nothing else. Values are rounded to float32, which every one of the three keeps exactly, so that a rule
says the same of all three.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from array import array
from collections.abc import Iterator
from ctypes import c_float

import numpy as np
from numpy.typing import NDArray

from image_classifier.debugging.schema import (
    PHASES,
    ClassCounts,
    JobFacts,
    Mode,
    Statistics,
    StatisticsRecord,
    StepRecord,
    SystemSample,
)

Floats = NDArray[np.float64]
STEP_VALUES = ("loss", "clean_loss", "seconds", "images", *PHASES)


class Series:
    """Numbers and the step (or, for system metrics, the second) of each, in order; grows in constant time."""

    def __init__(self) -> None:
        self._at = array("d")
        self._values = array("d")

    def add(self, at: float, value: float) -> None:
        """One number more."""
        self._at.append(at)
        self._values.append(value)

    @property
    def steps(self) -> Floats:
        """(n,) float64: the steps, or Unix seconds of a system metric. A copy."""
        return np.array(self._at, np.float64)

    @property
    def values(self) -> Floats:
        """(n,) float64, of float32 precision but for times and durations. A copy."""
        return np.array(self._values, np.float64)

    def __len__(self) -> int:
        return len(self._values)


EMPTY = Series()


class RunData:
    """Series of one run, filled record by record and read by rules.

    Threads may fill it together; who reads it meanwhile holds `lock`.

    Args:
        job: the configuration and the machine; rules name its hyperparameters in their advice.
    """

    def __init__(self, job: JobFacts) -> None:
        self.job = job
        self.classes: list[ClassCounts] = []
        self._steps: dict[tuple[Mode, str], Series] = {}
        self._epochs: dict[Mode, Series] = {}
        self._times: dict[Mode, Series] = {}
        self._tensors: dict[str, dict[str, dict[str, Series]]] = {}
        self._system: dict[tuple[str, str, str], Series] = {}
        self._last_time = -math.inf
        self.lock = threading.RLock()

    def add_step(self, record: StepRecord) -> None:
        """One step more, later than those before it."""
        with self.lock:
            self._add_step(record)

    def _add_step(self, record: StepRecord) -> None:
        timed = record.time > 0  # smdebug keeps no times
        for name in STEP_VALUES:
            value = getattr(record, name)
            if value is not None and (timed or not name.endswith(("seconds", "_s"))):
                self._steps.setdefault((record.mode, name), Series()).add(record.step, _float32(value))
        self._epochs.setdefault(record.mode, Series()).add(record.step, record.epoch)
        if timed:
            self._times.setdefault(record.mode, Series()).add(record.step, record.time)
            self.hear(record.time)

    def add_statistics(self, record: StatisticsRecord) -> None:
        """The statistics of one training step."""
        with self.lock:
            for field in dataclasses.fields(StatisticsRecord):
                if field.name != "step":
                    self._add_tensors(field.name, record.step, getattr(record, field.name))

    def add_classes(self, record: ClassCounts) -> None:
        """The classes of one epoch."""
        self.classes.append(record)

    def add_system(self, sample: SystemSample) -> None:
        """One system metric at one moment."""
        key = (sample.dimension, sample.node, sample.name)
        with self.lock:
            self._system.setdefault(key, Series()).add(sample.time, _float32(sample.value))
            self.hear(sample.time)

    def hear(self, time: float) -> None:
        """The run was observed at that time, with nothing to add."""
        self._last_time = max(self._last_time, time)

    def _add_tensors(self, kind: str, step: int, statistics: Statistics) -> None:
        tensors = self._tensors.setdefault(kind, {})
        for tensor, values in statistics.items():
            of_tensor = tensors.setdefault(tensor, {})
            for statistic, value in values.items():
                of_tensor.setdefault(statistic, Series()).add(step, _float32(value))

    @property
    def last_time(self) -> float:
        """Unix seconds of the newest observation, -inf before the first."""
        return self._last_time

    def step(self, mode: Mode, name: str) -> Series:
        """One of STEP_VALUES over the steps of a mode."""
        return self._steps.get((mode, name), EMPTY)

    def epochs(self, mode: Mode) -> Series:
        """The epoch of each step, from 1."""
        return self._epochs.get(mode, EMPTY)

    def times(self, mode: Mode) -> Series:
        """When each step ended, Unix seconds."""
        return self._times.get(mode, EMPTY)

    def tensors(self, kind: str, statistic: str) -> Iterator[tuple[str, Series]]:
        """Name and series of every tensor of a kind (a field of StatisticsRecord) that has the statistic.

        In the natural order of the names, which is not that of the network: smdebug does not keep that.
        """
        tensors = self._tensors.get(kind, {})
        for tensor in sorted(tensors, key=_natural):
            if statistic in tensors[tensor]:
                yield tensor, tensors[tensor][statistic]

    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensors there are statistics of."""
        return tuple(sorted(kind for kind, tensors in self._tensors.items() if tensors))

    def statistics(self, kind: str, tensor: str) -> dict[str, Series]:
        """All statistics of one tensor."""
        return self._tensors.get(kind, {}).get(tensor, {})

    def system(self, dimension: str) -> dict[str, Series]:
        """`node/name` -> values over time, in the order of nodes and names."""
        found = {(node, name): series for (dim, node, name), series in self._system.items() if dim == dimension}
        return {f"{node}/{name}": found[node, name] for node, name in sorted(found)}

    def dimensions(self) -> tuple[str, ...]:
        """The system metrics there are, sorted."""
        return tuple(sorted({dimension for dimension, _, _ in self._system}))


def of_epochs(run: RunData, mode: Mode, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Epochs, and the mean of a step value over each one's images."""
    series, images, epochs = run.step(mode, name), run.step(mode, "images"), run.epochs(mode)
    if not len(series) == len(images) == len(epochs) or len(series) == 0:
        return np.empty(0, np.int64), np.empty(0)
    numbers, place = np.unique(epochs.values.astype(np.int64), return_inverse=True)
    weights = np.bincount(place, images.values)
    return numbers, np.bincount(place, series.values * images.values) / np.maximum(weights, 1)


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts `2.weight` before `10.weight`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _float32(value: float) -> float:
    return c_float(value).value  # infinite where float32 is; numpy's takes ten times as long
