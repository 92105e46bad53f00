"""Whatever lies in a run's folder, every command says a sentence about it, and the other runs are none the worse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.asked import ask

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import JOB, RESULT
from image_classifier.launch.runs import Record, Run, Status, create_run
from image_classifier.tuning.tune_settings import TuneSettings

GOOD: dict[str, Any] = {
    "tune": dataclasses.asdict(TuneSettings()),
    "space": {"lr": [0.1, 0.2]},
    "carried": {},
    "best": {"objective": "validation:accuracy", "value": 0.5, "trial": 1},
}
AWS = {"id": "1", "region": "eu-west-1", "account": "1", "root": "s3://b/p", "resources": [["model", "m"]]}
WHOLE = [b"", b"null", b"[]", b'"x"', b"{}", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"kind": NaN}', b"7" * 5000]
FIELDS: dict[str, list[Any]] = {
    "kind": [None, 7, [], "nonsense"],
    "status": [None, 7, "Odd", []],
    "started": [7, "yesterday", "2026-01-01", "2026-01-01T00:00:00", "9999-12-31T23:59:59-23:00"],
    "ended": [None, "0001-01-01T00:00:00+00:00", "soon"],
    "processes": [None, 7, [[-1, 0.0]], [[2**40, 0.0]], [[True, 0.0]], [["1", 0.0]], [[1]], [[1, 1e999]], [{}]],
    "attempts": ["1", None, 1.5],
    "exit_code": ["1", [], 0.5],
    "failure": [None, 7],
    "data": [None, 7, "\ud800", "/nowhere"],
    "config": [None, [], {"lr": 7}, {"lr": "x"}, {"learning": "1"}, {"epochs": "1e99"}],
    "details": [
        None,
        [],
        {"best": 7},
        {"best": {"value": "x"}},
        {"port": 1},
        {**GOOD, "tune": 7},
        {**GOOD, "tune": {"trials": "x"}},
        {**GOOD, "space": None},
        {**GOOD, "space": {"lr": {"low": 2, "high": 1}}},
        {**GOOD, "carried": 7},
        {"aws": None},
        {"aws": 7},
        {"aws": {}},
        {"aws": {**AWS, "resources": None}},
        {"aws": {**AWS, "resources": [7]}},
    ],
    "newer": [{"a": 1}],  # what a later version may add is no damage
}
COMMANDS = [
    ["status"],
    ["status", "--json"],
    ["status", "bad"],
    ["status", "bad", "--json"],
    ["logs", "bad"],
    ["report", "bad"],
    ["rules", "bad"],
    ["serve", "bad"],
    ["train", "--resume", "bad"],
    ["tune", "--resume", "bad"],
    ["train", "--best", "bad"],
    ["delete", "bad", "--yes"],
]


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run beside a good one, in the working directory's runs."""
    monkeypatch.chdir(tmp_path)
    good = create_run(Path("runs"), "train", "good")
    good.end(Status.COMPLETED, exit_code=0)
    run = Run(path=Path("runs/bad").resolve())
    run.path.mkdir()
    return run


def damages(kind: str) -> Iterator[bytes]:
    yield from WHOLE
    config = TrainConfig(weights="none").to_hyperparameters()
    details = GOOD if kind == "tune" else {}
    record = Record(kind=kind, status=Status.STOPPED, config=config, data="/nowhere", details=details)
    document = json.loads(json.dumps(dataclasses.asdict(record)))
    for name, values in FIELDS.items():
        for value in values:
            yield json.dumps(document | {name: value}).encode()


def answers(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    for command in COMMANDS:
        ask(command, capsys, repr((run.path / JOB.name).read_bytes()[:300]))


@pytest.mark.parametrize("kind", ["train", "tune"])
def test_a_damaged_job_json_is_a_sentence_and_harms_no_other_run(
    bad: Run, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in damages(kind):
        bad.path.mkdir(exist_ok=True)  # the last command removes it, where the record is good enough for that
        (bad.path / JOB.name).write_bytes(damage)
        answers(capsys, bad)


@pytest.mark.parametrize("result", [7, [], {"metrics": 7}, {"metrics": {"test:accuracy": "x"}}], ids=str)
def test_a_damaged_result_is_shown_as_none(bad: Run, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bad.write(Record(kind="train", status=Status.COMPLETED))
    RESULT.write(bad.paths.output_data, result)
    answers(capsys, bad)
