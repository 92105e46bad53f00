"""Files that a kill, a full disk or a clock left odd: a report and verdicts all the same, or one clear sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report_folders import make_job

from image_classifier.contract.errors import DataError
from image_classifier.contract.outputs import SYSTEM_FOLDER
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.saved import read_files
from image_classifier.debugging.schema import StepRecord, Verdict, read_steps, read_system, to_json
from image_classifier.report import write_report
from image_classifier.vision.confidence import exact_interval

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "cut off in the middle": lambda text: text[: len(text) // 2],
    "other bytes": lambda text: b"\xff\xfe\x00garbage\n\xff" * 5,
    "zeros at the end": lambda text: text[:200] + b"\0" * 100,
    "lists": lambda text: b"[1,2]\n[]\n",
    "NaN": lambda text: re.sub(rb": -?\d+\.\d+", b": NaN", text),
    "Infinity": lambda text: re.sub(rb": -?\d+\.\d+", b": Infinity", text),
    "negative": lambda text: re.sub(rb": (\d)", rb": -\1", text),
    "zero": lambda text: re.sub(rb": -?\d+(\.\d+)?", b": 0", text),
    "backwards": lambda text: b"\n".join(reversed(text.strip().split(b"\n"))) + b"\n",
    "twice": lambda text: text + text,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("whole") / "train", epochs=2, test_per_class=2, processes=2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_report_is_made_whichever_file_is_damaged(damage: str, whole: Path, tmp_path: Path) -> None:
    job = tmp_path / "train"
    shutil.copytree(whole, job)
    files = [path for path in (job / "output").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        text = path.read_bytes()
        path.write_bytes(DAMAGES[damage](text))
        page = write_report(job).read_text()
        assert page.rstrip().endswith("</html>"), path.name
        json.loads((job / "output" / "data" / "report.json").read_text())
        path.write_bytes(text)


@pytest.mark.parametrize("damage", ["empty", "cut off in the middle", "other bytes", "NaN", "backwards", "twice"])
@pytest.mark.parametrize("name", ["steps.jsonl", "statistics.jsonl"])
def test_rules_judge_what_is_left(name: str, damage: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "output", tmp_path / "output")
    path = tmp_path / "output" / "data" / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    verdicts = {each.rule: each.verdict for each in judge(read_files(tmp_path / "output"), parse_rules("all"))}
    assert Verdict.ERROR not in verdicts.values(), verdicts


def test_a_job_file_that_is_damaged_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "output", tmp_path / "output")
    (tmp_path / "output" / "data" / "setup.json").write_text("{")
    with pytest.raises(DataError, match=r"the recordings in .*data are damaged") as caught:
        read_files(tmp_path / "output")
    assert caught.value.hint


def test_a_loss_that_is_not_finite_is_kept_and_a_half_line_is_not(tmp_path: Path) -> None:
    steps = [
        StepRecord(
            step=step, epoch=1, mode="train", time=9.0 - step, seconds=0.1, images=1, loss=float("nan"), clean_loss=1.0
        )
        for step in range(3)
    ]  # the clock was set back
    lines = [to_json(step) for step in steps]
    (tmp_path / "steps.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    assert sorted(step.step for step in read_steps(tmp_path)) == [0, 1]


def test_a_metric_that_is_no_number_is_passed_over(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / SYSTEM_FOLDER
    shutil.copytree(whole / "output" / SYSTEM_FOLDER, place)
    before = read_system(tmp_path)
    path = next(place.rglob("*.json"))
    path.write_text(re.sub(r'"Value": [^,]+', '"Value": NaN', path.read_text(), count=3))
    assert len(read_system(tmp_path)) == len(before) - 3


def test_an_interval_stays_between_0_and_1() -> None:
    assert exact_interval(5, 0) == (0.0, 1.0)
    for hits in (-1, 0, 5, 7):
        low, high = exact_interval(hits, 5)
        assert 0 <= low < high <= 1
