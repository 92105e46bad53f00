"""Commands of deploy.py asked in this process about runs that are damaged: a sentence, whatever they find."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from image_classifier.cli.main import main


def ask(words: Sequence[str], capsys: pytest.CaptureFixture[str], about: str, damaged: str = "") -> None:
    """Runs one command. Raises AssertionError for a defect, a traceback, or a list of all runs in which the good one or
    the `damaged` one is missing."""
    code = main(list(words))
    out, err = capsys.readouterr()
    said = f"{about}: {' '.join(words)}\n{out[-3000:]}{err[-3000:]}"
    assert code in (0, 1, 2), said
    assert "defect" not in said, said
    assert "Traceback" not in said, said
    if words[0] == "status" and set(words[1:]) <= {"--json"}:
        assert code == 0, said
        assert "-good" in out, said
        assert damaged in out + err, said
