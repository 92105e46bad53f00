"""What is asked of other processes: one that ends between two questions is no error."""

from __future__ import annotations

import psutil


def lives(process: psutil.Process | int) -> bool:
    """Whether it runs, and is no zombie.

    Args:
        process: or its id.
    """
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return known.is_running() and known.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def runs_program(process: psutil.Process, program: str) -> bool:
    """Whether its command line holds that text."""
    try:
        return any(program in word for word in process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False
