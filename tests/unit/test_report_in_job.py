"""The trainer's own call for a report: made however the job ended, and never in its way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tests.report_folders import make_job

from image_classifier.contract.paths import MlPaths
from image_classifier.training.ending import report
from image_classifier.training.script import main


def test_a_job_is_reported_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_JOB_NAME", "flowers-7")
    paths = MlPaths(base=make_job(tmp_path / "ml", epochs=2, test_per_class=2))
    report(paths)
    assert "<title>Training flowers-7</title>" in (paths.output_data / "report.html").read_text(encoding="utf-8")
    assert json.loads((paths.output_data / "report.json").read_text(encoding="utf-8"))["name"] == "flowers-7"


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = MlPaths(base=make_job(tmp_path / "ml", epochs=2, test_per_class=2))
    (paths.output_data / "report.html").mkdir()
    report(paths)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no report: cannot write" in caplog.text


def test_a_job_that_recorded_nothing_keeps_its_own_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert main(["--epochs", "none"]) == 2
    assert (tmp_path / "output" / "failure").read_text().startswith("epochs must be a whole number")
    assert not (tmp_path / "output" / "data" / "report.html").exists()
