"""Writes what a benchmark found into benchmarks/results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, lines: Sequence[str]) -> None:
    """Replaces the file of that name with the lines, and prints them."""
    text = "\n".join(lines).rstrip() + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)
