"""Runs Python with a /dev/shm of its own size, as a container has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = Path(__file__).parents[1] / "code"


def run_with_shared_memory(megabytes: int, program: str, *arguments: str, timeout_s: float = 120) -> str:
    """What the program prints; the test is skipped where nothing can be mounted."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("a /dev/shm of another size cannot be mounted here: it takes root")
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(CODE), "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr
