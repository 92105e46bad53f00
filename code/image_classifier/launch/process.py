"""Jobs as processes of this machine: start one under its supervisor, read its log as it grows, stop it, kill it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from image_classifier.contract.errors import PlatformError
from image_classifier.contract.files import open_plain
from image_classifier.contract.supervised import Supervised, wait_for_an_end

POLL_S = 0.1


class Program(Protocol):
    """What a job runs: `Supervised`, and a fork of the fork server. Its methods are described there."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Job:
    """A program running under its supervisor, its output going to a log file."""

    def __init__(self, program: Program, log: Path, offset: int) -> None:
        self._program = program
        self._log = open_plain(log)
        self._log.seek(offset)
        self._rest = b""

    @classmethod
    def start(
        cls, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, after: Sequence[str] = ()
    ) -> Self:
        """Starts `command`; its output is appended to `log`, from where `lines` reads it.

        Args:
            after: a command that is run when `command` has ended or was killed, also when this process is gone.

        Raises:
            PlatformError: the program or the log cannot be opened.
        """
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open_plain(log, "ab") as output:
                offset = output.tell()
                program = Supervised.start(command, env=env, cwd=cwd, output=output, after=after)
        except OSError as error:
            raise PlatformError(f"cannot start {Path(command[0]).name}: {error.strerror}: {error.filename}") from None
        return cls(program, log, offset)

    @property
    def pid(self) -> int:
        """The supervisor's process id: it lives as long as anything of the job does."""
        return self._program.pid

    def lines(self) -> list[str]:
        """The complete log lines written since the last call, and the unfinished rest once the job has ended."""
        ended = self._program.poll() is not None
        *complete, self._rest = (self._rest + self._log.read()).split(b"\n")
        if ended and self._rest:
            complete.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", errors="replace").rstrip("\r") for line in complete]

    def poll(self) -> int | None:
        """The exit status, 128 + N after signal N, or None while the job runs."""
        return self._program.poll()

    def stop(self) -> None:
        """Asks the job to save its state and end (SIGTERM)."""
        self._program.stop()

    def kill(self) -> None:
        """Ends the job and all it started at once (SIGKILL)."""
        self._program.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is left running, whatever happened in the block."""
        self._program.close()
        self._log.close()


class Interrupts:
    """Within the block, Ctrl-C, SIGTERM and SIGHUP are counted instead of ending the program."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        self.last = signal.SIGTERM

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.last = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program ended by the last signal."""
        return 128 + self.last


def follow(
    job: Job, on_line: Callable[[str], None], interrupts: Interrupts, on_stop: Callable[[], None] = lambda: None
) -> int:
    """Hands every log line to `on_line` until the job has ended; returns its exit status.

    The first interrupt asks the job to stop (and calls `on_stop`), the second kills it.
    """

    def never(line: str) -> bool:
        on_line(line)
        return False

    status = follow_until(job, never, interrupts, on_stop)
    return 0 if status is None else status


def follow_until(
    job: Job, on_line: Callable[[str], bool], interrupts: Interrupts, on_stop: Callable[[], None] = lambda: None
) -> int | None:
    """As `follow`, but also ends, with None, when `on_line` answers True."""
    obeyed = 0
    while True:
        status = job.poll()
        answers = [on_line(line) for line in job.lines()]
        if any(answers):
            return None
        if status is not None:
            return status
        if interrupts.count > obeyed:
            if obeyed == 0:
                on_stop()
                job.stop()
            if interrupts.count > 1:
                job.kill()
            obeyed = interrupts.count
        wait_for_an_end([job.pid], POLL_S)
