"""What the documents say of the source is so."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.readme_table import ROWS, figure, written

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "code" / "image_classifier"


def test_every_file_that_a_document_names_is_there() -> None:
    rooms = "|".join(path.name for path in PACKAGE.iterdir() if path.is_dir())
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name for path in documents for name in re.findall(rf"`((?:{rooms})/[\w/.]+)`", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [name for name in sorted(named) if not (PACKAGE / name).exists()] == []


def test_every_test_that_a_document_names_is_there() -> None:
    page = (ROOT / "docs" / "sagemaker.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) >= 12
    assert [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")] == []


def test_the_results_in_the_readme_are_those_of_their_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == written(text), "write it again: make docs"
    assert text.count("](benchmarks/results/") >= len(ROWS)


def test_every_command_of_the_readmes_results_names_a_script_that_is_there() -> None:
    scripts = {figure(row)[1].split()[1] for row in ROWS}
    assert [name for name in sorted(scripts) if not (ROOT / name).is_file()] == []
