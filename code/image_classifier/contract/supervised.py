"""Programs that leave nothing behind: started under `supervisor.py`, sent signals, killed with all they started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from image_classifier.contract import supervisor

GRACE_S = 60.0  # for a program whose owner died to save its state; SageMaker gives 120 s


def wait_for_an_end(processes: Iterable[int], seconds: float) -> None:
    """Returns as soon as one of these processes has ended, or after `seconds`."""
    watched = select.poll()
    with contextlib.ExitStack() as opened:
        try:
            for process in processes:
                file = os.pidfd_open(process)
                opened.callback(os.close, file)
                watched.register(file, select.POLLIN)
        except ProcessLookupError:  # it has ended, and somebody has taken its status
            return
        except OSError:  # a kernel without such files; too many open ones
            time.sleep(seconds)
            return
        watched.poll(1000 * seconds)


class Supervised:
    """A program under its supervisor, in a session of its own, so that Ctrl-C is for us.

    Use as a context manager, or call `close`: nothing is left running then. Should this process be gone, even by
    SIGKILL, the program is sent SIGTERM, and killed after a grace. It reads nothing from standard input.
    """

    def __init__(self, supervising: subprocess.Popen[bytes]) -> None:
        self._supervising = supervising
        self._is_group_killed = False

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str,
        output: IO[bytes] | None = None,
        grace_s: float = GRACE_S,
        after: Sequence[str] = (),
        files: Sequence[int] = (),
    ) -> Self:
        """Starts `command`. A program that cannot be started ends with status 127 and a sentence in its output.

        Args:
            output: where what it prints goes instead of to our own output.
            grace_s: from SIGTERM to SIGKILL when this process is gone.
            after: a command that is run when `command` has ended or was killed, also when this process is gone.
            files: open files that it gets under the same numbers.

        Raises:
            OSError: there is no folder `cwd`, or no more processes.
        """
        words = [str(grace_s), str(len(after)), *after, *command]
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-P", supervisor.__file__, *words],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            pass_fds=files,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The supervisor's process id, and that of the process group: it lives as long as anything of the program."""
        return self._supervising.pid

    def poll(self) -> int | None:
        """The exit status, 128 + N after signal N, or None while anything of the program runs."""
        status = self._supervising.poll()
        return None if status is None else self._ended(status)

    def wait(self) -> int:
        """Waits for the end; returns the exit status as `poll` does."""
        return self._ended(self._supervising.wait())

    def _ended(self, status: int) -> int:
        if status >= 0:
            return status
        if not self._is_group_killed:  # the supervisor was killed: what it watched over goes with it
            supervisor.kill_group(self.pid)
            self._is_group_killed = True
        return 128 - status

    def send_signal(self, number: int) -> None:
        """Sends the program a signal; SIGKILL goes to all that it has started as well."""
        assert self._supervising.stdin is not None  # started with a pipe
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, or was closed
            self._supervising.stdin.write(bytes([number]))

    def stop(self) -> None:
        """Asks the program to save its state and end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the program and all it has started at once (SIGKILL)."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kills what still runs, waits for the end and for what comes after it."""
        if self.poll() is None:
            self.kill()
            self.wait()
        if self._supervising.stdin is not None:
            self._supervising.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
