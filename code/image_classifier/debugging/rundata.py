"""What is known of a run, in one shape, whoever observed it: the recorder in the job, a saved trial, or saved files.

Rules and the report read nothing else of a run's steps, tensors and machine; what both compute of it is measures.py.
Values are rounded to float32, which every one of the three keeps exactly, so that a rule says the same of all three.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
Mask = NDArray[np.bool_]
DURATIONS = ("seconds", "thread_s", *PHASES)
STEP_VALUES = ("loss", "clean_loss", "images", *DURATIONS)
KINDS = tuple(field.name for field in dataclasses.fields(StatisticsRecord) if field.name != "step")
_COLUMNS = ("step", "epoch", "time", *STEP_VALUES)
_facts_of = operator.attrgetter(*_COLUMNS)


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers and the step (or, for system metrics, the second) of each, in order.

    Args:
        steps: (n,) float64: the steps, or Unix seconds of a system metric.
        values: (n,) float64, of float32 precision but for times.
    """

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    def where(self, keep: Mask) -> Series:
        """A part of it; `keep` is (n,) bool."""
        return Series(self.steps[keep], self.values[keep])


EMPTY = Series(np.empty(0), np.empty(0))


class _Growing:
    """A series that grows in constant time."""

    def __init__(self) -> None:
        self._at = array("d")
        self._values = array("f")

    def add(self, at: float, value: float) -> None:
        """One number more."""
        self._at.append(at)
        self._values.append(value)

    @property
    def series(self) -> Series:
        """What there is by now. A copy."""
        return Series(np.array(self._at), np.array(self._values, np.float64))

    def sort(self) -> float:
        """Puts the numbers in order. Returns the last step or second."""
        at = np.array(self._at)
        if (np.diff(at) < 0).any():
            order = np.argsort(at, kind="stable")
            self._at, self._values = _taken(self._at, order), _taken(self._values, order)
        return self._at[-1]

    def renumber(self, at: Floats, last: Mask) -> None:
        """Puts `at[i]` in place of each place i, leaves out those that are not `last`, and sorts."""
        places = np.array(self._at, np.int64)
        kept = np.flatnonzero(last[places])
        order = kept[np.argsort(at[places[kept]], kind="stable")]
        self._at = array("d", at[places[order]].tobytes())
        self._values = _taken(self._values, order)


class _Steps:
    """The steps of one mode, a column for each fact; NaN where a step has none."""

    def __init__(self) -> None:
        self._columns = {name: array("f" if name in STEP_VALUES else "d") for name in _COLUMNS}
        self._known: tuple[Floats, Mask] = EMPTY.steps, np.empty(0, np.bool_)

    def add(self, record: StepRecord) -> None:
        """One step more."""
        for column, value in zip(self._columns.values(), _facts_of(record), strict=True):
            column.append(math.nan if value is None else value)

    def settle(self) -> None:
        """Puts the steps in the order of time; of one that came twice the last counts."""
        steps, times = (np.array(self._columns[each]) for each in ("step", "time"))
        kept = np.flatnonzero(_last(steps))
        order = kept[np.lexsort((steps[kept], times[kept]))]
        if not np.array_equal(order, np.arange(len(steps))):
            for name, column in self._columns.items():
                self._columns[name] = _taken(column, order)
            self._known = EMPTY.steps, np.empty(0, np.bool_)

    def series(self, name: str) -> Series:
        """One fact of the steps that have it. smdebug keeps no times, and so no durations."""
        if len(self._known[0]) != len(self._columns["step"]):  # most that is asked for is asked for more than once
            self._known = np.array(self._columns["step"]), np.array(self._columns["time"]) > 0
        steps, timed = self._known
        series = Series(steps, np.array(self._columns[name], np.float64))
        if name in DURATIONS or name == "time":
            has = timed & ~np.isnan(series.values)
            return series if has.all() else series.where(has)
        return series

    @property
    def last_time(self) -> float:
        """When the newest step ended, -inf when that is not known."""
        times = self.series("time").values
        return float(times.max()) if len(times) else -math.inf


class RunData:
    """Series of one run, filled record by record or file by file, and read by rules and the report.

    Threads may fill it together; who reads it meanwhile holds `lock`.

    Args:
        job: the configuration and the machine; rules name its hyperparameters in their advice.

    Attributes:
        classes: labels and right answers by class, of each mode and epoch.
        finished: whether the training is known to have ended, so that no more will come.
        peers: rank -> the other processes' steps, where somebody read them; in the job nobody does.
    """

    def __init__(self, job: JobFacts) -> None:
        self.job = job
        self.classes: list[ClassCounts] = []
        self.finished = False
        self.peers: dict[int, RunData] = {}
        self._steps: dict[Mode, _Steps] = {}
        self._tensors: dict[str, dict[str, dict[str, _Growing]]] = {}
        self._system: dict[tuple[str, str, str], _Growing] = {}
        self._types: dict[str, str] = {}
        self._last_time = -math.inf
        self.lock = threading.RLock()

    def add_step(self, record: StepRecord) -> None:
        """One step more, later than those before it."""
        with self.lock:
            self._steps_of(record.mode).add(record)
            if record.time > 0:
                self.hear(record.time)

    def add_steps(self, records: Iterable[StepRecord]) -> bool:
        """The steps of a run that has none, in any order; of one that comes twice the last counts.

        What this and its like raise leaves the run as it was.

        Returns:
            Whether there was one.
        """
        new = RunData(self.job)
        for record in records:
            new._steps_of(record.mode).add(record)
        with self.lock:
            for mode, steps in new._steps.items():
                steps.settle()
                self._steps[mode] = steps
                self.hear(steps.last_time)
        return bool(new._steps)

    def add_statistics(self, record: StatisticsRecord) -> None:
        """The statistics of one training step, later than those before it."""
        with self.lock:
            self._add_statistics(record.step, record)

    def add_all_statistics(self, records: Iterable[StatisticsRecord]) -> bool:
        """The statistics of a run that has none, as `add_steps`."""
        new, steps = RunData(self.job), array("d")
        for place, record in enumerate(records):
            steps.append(record.step)
            new._add_statistics(place, record)
        at = np.array(steps, np.float64)
        last = _last(at)
        for growing in (each for kind in new._tensors.values() for tensor in kind.values() for each in tensor.values()):
            growing.renumber(at, last)
        with self.lock:
            self._tensors = new._tensors
        return bool(steps)

    def add_classes(self, record: ClassCounts) -> None:
        """The classes of one epoch."""
        self.classes.append(record)

    def add_all_classes(self, records: Iterable[ClassCounts]) -> bool:
        """The classes of a run that has none, in order, as `add_steps`."""
        self.classes = list(records)
        return bool(self.classes)

    def add_system(self, sample: SystemSample) -> None:
        """One system metric at one moment, no earlier than those before it."""
        with self.lock:
            self._add_system(sample)
            self.hear(sample.time)

    def add_samples(self, samples: Iterable[SystemSample]) -> bool:
        """The system metrics of a run that has none, in any order, as `add_steps`."""
        new = RunData(self.job)
        for sample in samples:
            new._add_system(sample)
        with self.lock:
            self._system, self._types = new._system, new._types
            for growing in self._system.values():
                self.hear(growing.sort())
        return bool(new._system)

    def hear(self, time: float) -> None:
        """The run was observed at that time, with nothing to add."""
        self._last_time = max(self._last_time, time)

    def _steps_of(self, mode: Mode) -> _Steps:
        if mode not in self._steps:
            self._steps[mode] = _Steps()
        return self._steps[mode]

    def _add_system(self, sample: SystemSample) -> None:
        key = (sample.dimension, sample.node, sample.name)
        if key not in self._system:
            self._system[key] = _Growing()
            self._types.setdefault(sample.dimension, sample.type)
        self._system[key].add(sample.time, sample.value)

    def _add_statistics(self, at: float, record: StatisticsRecord) -> None:
        for kind in KINDS:
            statistics: Statistics = getattr(record, kind)
            tensors = self._tensors.setdefault(kind, {})
            for tensor, values in statistics.items():
                of_tensor = tensors.setdefault(tensor, {})
                for statistic, value in values.items():
                    if statistic not in of_tensor:
                        of_tensor[statistic] = _Growing()
                    of_tensor[statistic].add(at, value)

    @property
    def last_time(self) -> float:
        """Unix seconds of the newest observation, -inf before the first."""
        return self._last_time

    def step(self, mode: Mode, name: str) -> Series:
        """One of STEP_VALUES over the steps of a mode."""
        return self._steps[mode].series(name) if mode in self._steps else EMPTY

    def epochs(self, mode: Mode) -> Series:
        """The epoch of each step, from 1."""
        return self.step(mode, "epoch")

    def times(self, mode: Mode) -> Series:
        """When each step ended, Unix seconds."""
        return self.step(mode, "time")

    def tensors(self, kind: str, statistic: str) -> Iterator[tuple[str, Series]]:
        """Name and series of every tensor of a kind (a field of StatisticsRecord) that has the statistic.

        In the natural order of the names, which is not that of the network: smdebug does not keep that.
        """
        for tensor in sorted(self.tensor_names(kind), key=_natural):
            if statistic in self._tensors[kind][tensor]:
                yield tensor, self._tensors[kind][tensor][statistic].series

    def tensor_names(self, kind: str) -> tuple[str, ...]:
        """The tensors of a kind as they came: but for smdebug, in the order of the network."""
        return tuple(self._tensors.get(kind, {}))

    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensors there are statistics of."""
        return tuple(sorted(kind for kind, tensors in self._tensors.items() if tensors))

    def statistics(self, kind: str, tensor: str) -> dict[str, Series]:
        """All statistics of one tensor."""
        return {name: each.series for name, each in self._tensors.get(kind, {}).get(tensor, {}).items()}

    def system(self, dimension: str, node: str | None = None) -> dict[str, Series]:
        """`node/name` -> values over time, in the order of nodes and names; of one host, or of all."""
        found = {
            (host, name): growing.series
            for (each, host, name), growing in self._system.items()
            if each == dimension and node in (None, host)
        }
        return {f"{host}/{name}": found[host, name] for host, name in sorted(found)}

    def dimensions(self) -> dict[str, str]:
        """The system metrics there are, in the order in which they came, and the type of each: cpu, memory, ..."""
        return dict(self._types)

    def nodes(self) -> tuple[str, ...]:
        """The hosts there are system metrics of, `algo-2` before `algo-10`."""
        return tuple(sorted({node for _, node, _ in self._system}, key=_natural))


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts `2.weight` before `10.weight`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _last(steps: Floats) -> Mask:
    """Whether no later place has the same step."""
    last = np.zeros(len(steps), np.bool_)
    last[len(steps) - 1 - np.unique(steps[::-1], return_index=True)[1]] = True
    return last


def _taken(values: array[float], places: NDArray[np.intp]) -> array[float]:
    """The numbers at these places."""
    return array(values.typecode, np.array(values)[places].tobytes())
