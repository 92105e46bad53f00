"""gpu.md: the same as gpu.json, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HOLDS = {True: "holds", False: "DOES NOT HOLD", None: "not judged: toy sizes"}
TITLE = "# What was said of a GPU, and what one says"
FAKE = "**A trial of the program on a CPU with toy sizes (`--fake`). No number here says anything of a GPU.**"


def write_table(path: Path, found: Mapping[str, Any]) -> None:
    """Replaces the file."""
    path.write_text("\n".join(lines(found)).rstrip() + "\n", encoding="utf-8")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The document: the machine, how each part ended, the claims, what was skipped, and what was measured."""
    yield from (TITLE, "", *([FAKE, ""] if found["fake"] else []), f"`{found['command']}`, {found['date']}", "")
    machine = found["machine"]
    if machine:
        packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
        cards = ", ".join(machine["cards"]) or "no GPU"
        yield f"{cards}, driver {machine['driver']}, CUDA {machine['torch_cuda']} of torch,"
        yield f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB, Python {machine['python']}; {packages}."
        yield ""
    yield from ("| part | | at | ended | seconds | |", "|---|---|---|---|---|---|")
    for part in found["parts"]:
        how = (part["status"] or "not run", f"{part['seconds']:.1f}", part["why"])
        yield f"| {' | '.join(map(cell, (part['part'], part['title'], part['date'], *how)))} |"
    claims = [(part["part"], claim) for part in found["parts"] for claim in part["claims"]]
    if claims:
        yield from ("", "| part | claim | | measured |", "|---|---|---|---|")
        for name, claim in claims:
            yield f"| {' | '.join(map(cell, (name, claim['claim'], HOLDS[claim['holds']], claim['measured'])))} |"
    skipped = [(part["part"], each) for part in found["parts"] for each in part["skipped"]]
    if skipped:
        yield from ("", "Not measured here:", "")
        for name, each in skipped:
            yield f"- {name}: {each['what']}: {each['why']}"
    for part in found["parts"]:
        if part["measured"] and part["part"] != "0":
            yield from ("", f"## {part['part']}: {part['title']}", "")
            for name, value in part["measured"].items():
                yield from measured(name, value)


def measured(name: str, value: Any) -> Iterator[str]:
    """One measurement as a point of a list, an object as points below it."""
    if not isinstance(value, dict):
        yield f"- {name}: {shown(value)}"
        return
    yield f"- {name}:"
    for key, each in value.items():
        yield f"  - {key}: {shown(each)}"


def shown(value: Any) -> str:
    """A value in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(each)}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def cell(text: Any) -> str:
    """Text for a table's cell."""
    return str(text).replace("|", "/").replace("\n", " ")
