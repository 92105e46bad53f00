"""Where a step's time goes: on the CPU by its clock, on a GPU by events that are read later, so that nothing waits."""

from __future__ import annotations

import time

import torch

from image_classifier.debugging.schema import GPU_PHASES


class Phases:
    """The durations of one step's phases; those on a GPU are known once it has come that far.

    Args:
        pool: takes the events back when they have been read: to make new ones in each step costs more than to record.
    """

    def __init__(self, pool: list[torch.cuda.Event]) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._spent: list[torch.cuda.Event] = []
        self._pool = pool

    def add(self, phase: str, seconds: float) -> None:
        """Seconds by the CPU's clock; a phase may come more than once in a step."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def add_events(self, phase: str, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        """What the GPU did between two events."""
        self._events.append((phase, start, end))

    def spend(self, event: torch.cuda.Event) -> None:
        """An event that nothing after this step needs."""
        self._spent.append(event)

    def resolve(self) -> dict[str, float]:
        """Phase -> seconds. Waits for the GPU where it has not come that far; it has when the step's loss was read."""
        for phase, start, end in self._events:
            if not end.query():  # type: ignore[no-untyped-call]
                end.synchronize()
            self.add(phase, start.elapsed_time(end) / 1000)
        self._events.clear()
        self._pool += self._spent
        self._spent.clear()
        return self._seconds


class StepClock:
    """A stopwatch for one step after the other: `begin`, then `mark` at the end of each phase, then `end`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last_end = time.perf_counter()
        self._last_mark = self._last_end
        self._last_thread = time.thread_time()
        self._last_event: torch.cuda.Event | None = None
        self._pool: list[torch.cuda.Event] = []
        self._phases = Phases(self._pool)

    def begin(self) -> None:
        """What has passed since the last step does not belong to the next: another epoch or mode begins."""
        self._last_end = self._last_mark = time.perf_counter()
        self._last_thread = time.thread_time()
        self._last_event = self._event()
        self._phases = Phases(self._pool)

    def mark(self, phase: str) -> None:
        """The phase that began with the last mark ends here."""
        now, event = time.perf_counter(), self._event()
        if phase in GPU_PHASES and event is not None and self._last_event is not None:
            self._phases.add_events(phase, self._last_event, event)
        else:
            self._phases.add(phase, now - self._last_mark)
        if self._last_event is not None:
            self._phases.spend(self._last_event)
        self._last_mark, self._last_event = now, event

    def end(self) -> tuple[float, Phases]:
        """Ends the step. Returns its seconds by the CPU's clock, and its phases, with this thread's processor time."""
        now, phases = self._last_mark, self._phases
        spent, self._last_thread = self._last_thread, time.thread_time()
        phases.add("thread_s", self._last_thread - spent)
        seconds, self._last_end, self._phases = now - self._last_end, now, Phases(self._pool)
        return seconds, phases

    def _event(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
