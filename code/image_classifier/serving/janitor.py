"""Cleans up after the server program, however that ends: `python janitor.py PROCESS_GROUP FOLDER`, stdin its pipe.

When the pipe closes (a normal end closes it; kill -9 does as well) the process group is killed and the folder removed.
Started as a bare script, without site packages, because it lies in wait for the server's whole life.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

_PATIENCE_S = 1.0


def main(process_group: int, folder: str) -> None:
    """Waits for the end of stdin, then leaves nothing of the group and the folder behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the server program, which tells us by closing the pipe
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            os.killpg(process_group, signal.SIGKILL)  # again and again: the server may just be starting a worker
        except (ProcessLookupError, PermissionError):  # macOS answers the latter for zombies
            break
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
