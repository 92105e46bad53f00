"""How the threads that compute a step wait for each other: they spin while the cores are theirs, else they sleep.

A layer is divided among the threads of GNU's OpenMP, which torch brings along. One that is done spins for some
milliseconds, so that it is there at once when the next layer begins. Beside a busy process it spins on the core that
the thread it waits for could have: a training falls far below its fair share (benchmarks/bench_neighbour.py). Threads
that sleep (OMP_WAIT_POLICY=passive) keep most of it, and lose some speed on a machine of their own. oneDNN has loops of
its own in which threads wait and never sleep; `spatial.py` keeps them out of a training's step.

The runtime has a switch of its own for this. While it has more threads than there are cores, in whatever teams, they
spin a thousandth as long (`gomp_throttled_spin_count_var` in libgomp's env.c). So teams more, which do nothing, are
kept for as long as the scheduler lets threads of this process wait for a core.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch

from image_classifier.contract.machine import allowed_cores

TASKS = Path("/proc/self/task")
LOOK_S = 0.5  # some ten slices of the scheduler, and some steps of a small network
CROWDED = 0.25  # seconds that threads were ready and had no core, for each that passed: a neighbour of one thread
# makes it 0.5 and more, threads of this process that decode and record 0.03
ALONE = 0.04
ALONE_LOOKS = 4  # one after the other, before threads spin again
DIVIDED = 1 << 20  # elements: more than torch computes in one thread


class IdleTeam:
    """A team of OpenMP's threads that does nothing; with it there are more of them than cores."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, kept: bool) -> None:
        """Has the team, or has it no longer."""
        if kept and self._thread is None:
            self._ends.clear()
            self._thread = threading.Thread(target=self._be, name="idle team", daemon=True)
            self._thread.start()
        elif not kept and self._thread is not None:
            self._ends.set()
            self._thread.join()
            self._thread = None

    def _be(self) -> None:
        torch.zeros(DIVIDED).add_(1)  # divided: now the threads are there. They go when this one ends
        self._ends.wait()


class Crowding:
    """Whether others want the cores that this process's threads compute on, from one look to the next.

    Args:
        waits: as `waits_for_cores`. Where the system tells nothing it is always crowded.
        clock: seconds.
    """

    def __init__(
        self, waits: Callable[[], Mapping[str, float]] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._waits, self._clock = waits or waits_for_cores, clock
        self._last, self._looked = self._waits(), self._clock()
        self._alone = 0
        self.is_crowded = not self._last

    def look(self) -> bool:
        """Looks again: whether it is crowded."""
        before, then = self._last, self._looked
        self._last, self._looked = self._waits(), self._clock()
        if not self._last:
            return True
        waited = sum(seconds - before.get(thread, 0.0) for thread, seconds in self._last.items())
        share = waited / max(self._looked - then, 1e-9)
        self._alone = self._alone + 1 if share < ALONE else 0
        if share > CROWDED:
            self.is_crowded = True
        elif self._alone >= ALONE_LOOKS:
            self.is_crowded = False
        return self.is_crowded


def teams_needed(cores: int, threads: int) -> int:
    """How many idle teams of so many threads it takes, beside the one that computes, to be more than the cores. The
    runtime counts the threads that it started: of each team all but the one that asked for it; and one for itself."""
    return max(1, math.ceil(cores / (threads - 1)) - 1)


class WaitingThreads:
    """Looks twice a second, in a thread of its own, and has the threads that compute spin or sleep. A context.

    It does nothing where steps are computed on a GPU or in one thread.
    """

    def __init__(self, device: torch.device) -> None:
        threads = torch.get_num_threads()
        self._needed = device.type == "cpu" and threads > 1
        self._teams = [IdleTeam() for _ in range(teams_needed(len(allowed_cores()), threads))] if self._needed else []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waiting threads", daemon=True)

    def _watch(self) -> None:
        crowding = Crowding()
        crowded = crowding.is_crowded
        while True:
            for team in self._teams:
                team.keep(crowded)
            if self._ends.wait(LOOK_S):
                break
            crowded = crowding.look()
        for team in self._teams:
            team.keep(False)

    def __enter__(self) -> Self:
        if self._needed:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.set()
        if self._needed:
            self._thread.join()


def waits_for_cores(tasks: Path = TASKS) -> dict[str, float]:
    """Thread of this process -> seconds that it has been ready to run and had no core; empty where the system does not
    tell."""
    found = {}
    for thread in tasks.iterdir():
        with suppress(OSError, ValueError, IndexError):  # it has ended
            _, waited_ns, _ = (thread / "schedstat").read_text().split()
            found[thread.name] = int(waited_ns) / 1e9
    return found
