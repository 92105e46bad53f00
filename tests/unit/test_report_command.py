"""`deploy.py report`: from a name, a folder, or nothing to a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.report_folders import make_job, make_tuning

from image_classifier.cli.main import main
from image_classifier.launch.runs import Status, create_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs: a training, then a search, then a server."""
    monkeypatch.chdir(tmp_path)
    for kind, make in (("train", make_job), ("tune", make_tuning), ("serve", None)):
        run = create_run(tmp_path / "runs", kind, kind)
        run.end(Status.COMPLETED, exit_code=0)
        if make is not None:
            made = make(tmp_path / "made")
            shutil.copytree(made, run.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("job.json"))
            shutil.rmtree(made)
    return tmp_path / "runs"


def test_the_newest_training_or_search_is_reported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    name = capsys.readouterr().out.split()[-1]
    assert name.endswith("tune/report.html")
    assert Path(name).read_text().startswith("<!DOCTYPE html>")


def test_a_run_is_reported_by_name_and_by_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(runs.glob("train-*"))
    assert main(["report", folder.name]) == 0
    assert main(["report", str(folder / "output" / "data"), "--json"]) == 0
    out = capsys.readouterr().out
    facts = json.loads(out[out.index("{") :])
    assert facts["kind"] == "train"
    assert (folder / "output" / "data" / "report.html").is_file()


def test_what_is_no_job_is_refused_with_a_hint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs)]) == 1
    assert main(["report", "nothing"]) == 2
    err = capsys.readouterr().err
    assert "holds no output of a training job" in err
    assert err.count("hint:") == 2


def test_a_run_is_judged_again_by_what_it_saved(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(runs.glob("train-*"))
    assert main(["rules", folder.name, "--json"]) == 0
    verdicts = {each["rule"]: each["verdict"] for each in json.loads(capsys.readouterr().out)}
    assert len(verdicts) > 20
    assert "Error" not in verdicts.values()
    assert verdicts["ExplodingTensor"] == "NoIssuesFound"
    assert main(["rules", str(folder / "output" / "data"), "--only", "Overfit,Dataloader"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["rule", "Overfit", "Dataloader"]
    assert main(["rules", folder.name, "--tensors"]) == 1
    assert "holds no tensors of smdebug" in capsys.readouterr().err
