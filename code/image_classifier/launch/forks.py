"""Trainings that are forked from one process, the program `training/fork_server.py`: each a job as any other."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from image_classifier.contract import supervisor
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.files import open_plain
from image_classifier.contract.fork_requests import READY, ForkRequest, socket_pair
from image_classifier.contract.paths import BASE_DIR_VARIABLE
from image_classifier.contract.supervised import Supervised
from image_classifier.launch.process import Job

_OWN = (BASE_DIR_VARIABLE, "PYTHONPATH")  # variables that differ from training to training
_LEAVES_WITHIN_S = 5.0  # a process whose files are closed already
_KILLED = 137  # 128 + SIGKILL


class Forks:
    """Forks trainings from one process, which is started for the first of them and again when it was killed.

    Use as a context manager: nothing is left running then.

    Args:
        source: the folder that the process imports from.
        copy_source: fills it.
    """

    def __init__(self, source: Path, copy_source: Callable[[], None]) -> None:
        self._source, self._copy_source = source, copy_source
        self._server: _Server | None = None

    @property
    def source(self) -> Path:
        """The folder of the source that all trainings run."""
        if self._server is None or not self._server.is_alive():
            self._copy_source()
        return self._source

    def start(self, env: Mapping[str, str], *, base: Path, log: Path) -> Job | None:
        """Forks a training; None when the process that is there has another environment: it must be started as any.

        Args:
            env: of the training, as of a program.
            base: its folder.
            log: where its output is appended, and that of the process when it is started for it.

        Raises:
            PlatformError: the process or the log cannot be opened.
        """
        shared = {name: value for name, value in env.items() if name not in _OWN}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open_plain(log, "ab") as output:
                offset = output.tell()
                if self._server is None or not self._server.is_alive():
                    self.close()
                    self._server = _Server.start(shared, self._source, base, output.fileno())
                if shared != self._server.shared:
                    return None
                program = self._server.fork(base, output.fileno())
        except OSError as error:
            raise PlatformError(f"cannot start a training: {error.strerror}: {error.filename}") from None
        return Job(program, log, offset)

    def close(self) -> None:
        """Kills the process and all that it forked."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass
class _Server:
    """The process. `shared` are the variables that it and all its forks have."""

    process: Supervised
    requests: socket.socket
    shared: Mapping[str, str]
    _is_ready: bool = False

    @classmethod
    def start(cls, shared: Mapping[str, str], source: Path, base: Path, output: int) -> Self:
        ours, its = socket_pair()
        with its, os.fdopen(os.dup(output), "ab") as log:
            process = Supervised.start(
                [sys.executable, "-m", "image_classifier.training.fork_server", str(its.fileno())],
                env={**shared, BASE_DIR_VARIABLE: str(base), "PYTHONPATH": str(source)},
                cwd=source,
                output=log,
                files=[its.fileno()],
            )
        return cls(process, ours, shared)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def is_ready(self) -> bool:
        """Whether it has imported what it forks with, so that a request is obeyed at once."""
        if not self._is_ready:
            with suppress(OSError):
                self._is_ready = self.requests.recv(len(READY), socket.MSG_DONTWAIT) == READY
        return self._is_ready

    def fork(self, base: Path, output: int) -> Forked:
        """Asks for a training. What happens before the process is ready, happens to the training, too."""
        orders, order = os.pipe()
        answered, answer = os.pipe()
        os.set_blocking(answered, False)
        with suppress(OSError):  # it is being killed: the answer's end says it
            ForkRequest(base=base, output=output, orders=orders, answer=answer).send(self.requests)
        for file in (orders, answer):
            os.close(file)
        return Forked(self, order=order, answered=answered)

    def close(self) -> None:
        self.process.close()
        self.requests.close()


class Forked:
    """A training below its supervisor, both forks of the server. As `Supervised`.

    Args:
        order, answered: our ends of the files of a ForkRequest.
    """

    def __init__(self, server: _Server, *, order: int, answered: int) -> None:
        self._server, self._order, self._answered = server, order, answered
        self._heard = b""
        self._status: int | None = None

    @property
    def pid(self) -> int:
        """The process id of the server's supervisor: it lives as long as anything of the training."""
        return self._server.process.pid

    def poll(self) -> int | None:
        """As `Supervised.poll`."""
        while self._status is None:
            try:
                heard = os.read(self._answered, 4096)
            except BlockingIOError:
                return None
            self._heard += heard
            if not heard:
                self._status = self._ended(self._heard.split())
                for file in (self._order, self._answered):
                    os.close(file)
        return self._status

    def _ended(self, words: list[bytes]) -> int:
        """The status: what the supervisor said, or what became of it."""
        if len(words) == 2:
            return int(words[1])
        if words:  # it was killed: what it watched over goes with it
            supervisor.kill_group(int(words[0]))
            return _KILLED
        deadline = time.monotonic() + _LEAVES_WITHIN_S
        while (status := self._server.process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return status or _KILLED  # nobody took the request: the server has ended

    def wait(self) -> int:
        """Waits for the end; returns the exit status."""
        while (status := self.poll()) is None:
            select.select([self._answered], [], [])
        return status

    def stop(self) -> None:
        """As `Supervised.stop`."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """As `Supervised.kill`. A server that is not ready yet would not hear it: it is killed."""
        if self._server.is_ready():
            self._send(signal.SIGKILL)
        else:
            self._server.process.kill()

    def close(self) -> None:
        """As `Supervised.close`."""
        if self.poll() is None:
            self.kill()
            self.wait()

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with suppress(BrokenPipeError):  # it is ending
                os.write(self._order, bytes([number]))
