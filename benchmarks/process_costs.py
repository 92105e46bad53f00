"""What a server's processes take: seconds of the cores, and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

FRONT, JAVA, PARENT, WORKERS = "the front", "Java", "what workers are forked from", "workers"
EVERYTHING = "the server"
Kinds = Mapping[str, Sequence[psutil.Process]]


def of_ours(program: psutil.Process) -> Kinds:
    """The processes of our server program, by what they are for."""
    tree = living(program)
    answering = [p for p in tree if any("model_service_worker" in word for word in p.cmdline())]
    forked = [p for p in answering if p.parent() in answering]
    return {
        FRONT: [program],
        JAVA: [p for p in tree if p.name() == "java"],
        PARENT: [p for p in answering if forked and p not in forked],
        WORKERS: forked or answering,
    }


def of_any(program: psutil.Process) -> Kinds:
    """All processes of a server whose parts are not known here."""
    return {EVERYTHING: [program, *living(program)]}


def living(program: psutil.Process) -> list[psutil.Process]:
    """What it has started, and what that has; also those whose parents have ended, if they stayed in its session."""
    started = set(program.children(recursive=True))
    for process in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == program.pid and process != program:
                started |= {process, *process.children(recursive=True)}
    return [p for p in started if _lives(p)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it has ended between the two
        return False


def core_seconds(processes: Sequence[psutil.Process]) -> float:
    """Of the cores, by all threads that these processes have ever had, to the nanosecond; 0 for one that has ended."""
    total = 0.0
    for process in processes:
        with suppress(OSError):
            total += time.clock_gettime((~process.pid) << 3 | 2)  # Linux: the clock of another process's cores
    return total


def pss_mb(process: psutil.Process) -> float:
    """Proportional set size: a page that several processes share counts for each with its part."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0
