"""Runs the programs that benchmarks compare."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(words: Sequence[object], changes: Mapping[str, str]) -> tuple[float, str]:
    """Seconds of a Python program, from its start to its end, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code"), **changes}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=ROOT, check=False, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return seconds, done.stdout
