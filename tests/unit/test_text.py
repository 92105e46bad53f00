"""A name may hold anything; what is printed of it cannot command a terminal, nor break a line or a table."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path

import pytest
from PIL import Image
from tests.report_folders import make_job

from image_classifier.cli import render
from image_classifier.cli.main import main
from image_classifier.contract.text import as_text, json_visible, visible
from image_classifier.launch.runs import Record, Status, create_run
from image_classifier.report import write_report
from image_classifier.training.script import configure_logging

HOSTILE = "a\x1b[2J\x07b\x85\u2028\u202e\r\n\x9b31mc"
OBEYED = ("\x1b", "\x07", "\x85", "\u2028", "\u202e", "\r", "\x9b")


def obeyed(text: str) -> list[str]:
    return [char for char in OBEYED if char in text]


def test_what_a_terminal_would_obey_becomes_an_escape() -> None:
    assert visible("a\x1b[2J\nb\u202e\udce9") == "a\\x1b[2J\\nb\\u202e\\udce9"
    assert visible("a\nb", keep="\n") == "a\nb"


@pytest.mark.parametrize("name", ["Löwenzahn", "日本桜", "क्‍ष", "👩‍🌾", "[red]x[/]", "a b\u00a0c"])
def test_names_in_any_script_stay_as_they_are(name: str) -> None:
    assert visible(name) == name


def test_an_escaped_document_reads_back() -> None:
    value = {"name": HOSTILE, "flower": "🌻"}
    text = json_visible(json.dumps(value, indent=1, ensure_ascii=False))
    assert obeyed(text) == []
    assert json.loads(text) == value


def test_bytes_that_are_not_utf_8_are_shown() -> None:
    assert as_text(Path("d") / os.fsdecode(b"caf\xe9.jpg")) == "d/caf\\xe9.jpg"


def test_every_way_to_print_shows_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    console = render.Console()
    render.table(["file", HOSTILE], [[HOSTILE, 1]])
    render.facts([(HOSTILE, HOSTILE)])
    render.document({HOSTILE: HOSTILE})
    console.note(HOSTILE)
    console.warn(HOSTILE)
    with console.live() as live:
        live.show(HOSTILE)
    out, err = capsys.readouterr()
    assert obeyed(out + err) == []
    assert len(out.partition("{")[0].splitlines()) == 3  # two rows of the table, one fact


def test_a_training_logs_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logging.getLogger("x").warning("skipped: %s", HOSTILE)
    assert obeyed(capsys.readouterr().out) == []


def test_a_name_with_a_line_end_makes_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "a\nmetrics epoch=1 validation:accuracy=1.0"
    configure_logging()
    logging.getLogger("x").warning("skipped: %s", forged)
    logging.getLogger("py.warnings").warning("%s", f"x.py:1: UserWarning: {forged}\n  decode(path)\n")
    console = render.Console()
    console.note(forged)
    with console.live() as live:
        live.show(forged)
    printed = "".join(capsys.readouterr()).splitlines()
    assert len(printed) == 4
    assert not [line for line in printed if line.startswith("metrics")]


def test_a_report_shows_escapes(tmp_path: Path) -> None:
    page = write_report(make_job(tmp_path / "job", classes=(HOSTILE, "other"), epochs=1, test_per_class=2)).read_text()
    assert obeyed(page) == []
    assert "\\x1b" in page


def test_commands_show_hostile_class_file_and_log_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    for name in ("other", HOSTILE):
        folder = Path("data/train") / name
        folder.mkdir(parents=True)
        (folder / f"{HOSTILE}.jpg").write_bytes(picture.getvalue() + name.encode())
        (folder / f"{HOSTILE} broken.jpg").write_bytes(b"nothing")
    run = create_run(Path("runs"), "train", "x")
    run.log.parent.mkdir()
    run.log.write_text(f"{HOSTILE}\n")
    run.write(Record(kind="train", status=Status.FAILED, failure=HOSTILE, data=HOSTILE))
    for command in (["check", "data"], ["check", "data", "--json"], ["status"], ["status", run.name], ["logs"]):
        main(command)
        out, err = capsys.readouterr()
        assert obeyed(out + err) == [], command


def test_text_that_holds_a_name_is_shown_with_its_escapes_and_any_other_stays() -> None:
    assert as_text(f"no {os.fsdecode(b'caf' + bytes([0xE9]))}: \ud800") == "no caf\\xe9: \\ud800"
    assert as_text("L\u00f6wenzahn \u65e5\u672c \U0001f33c \\x41") == "L\u00f6wenzahn \u65e5\u672c \U0001f33c \\x41"
