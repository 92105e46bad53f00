"""What the documents say of the source is so."""

from __future__ import annotations

import re
from pathlib import Path

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
