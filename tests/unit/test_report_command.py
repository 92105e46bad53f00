"""`deploy.py report`: from a name, a folder, or nothing to a page."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from tests.report_folders import make_job, make_tuning

from image_classifier.cli.main import main
from image_classifier.cli.rules_command import verdict_code
from image_classifier.debugging.rules import RULES, parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, Verdict
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
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["rule", "fired"],
        ["Dataloader", "warning"],
        ["2 rules: 1 fired; 0 lacked data; 1 found nothing wrong"],
    ]
    assert main(["rules", folder.name, "--tensors"]) == 1
    assert "holds no tensors of smdebug" in capsys.readouterr().err


def test_the_console_shows_what_fired_then_what_lacked_data_and_counts_the_rest(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = next(runs.glob("train-*"))
    assert main(["rules", folder.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["rules", folder.name]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    fired = [each["rule"] for each in found if each["verdict"] == "IssuesFound"]
    lacking = [each for each in found if each["verdict"] == "InsufficientData" and each["applies"]]
    assert [row.split("\t")[0] for row in rows] == ["rule", *fired, "rule", *(each["rule"] for each in lacking)]
    assert all(f"{each['rule']}\t{each['summary']}" in rows for each in lacking)
    assert last.startswith(f"{len(RULES)} rules: {len(fired)} fired; {len(lacking)} lacked data; ")
    told = sum(int(number) for number in re.findall(r"(\d+) (?:fired|lacked|found|do not)", last))
    tables = sum(not rule.judges for rule in RULES.values())
    assert len(RULES) - tables <= told <= len(RULES)  # a table finds nothing wrong nor right


def test_scripts_are_told_by_the_exit_code(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(runs.glob("train-*")).name
    assert main(["rules", folder, "--only", "Dataloader", "--exit-code"]) == 3
    assert main(["rules", folder, "--only", "ClassImbalance", "--exit-code", "--json"]) == 4
    assert main(["rules", folder, "--only", "ExplodingTensor", "--exit-code"]) == 0
    assert main(["rules", folder, "--only", "ClassImbalance"]) == 0
    capsys.readouterr()


def test_what_only_informs_or_does_not_apply_is_no_failure() -> None:
    (rule,) = parse_rules("Overtraining")
    fired = dataclasses.replace(rule.check(RunData(JobFacts(config={}))), verdict=Verdict.ISSUES)
    assert fired.severity == "info"
    elsewhere = dataclasses.replace(fired, severity="warning", verdict=Verdict.INSUFFICIENT_DATA, applies=False)
    assert verdict_code([fired, elsewhere]) == 0
    assert verdict_code([dataclasses.replace(elsewhere, applies=True)]) == 4
    assert verdict_code([dataclasses.replace(elsewhere, verdict=Verdict.ERROR, applies=True)]) == 4


@pytest.mark.parametrize("name", RULES)
def test_every_rule_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--explain", name]) == 0
    text = capsys.readouterr().out
    rule = RULES[name]
    assert text.startswith(f"{name} ({rule.severity}, about ")
    assert all(part and part in text for part in (rule.looks_at, rule.remedy, rule.source))
    assert (rule.__doc__ or "").split("\n", maxsplit=1)[0] in text
    assert main(["rules", "--explain", name, "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert set(known) >= {"rule", "asks", "formula", "evidence", "remedy", "source", "parameters"}


def test_no_rule_of_that_name_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--explain", "Overfitting"]) == 2
    assert "did you mean Overfit?" in capsys.readouterr().err
    assert main(["rules", "--explain", "Overfit", "--exit-code"]) == 2
