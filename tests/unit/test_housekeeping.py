"""Runs that are removed, and runs that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_classifier.cli.main import main
from image_classifier.contract.errors import ConfigError, JobStopped
from image_classifier.launch.housekeeping import prunable, remove, size_bytes
from image_classifier.launch.runs import REMOTE, Record, Run, Status, open_run
from image_classifier.launch.view import View


class Answering(View):
    """Answers every question in one way, and remembers them."""

    def __init__(self, answer: bool | None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def ask(self, question: str) -> bool | None:
        self.asked.append(question)
        return self.answer


def made(runs: Path, name: str, **record: object) -> Run:
    """A run that has ended, with a model of 2 MB and a link to its images."""
    kind = name.partition("-")[0]
    run = open_run(runs / name, Record(kind=kind, **{"status": Status.COMPLETED, **record}))  # type: ignore[arg-type]
    (run.path / "model.tar.gz").write_bytes(bytes(2_000_000))
    (run.path / "input").mkdir()
    (run.path / "input" / "train").symlink_to(runs.parent / "photos")
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs of a working directory, with photos beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(bytes(9_000_000))
    return tmp_path / "runs"


def test_a_run_is_removed_after_a_question_that_says_what_it_takes(runs: Path) -> None:
    run = made(runs, "train-20260101-000000")
    view = Answering(True)
    assert 2_000_000 < remove([run], view, yes=False) == pytest.approx(2_000_000, abs=10_000)
    assert view.asked == ["Remove this folder, 2.0 MB, with models and reports?"]
    assert list(runs.iterdir()) == []
    assert (runs.parent / "photos" / "1.jpg").is_file()  # what a link leads to stays


def test_without_a_yes_nothing_is_removed(runs: Path) -> None:
    run = made(runs, "train-20260101-000000")
    with pytest.raises(JobStopped, match="nothing was removed"):
        remove([run], Answering(False), yes=False)
    with pytest.raises(ConfigError, match="no terminal to ask on"):
        remove([run], Answering(None), yes=False)
    assert main(["delete", run.name]) == 2  # in a test there is no terminal
    assert run.path.is_dir()


def test_a_run_that_goes_on_and_a_trial_are_not_removed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = made(runs, "train-20260101-000000")
    running.begin()  # by this process
    search = made(runs, "tune-20260102-000000")
    trial = made(search.path / "trials", "001")
    for run, sentence in ((running, "is still running"), (trial, f"is a trial of {search.name}")):
        assert main(["delete", str(run.path), "--yes"]) == 2
        assert sentence in capsys.readouterr().err
        assert run.path.is_dir()


def test_prune_keeps_the_newest_of_each_kind_and_what_runs_or_lies_on_aws(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in range(1, 5):
        made(runs, f"train-2026010{day}-000000")
        made(runs, f"serve-2026010{day}-000000", status=Status.STOPPED)
    made(runs, "train-20250101-000000", details={REMOTE: {}})
    made(runs, "train-20250102-000000").begin()
    made(runs, "train-20250103-000000")
    (runs / "train-20250103-000000" / "job.json").write_text("{")
    assert main(["prune", "--keep", "3", "--yes"]) == 0
    assert "removed: 4.0 MB" in capsys.readouterr().err
    assert sorted(path.name for path in runs.iterdir() if "202601" in path.name) == sorted(
        f"{kind}-2026010{day}-000000" for kind in ("train", "serve") for day in (2, 3, 4)
    )
    assert len(list(runs.glob("train-2025*"))) == 3
    assert main(["prune", "--keep", "3", "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().err
    assert len(prunable(runs, 0)) == 6
    assert main(["prune"]) == 2
    assert main(["prune", "--keep", "-1"]) == 2


def test_a_link_to_a_large_folder_is_not_counted(runs: Path) -> None:
    run = made(runs, "train-20260101-000000")
    (run.path / "photo.jpg").symlink_to(runs.parent / "photos" / "1.jpg")
    assert size_bytes(run.path) < 2_100_000


def test_who_finds_no_runs_is_told_where_there_are_some(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(runs.parent / "demo" / "runs", "train-20260101-000000")
    for command in (["status"], ["serve"], ["logs"], ["report"]):
        main(command)
        said = capsys.readouterr().err
        assert "hint: there are runs in demo/runs: deploy.py --runs-dir demo/runs ..." in said, command
    assert main(["--runs-dir", "demo/runs", "status"]) == 0
    assert "train-20260101-000000" in capsys.readouterr().out
