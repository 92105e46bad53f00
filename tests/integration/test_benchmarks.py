"""The benchmarks of trainings and searches run to their end, on next to nothing; their figures are nobody's concern."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ("bench_training.py", "--quick", "--short"),
        ("bench_tuning.py", "--quick"),
        ("bench_recipes.py", "--quick"),
        ("bench_phases.py", "--quick"),
    ],
)
def test_a_benchmark_can_be_tried_in_no_time_and_leaves_the_results_alone(command: tuple[str, ...]) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.read_bytes() for path in results.iterdir()}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'code'}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {path: path.read_bytes() for path in results.iterdir()} == before
