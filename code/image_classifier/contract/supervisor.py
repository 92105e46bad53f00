"""The program between an owner and a program it starts, which sees to it that nothing outlives either of them.

    python -S -E -P supervisor.py GRACE_S N AFTER... PROGRAM [ARGUMENT...]          (N is the number of words of AFTER)

It starts PROGRAM and reads orders from standard input. Each byte is the number of a signal, which the program is sent;
9 (SIGKILL) goes to everything that the program has started, too. The end of the input means that the owner is gone,
even by SIGKILL: the program is sent SIGTERM, and everything is killed after GRACE_S seconds. When the program has
ended, what it left running is killed, whatever session it went to; then the command AFTER is run, and the supervisor
exits with the program's status: 128 + N after signal N, 127 when it could not be started. Signals to the process group
do not end the supervisor: when to stop is the owner's to say, by an order.

Supervisors nest. `supervised.py` is how ours are started: by this file's path, because it imports nothing of ours and
little of Python's, it costs 20 ms and 4 MB that no other process shares. `training/fork_server.py` does the same in a
fork of its own, whose program is another fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_ORDERS = 0  # standard input
_RETRY_S = 0.01
_CANNOT_START = 127  # as a shell says it
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # the program gets them back as they are by default
WAKING = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Runs the program to its end and returns its exit status."""
    grace_s, words = float(argv[0]), 2 + int(argv[1])
    after, command = argv[2:words], argv[words:]
    wake = prepare()
    try:
        program = _start(command)
    except OSError as error:
        sys.stderr.write(f"error: cannot start {command[0]}: {error.strerror}\n")
        status = _CANNOT_START
    else:
        status = supervise(program, wake, grace_s)
    if after:
        _run(after)
    return status


def prepare() -> int:
    """Makes this process one that can supervise. Returns a file that can be read after each signal it gets."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become our children: found and reaped
    return wake_on_signals()


def supervise(program: int, wake: int, grace_s: float) -> int:
    """Obeys until the program has ended, and leaves nothing of it. Returns its exit status, 128 + N after signal N.

    Args:
        program: the process id of a child.
        wake: what `prepare` returned.
    """
    family = _Family(program)
    sources, deadline = [_ORDERS, wake], None
    while family.status is None:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = select.select(sources, [], [], patience)[0]
        if wake in ready:
            os.read(wake, 4096)
        if _ORDERS in ready:
            orders = os.read(_ORDERS, 4096)
            if not orders:  # the owner is gone
                sources.remove(_ORDERS)
                orders, deadline = bytes([signal.SIGTERM]), time.monotonic() + grace_s
            for order in orders:
                family.send(order)
        if deadline is not None and time.monotonic() >= deadline:
            family.kill()
            deadline = None
        family.reap()
    family.kill()
    return family.status if family.status >= 0 else 128 - family.status


class _Family:
    """The program and whatever it has started: sooner or later each of them is a child of this process."""

    def __init__(self, program: int) -> None:
        self._program = program
        self.status: int | None = None

    def send(self, number: int) -> None:
        """Sends the program a signal, or everything SIGKILL."""
        if number == signal.SIGKILL:
            self.kill()
        elif self.status is None:  # not reaped, so that its process id is still its own
            with contextlib.suppress(OSError):  # the program became another user's; there is no such signal
                os.kill(self._program, number)

    def kill(self) -> None:
        """Kills until there is nothing left: a dying process may have started one more."""
        while self.reap() and _kill(_descendants()):
            time.sleep(_RETRY_S)

    def reap(self) -> bool:
        """Takes the status of those that have ended. Returns whether there are others."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if process == 0:
                return True
            if process == self._program:
                self.status = os.waitstatus_to_exitcode(status)


def kill_group(group: int) -> None:
    """Kills a process group with all that its members have started: for the owner of a supervisor that was killed."""
    while _kill(_members(group)):
        time.sleep(_RETRY_S)


def _members(group: int) -> list[int]:
    processes = _processes()
    members = [process for process, (_, its_group, _) in processes.items() if its_group == group]
    return [process for process in _with_descendants(members, processes) if processes[process][2] != "Z"]


def _descendants() -> list[int]:
    """The process ids of all that was started below this process and has not been reaped."""
    return _with_descendants([os.getpid()], _processes())[1:]


def _with_descendants(found: list[int], processes: Mapping[int, tuple[int, int, str]]) -> list[int]:
    children: dict[int, list[int]] = {}
    for process, (parent, _, _) in processes.items():
        children.setdefault(parent, []).append(process)
    for process in found:  # which grows
        found += [child for child in children.get(process, ()) if child not in found]
    return found


def _processes() -> dict[int, tuple[int, int, str]]:
    """What runs on this machine: process id -> (parent, process group, state), "Z" for ended, but not reaped."""
    found = {}
    for process in (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()):
        with contextlib.suppress(OSError):  # it has ended
            with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123  # pathlib alone takes as long as the rest
                state, parent, group = file.read().rpartition(b")")[2].split()[:3]  # pid (name) state parent group ...
            found[process] = int(parent), int(group), state.decode()
    return found


def _kill(processes: Sequence[int]) -> bool:
    """Sends SIGKILL. Returns whether any could be sent it: others are gone, or another user's."""
    sent = False
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
            sent = True
    return sent


def _start(command: Sequence[str]) -> int:
    nothing = (os.POSIX_SPAWN_OPEN, _ORDERS, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawnp(command[0], list(command), os.environ, file_actions=[nothing], setsigdef=_IGNORED_BY_PYTHON)


def _run(command: Sequence[str]) -> None:
    """Runs what comes after, silently; its failure is nobody's concern any more."""
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    with contextlib.suppress(OSError):
        os.waitpid(_start(command), 0)


def wake_on_signals() -> int:
    """A file that can be read after each signal. They are handled, not ignored: the program would ignore them too."""
    wake, written = os.pipe()
    for end in (wake, written):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in WAKING:
        signal.signal(number, lambda *_: None)
    return wake


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
