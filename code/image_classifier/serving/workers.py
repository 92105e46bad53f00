"""The processes that answer, seen from outside: who is alive, who hangs, who does not come back.

The model server replaces a worker that dies, as long as it notices and can. It takes its time over one that hangs, and
starts another beside it. So a worker that hangs is killed here, before, and one that is not replaced ends the program:
what runs containers starts it anew.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from image_classifier.contract.errors import ArtifactError, PlatformError
from image_classifier.serving.scratch import Report, Scratch

_KILL_AFTER_S = 1.0  # beyond the limit of an answer: the client is told first
_STOPPED_LIMIT_S = 5.0  # then those that wait for it are given to another
_STOPPED = "T"
_ENDED = ("", "Z", "X")  # gone, or waiting to be reaped
_RESTART_HINT = "start the server again; the log of the system tells what ended them"
MIN_REPLACEMENT_S = 30.0


class Workers:
    """The workers of one server. `look` is called every now and then; `num_alive` is what it saw last.

    Args:
        num_wanted: how many there should be.
        answer_s: for how long one may be busy with a request.
    """

    def __init__(self, scratch: Scratch, *, num_wanted: int, answer_s: float) -> None:
        self._scratch = scratch
        self.num_wanted = num_wanted
        self._busy_limit_s = answer_s + _KILL_AFTER_S
        self._complete_at = time.monotonic()
        self._stopped_at: dict[int, float] = {}
        self.replacement_s = MIN_REPLACEMENT_S
        self.num_alive = 0

    def look(self) -> list[Report]:
        """Kills those that hang, and returns what the living have reported.

        Raises:
            ArtifactError: one of them cannot load the model.
            PlatformError: some have been missing for `replacement_s`, or there is nothing more to fork them from.
        """
        now = time.monotonic()
        living = []
        for process, report in self._scratch.reports().items():
            if report.error:  # also of one that has ended since
                raise ArtifactError(report.error, report.hint)
            state = _state(process)
            if state in _ENDED:
                self._scratch.forget(process)
                self._stopped_at.pop(process, None)
                self._check_parent(report)
            else:
                self._check_parent(report)
                living.append(report)
                if self._hangs(process, state, now):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
        self.num_alive = len(living)
        if self.num_alive >= self.num_wanted:
            self._complete_at = now
        elif now - self._complete_at > self.replacement_s:
            missing = self.num_wanted - self.num_alive
            raise PlatformError(
                f"{missing} of {self.num_wanted} workers died and the model server has not replaced them",
                _RESTART_HINT,
            )
        return living

    def _check_parent(self, report: Report) -> None:
        if report.parent and _state(report.parent) in _ENDED:
            self.num_alive = 0
            raise PlatformError("the process that workers are forked from has died", _RESTART_HINT)

    def _hangs(self, process: int, state: str, now: float) -> bool:
        """Whether a worker is busy with one request for too long, or was stopped (SIGSTOP) and stays so."""
        if state == _STOPPED:
            return now - self._stopped_at.setdefault(process, now) > _STOPPED_LIMIT_S
        self._stopped_at.pop(process, None)
        since = self._scratch.busy_since(process)
        return since is not None and now - since > self._busy_limit_s


def _state(process: int) -> str:
    """The state of a process, as ps shows it; empty when there is none."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123  # ten times a second
            return file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""
