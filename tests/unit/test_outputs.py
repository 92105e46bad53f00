"""The files of a run are written and read in one place, which survives whatever lies in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from image_classifier.contract.errors import JobError
from image_classifier.contract.outputs import (
    HISTORY,
    RESULT,
    SETUP,
    TEST_PREDICTIONS,
    TRIALS,
    best_epoch,
    failure_text,
    parse_failure,
    read_failure,
    stop_message,
)
from image_classifier.contract.paths import FAILURE_MAX_CHARS
from image_classifier.contract.text import as_text

DAMAGE = [b"", b"null", b"[", b"\xff\xfe\x00", b"NaN", b"{}" * 3, b"[" * 100_000, b'"\\ud800"', os.urandom(4096)]
ROWS = [{"epoch": 1, "validation:accuracy": 0.5}, {"epoch": 2, "validation:accuracy": 0.7}]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_any_bytes_are_read_as_nothing(tmp_path: Path, damage: bytes) -> None:
    for name in (HISTORY.name, RESULT.name, TEST_PREDICTIONS.name, "failure"):
        (tmp_path / name).write_bytes(damage)
    assert HISTORY.read(tmp_path) == []
    assert RESULT.read_object(tmp_path) == {}
    assert TEST_PREDICTIONS.read(tmp_path) == []
    read_failure(tmp_path / "failure")


def test_a_folder_in_a_files_place_and_a_missing_file_are_read_as_nothing(tmp_path: Path) -> None:
    (tmp_path / RESULT.name).mkdir()
    assert RESULT.read(tmp_path) is None
    assert RESULT.read(tmp_path / "nowhere") is None
    assert HISTORY.read(tmp_path / "nowhere") == []


def test_lines_before_a_damaged_one_count(tmp_path: Path) -> None:
    HISTORY.write(tmp_path, ROWS)
    with (tmp_path / HISTORY.name).open("a") as file:
        file.write('{"epoch": 3, "valid')
    assert HISTORY.read(tmp_path) == ROWS


def test_a_number_that_is_not_finite_is_read_as_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / HISTORY.name).write_text('{"epoch": 1, "train:loss": NaN, "train:accuracy": 0.5}\n{"epoch": 2}\n')
    assert HISTORY.read(tmp_path) == [{"epoch": 1, "train:accuracy": 0.5}, {"epoch": 2}]


def test_an_epoch_without_its_number_is_damage(tmp_path: Path) -> None:
    HISTORY.write(tmp_path, [*ROWS, {"validation:accuracy": 0.9}, {"epoch": 4}])
    assert HISTORY.read(tmp_path) == ROWS


def test_a_table_reads_back_with_commas_quotes_and_newlines(tmp_path: Path) -> None:
    rows = [['a,b\n"c".jpg', "x", "y", "0.5"]]
    TEST_PREDICTIONS.write(tmp_path, rows)
    assert TEST_PREDICTIONS.read(tmp_path) == rows
    TRIALS.write(tmp_path, [[1, "Completed", 0.1]], further=("lr",))
    assert TRIALS.read_whole(tmp_path) == (["trial", "status", "lr"], [["1", "Completed", "0.1"]])


def test_a_table_with_another_header_and_a_row_that_was_cut_off_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / TEST_PREDICTIONS.name).write_text("path,label\na,b\n")
    assert TEST_PREDICTIONS.read(tmp_path) == []
    (tmp_path / TEST_PREDICTIONS.name).write_text("path,label,predicted,probability\na,b,c,0.5\nd,e")
    assert TEST_PREDICTIONS.read(tmp_path) == [["a", "b", "c", "0.5"]]


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    RESULT.write(tmp_path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        RESULT.write(tmp_path, {"loss": float("nan")})
    assert RESULT.read(tmp_path) == {"loss": 1.0}


def test_what_an_earlier_version_called_otherwise_is_found(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"config": {"lr": 0.1}}))
    assert SETUP.read(tmp_path) == {"config": {"lr": 0.1}}
    SETUP.write(tmp_path, {"config": {}})
    assert SETUP.read(tmp_path) == {"config": {}}


def test_a_failure_reads_back_and_is_cut_to_what_is_shown() -> None:
    failure = parse_failure(failure_text(JobError("the disk is full", "free some space")))
    assert (failure.message, failure.hint) == ("the disk is full", "free some space")
    assert len(failure_text(JobError("x" * 5000))) == FAILURE_MAX_CHARS


def test_a_stop_is_told_from_a_failure() -> None:
    assert parse_failure(stop_message("SIGTERM", "in epoch 2")).is_stop
    assert not parse_failure("the disk is full").is_stop


def test_the_best_epoch_is_the_first_of_the_most_accurate_with_the_lowest_loss() -> None:
    rows = [
        {"validation:accuracy": 0.7, "validation:loss": 0.9},
        {"validation:accuracy": 0.8, "validation:loss": 0.9},
        {"validation:accuracy": 0.8, "validation:loss": 0.7},
        {"validation:accuracy": 0.8, "validation:loss": 0.7},
        {"validation:accuracy": float("nan"), "validation:loss": 0.1},
    ]
    best = best_epoch(rows)
    assert best is not None
    assert (best.epoch, best.value, best.loss) == (3, 0.8, 0.7)
    lowest = best_epoch(rows, "validation:loss")
    assert lowest is not None
    assert lowest.epoch == 5
    assert best_epoch([{}, {"train:loss": 1.0}]) is None


def test_names_that_are_not_utf_8_are_written_as_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    RESULT.write(tmp_path, {name: 1})
    assert RESULT.read(tmp_path) == {name: 1}
    TEST_PREDICTIONS.write(tmp_path, [[name, "a", "b", "0.5"]])
    (tmp_path / TEST_PREDICTIONS.name).read_text(encoding="utf-8")
    assert TEST_PREDICTIONS.read(tmp_path) == [["caf\\xe9.jpg", "a", "b", "0.5"]]
    assert as_text(Path("d") / name) == "d/caf\\xe9.jpg"
    assert as_text(Path("Löwenzahn/日本.jpg")) == "Löwenzahn/日本.jpg"
