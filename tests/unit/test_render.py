"""What a person sees: nothing that matters is cut off on a narrow terminal, one sentence is one line."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from image_classifier.cli import render, show_data
from image_classifier.contract.errors import DataError
from image_classifier.vision.check import CheckReport, DataFinding

STYLES = re.compile("\x1b\\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def report(*errors: DataFinding) -> CheckReport:
    return CheckReport(
        root="data",
        classes=("cat",),
        counts={"train": {"cat": 1}},
        valid_split_off=False,
        smallest=None,
        largest=None,
        fingerprint="",
        errors=errors,
        warnings=(),
    )


@pytest.mark.parametrize("columns", [30, 60, 100])
def test_a_table_loses_nothing_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    row = ["train-20260102-030405", "train", "InProgress", "12 min 30 s", "test accuracy 0.9312, and more"]
    with contextlib.redirect_stdout(Terminal()) as terminal:
        render.table(["run", "kind", "status", "time", "result"], [row], numbers=("time",))
    printed = STYLES.sub("", terminal.getvalue())
    assert max(map(len, printed.splitlines())) <= columns
    words = printed.split()
    assert [word for cell in row for word in cell.split() if word not in words] == []


def test_long_names_leave_room_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with contextlib.redirect_stdout(Terminal()) as terminal:
        render.table(["file", "label", "probability"], [["folder/" * 12 + "photo.jpg", "tulips", "0.9312"]])
    printed = STYLES.sub("", terminal.getvalue())
    assert "tulips" in printed
    assert "0.9312" in printed
    assert max(map(len, printed.splitlines())) <= 60


def test_an_error_is_one_line_whatever_a_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    render.error(DataError("there is no folder new\nline\x1b[2J"))
    assert capsys.readouterr().err == "error: there is no folder new\\nline\\x1b[2J\n"


def test_alike_findings_share_their_hint(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [
        DataFinding(kind="unreadable", message=f"{i}.jpg: no", hint="mend it", files=(f"{i}.jpg",)) for i in range(12)
    ]
    twice = DataFinding(
        kind="leakage", message="the same image is in train and test", hint="keep one", files=("a", "b.jpg")
    )
    show_data._check_tables(report(*bad, twice))
    printed = capsys.readouterr().err.splitlines()
    assert printed[:2] == ["error: 0.jpg: no", "error: 1.jpg: no"]
    assert printed[10:12] == ["error: 2 more like these, all of them with --json", "hint: mend it"]
    assert printed[12:] == [
        "error: the same image is in train and test",
        "    a",
        "    b.jpg",
        "hint: keep one",
        "1 images: 13 errors, 0 warnings",
    ]
