"""A small program between the launcher and a job, which sees to it that nothing of the job outlives either of them.

    python guard.py GRACE_S AFTER PROGRAM [ARGUMENT...]

It starts PROGRAM and reads orders from standard input, one byte each: T stops the program (SIGTERM to it alone, as
SageMaker does), K kills it with everything it started. The end of the input means that the launcher is gone, even by
SIGKILL: the program is stopped, and killed after GRACE_S seconds. When the program ends, what it left running is
killed, AFTER is run (a command as a JSON list, which may be empty), and the guard exits with the program's status
(128 + N after signal N). Run by its path: it imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

import psutil

STOP = b"T"
KILL = b"K"
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_killing = threading.Lock()


def main(argv: list[str]) -> int:
    """Runs the program to its end and returns its exit status."""
    if sys.platform == "linux":  # orphans become children of the guard, so that it can find and kill them
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _pass)  # a handler, not SIG_IGN: the program must not inherit it
    grace_s, after, command = float(argv[0]), json.loads(argv[1]), argv[2:]
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_obey, args=(program, grace_s), daemon=True).start()
    status = program.wait()
    with _killing:  # an order to kill must not hit what comes after
        _kill_descendants()
        if after:
            subprocess.run(after, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    return status if status >= 0 else 128 - status


def _obey(program: subprocess.Popen[bytes], grace_s: float) -> None:
    while order := os.read(sys.stdin.fileno(), 1):
        if order == STOP:
            program.terminate()
        elif order == KILL:
            with _killing:
                _kill_descendants()
    program.terminate()
    time.sleep(grace_s)
    with _killing:
        _kill_descendants()


def _kill_descendants() -> None:
    """Kills until there is nothing left: a dying process may have started one more."""
    while children := [child for child in psutil.Process().children(recursive=True) if _alive(child)]:
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _pass(number: int, frame: FrameType | None) -> None:
    """The launcher decides when the job stops, through the orders."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
