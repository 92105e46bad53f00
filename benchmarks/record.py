"""Writes what a benchmark found into benchmarks/results, and says of which machine it is."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, lines: Sequence[str]) -> None:
    """Replaces the file of that name with the lines, and prints them."""
    text = "\n".join(lines).rstrip() + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)


def processor() -> str:
    """What the machine says of its processor, and which of the wider instructions it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    flags = set(found.get("flags", "").split()) & {"amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx_vnni"}
    return ", ".join([found.get("model name", platform.machine()), *sorted(flags)])
