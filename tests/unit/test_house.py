"""One name, one thing: no two modules and no two classes of the package share a name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import image_classifier

PACKAGE = Path(image_classifier.__file__).parent
MODULES = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]


def twice(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_every_module_has_a_name_of_its_own() -> None:
    assert twice([path.stem for path in MODULES]) == []


def test_every_class_has_a_name_of_its_own() -> None:
    names = [
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert twice(names) == []


def test_no_module_is_longer_than_a_person_reads_in_one_go() -> None:
    assert [path.name for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []
