"""The rules as the documentation's table, made from their classes.

PYTHONPATH=code python -m image_classifier.debugging.rules.table docs/debugger.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from image_classifier.debugging.rules.base import RULES, Rule

BEGIN = "<!-- the rules, written by `make docs` -->"
END = "<!-- end of the rules -->"
_SERVICES = {
    "tensors": "Debugger",
    "system metrics": "Profiler",
    "framework metrics": "Profiler, framework metrics",
}


def markdown_table(rules: Iterable[type[Rule]]) -> str:
    """A row for each rule: its name, its docstring's first sentence, its own parameters' defaults, AWS's rule."""
    rows = [(f"`{rule.__name__}`", _first_sentence(rule), _defaults(rule), _managed(rule)) for rule in rules]
    head = ("rule", "finds", "defaults", "AWS's rule")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def with_table(text: str) -> str:
    """The page with the present rules between its two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} with {END} after it")
    return f"{before}{BEGIN}\n\n{markdown_table(RULES.values())}\n\n{END}{after}"


def explanation(rule: type[Rule]) -> dict[str, Any]:
    """What there is to know of a rule, all of it from its class: name, severity, about, asks (the docstring's first
    sentence), formula (the rest of it), evidence, remedy, source, parameters and their defaults, aws (its rule)."""
    first, _, rest = inspect.cleandoc(rule.__doc__ or "").partition("\n\n")
    return {
        "rule": rule.__name__,
        "severity": rule.severity,
        "about": "the training" if rule.about == "tensors" else "the machine and its clock",
        "asks": " ".join(first.split()),
        "formula": rest,
        "evidence": rule.looks_at,
        "remedy": rule.remedy,
        "source": rule.source,
        "parameters": dataclasses.asdict(rule()),
        "aws": _managed(rule),
    }


def _first_sentence(rule: type[Rule]) -> str:
    paragraph = " ".join((rule.__doc__ or "").split("\n\n", 1)[0].split())
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]


def _defaults(rule: type[Rule]) -> str:
    """Of the parameters but for those of a base of rules."""
    shared = {
        each.name
        for base in rule.__mro__
        if dataclasses.is_dataclass(base) and inspect.isabstract(base)
        for each in dataclasses.fields(base)
    }
    defaults = dataclasses.asdict(rule())
    return ", ".join(f"{name} {_text(value)}" for name, value in defaults.items() if name not in shared)


def _managed(rule: type[Rule]) -> str:
    if rule.managed is None:
        return "none"
    service = _SERVICES[rule.managed.reads]
    return f"{service}: {rule.managed.name}" if rule.managed.name else service


def _text(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def main(page: Path) -> None:
    """Writes the present rules into a page."""
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
