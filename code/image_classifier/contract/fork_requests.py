"""What a launcher and the fork server of trainings say to each other: a packet for each training, over a socket pair.

A packet holds the job's folder and three open files: where the training's output goes; orders to its supervisor, as
`supervisor.py` reads them; and where the answer is written: the supervisor's process id and, at the end, the exit
status, each a line. An answer that ends without a status means that the supervisor was killed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

READY = b"ready"  # the server's only words, when it has imported what it forks with
_LARGEST_PATH = 4096  # bytes, of Linux
_NUM_FILES = 3


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The launcher's end and the server's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@dataclass(frozen=True, kw_only=True)
class ForkRequest:
    """A training to fork: its folder, laid out as `paths.py` says, and the numbers of the three files."""

    base: Path
    output: int
    orders: int
    answer: int

    @property
    def files(self) -> Sequence[int]:
        return self.output, self.orders, self.answer

    def send(self, server: socket.socket) -> None:
        """Raises OSError when the server is gone."""
        socket.send_fds(server, [os.fsencode(self.base)], self.files)

    @classmethod
    def receive(cls, launcher: socket.socket) -> Self | None:
        """The next one; None when the launcher is gone."""
        base, files, _, _ = socket.recv_fds(launcher, _LARGEST_PATH, _NUM_FILES)
        if not base:
            return None
        output, orders, answer = files
        return cls(base=Path(os.fsdecode(base)), output=output, orders=orders, answer=answer)

    def close(self) -> None:
        """Closes this process's copies of the files."""
        for file in self.files:
            with suppress(OSError):
                os.close(file)
