"""Any bytes in any file of a run: every command says a sentence about that run, and lists the others.

What job.json may hold is in test_damaged_runs.py, what a report makes of damaged records in test_report_damaged.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.asked import ask
from tests.report_folders import make_job, make_tuning

from image_classifier.cli import settings
from image_classifier.cli.main import main
from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import JOB, STUDY
from image_classifier.contract.paths import MlPaths
from image_classifier.launch import local
from image_classifier.launch.process import Job
from image_classifier.launch.runs import Record, Run, Status, create_run, open_run
from image_classifier.launch.view import SILENT, View
from image_classifier.tuning import tuner
from image_classifier.tuning.study import open_study
from image_classifier.vision.sample_data import make_sample_data

CONFIG = TrainConfig(weights="none", epochs=1, batch_size=4)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to(target: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return damage


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": holding(b""),
    "null": holding(b"null"),
    "a list of lists": holding(b'[[], [{"a": [{}]}]]\n'),
    "objects of other types": holding(
        b'{"metrics": null, "hyperparameters": 7, "epoch": true, "epochs": "x"}\n{"epoch": "x"}\n'
    ),
    "numbers that are none": holding(b'{"seconds": NaN, "metrics": {"test:accuracy": 1e999}, "epoch": 1e999}\n'),
    "deep": holding(b"[" * 100_000),
    "digits": holding(b"7" * 5000),
    "binary": holding(bytes(range(256)) * 8),
    "a table of another": holding(b'a,b\n"x'),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "folder": folder_instead,
    "link to nowhere": link_to("/nowhere/at/all"),
    "link to itself": lambda path: link_to(path.name)(path),
    "pipe": pipe_instead,
    "link to a device without end": link_to("/dev/zero"),
}
LIGHT = [
    ["status"],
    ["status", "--json"],
    ["status", "BAD"],
    ["status", "BAD", "--json"],
    ["logs", "BAD"],
    ["train", "--best", "BAD", "--data", "nowhere"],
    ["delete", "BAD"],
    ["prune", "--keep", "0"],
]
HEAVY = [
    ["report", "BAD"],
    ["rules", "BAD"],
    ["serve", "BAD"],
    ["tune", "--resume", "BAD"],
    ["train", "--resume", "BAD"],
]
LAST = [["delete", "BAD", "--yes"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and with runs: a good one, a training and a search."""
    root = tmp_path_factory.mktemp("whole")
    data = root / "data"
    make_sample_data(data, num_classes=2, train_per_class=12, valid_per_class=1, test_per_class=0, size=32)
    create_run(root / "runs", "train", "good").end(Status.COMPLETED, exit_code=0)
    record = Record(kind="train", status=Status.STOPPED, config=CONFIG.to_hyperparameters(), data=str(data))
    fill(open_run(root / "runs" / "train-bad", record), data)
    given = settings.load({"tune.trials": 2}, environ={})
    search = tuner.create(CONFIG, given.search, given.tune, data, root / "runs", name="x", given=frozenset())
    made = make_tuning(root / "made", trials=3)
    JOB.write(made, JOB.read(search.run.path))
    shutil.rmtree(search.run.path)
    run = Run(path=made.rename(root / "runs" / "tune-bad"))
    run.end(Status.STOPPED)
    open_run(run.path / "trials" / "001", record)
    open_study(run, search).ask().set_user_attr("number", 1)
    return root


def fill(run: Run, data: Path) -> None:
    """Puts into a training's folder what it has when it was stopped."""
    make_job(run.path, epochs=1, test_per_class=1, classes=("a", "b"))
    shutil.rmtree(run.paths.data)
    local.prepare_training(run, CONFIG, {"train": data / "train"})
    for path, text in {
        run.log: "metrics epoch=1 validation:accuracy=0.5\n",
        run.paths.failure: "stopped by SIGTERM\nhint: go on",
        run.paths.checkpoints / "last.pt": "weights",
        run.paths.model / "manifest.json": "{}",
        run.archive: "a model",
        run.path / ".lock": "",
    }.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a job that ends at once in the place of the training and of the server."""
    monkeypatch.chdir(tmp_path)

    def start(run: Run, *, share: int = 1, view: View = SILENT, host: str = "", port: int = 0) -> Job:
        job = Job.start(["false"], env=os.environ, cwd=run.path, log=run.log)
        run.begin(job.pid)
        return job

    monkeypatch.setattr(local, "start_training", start)
    monkeypatch.setattr(local, "start_server", start)
    shutil.copytree(whole / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path


def files_of(run: Path) -> list[Path]:
    """The run's own files, and not the images that it links to."""
    data = MlPaths(base=run).data
    return [path for path in sorted(run.rglob("*")) if path.is_file() and data not in path.parents]


def ask_all(commands: list[list[str]], name: str, capsys: pytest.CaptureFixture[str], what: str) -> None:
    for words in commands:
        ask([name if word == "BAD" else word for word in words], capsys, what, damaged=name)


@pytest.mark.parametrize("name", ["train-bad", "tune-bad"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_file_is_no_more_than_a_sentence(
    damage: str, name: str, whole: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = here / "runs" / name
    for path in files_of(run):
        DAMAGES[damage](path)
        ask_all(LIGHT, name, capsys, f"{path.relative_to(run)} {damage}")
        path.rmdir() if path.is_dir() else path.unlink()
        shutil.copy2(whole / path.relative_to(here), path)


@pytest.mark.parametrize("name", ["train-bad", "tune-bad"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_of_which_job_json_alone_is_whole_can_be_asked_and_gone_on_with(
    damage: str, name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files_of(here / "runs" / name):
        if path.name != JOB.name:
            DAMAGES[damage](path)
    ask_all(LIGHT + HEAVY + LAST, name, capsys, f"all {damage}")


@pytest.mark.parametrize("name", ["train-bad", "tune-bad"])
def test_nobody_waits_for_a_pipe_in_the_place_of_a_file(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = here / "runs" / name
    for path in files_of(run):
        if path.suffix in {".json", ".jsonl", ".csv", ".log"} and "model" not in path.parts and path.name != JOB.name:
            pipe_instead(path)
    ask_all([*LIGHT[:5], ["report", "BAD"], ["rules", "BAD"]], name, capsys, "pipes")
    pipe_instead(run / JOB.name)
    ask_all(LIGHT[:5], name, capsys, "job.json is a pipe")


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "{}",
        '{"op_code": 99}',
        '{"op_code": 4, "worker_id": "w", "study_id": 77}',
        '{"op_code": 8, "worker_id": "w", "trial_id": 0, "user_attr": {"number": "one"}}',
        '{"op_code": 8, "worker_id": "w", "trial_id": 0, "user_attr": {"number": null}}',
        "\ud800",
        "[" * 100_000,
    ],
    ids=lambda line: line[:70].encode("ascii", "replace").decode(),
)
def test_a_journal_with_a_line_of_another_kind_is_said_to_be_damaged(
    line: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = here / "runs" / "tune-bad" / STUDY
    journal.write_bytes(journal.read_bytes() + line.encode("utf-8", "surrogatepass") + b"\n{}\n")
    assert main(["tune", "--resume", "tune-bad"]) in (1, 2)
    assert f"{STUDY} is damaged" in capsys.readouterr().err


def test_a_search_whose_folder_was_renamed_keeps_its_trials(here: Path) -> None:
    run = Run(path=(here / "runs" / "tune-bad").rename(here / "runs" / "tune-renamed"))
    trials = open_study(run, tuner.resume(run, {})).get_trials()
    assert [trial.user_attrs["number"] for trial in trials] == [1]


@pytest.mark.parametrize("moment", [1e11, 1e15, -1e11])
def test_a_log_of_an_impossible_time_harms_no_other_run(
    moment: float, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(path=here / "runs" / "train-bad")
    run.update(status=Status.IN_PROGRESS, started="2026-01-01T00:00:00+00:00")
    os.utime(run.log, (moment, moment))
    ask_all(LIGHT, "train-bad", capsys, "a log of another time")
    main(["status", "train-bad", "--json"])
    assert json.loads(capsys.readouterr().out)["seconds"] >= 0


@pytest.mark.parametrize("started", ["2999-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"])
def test_a_clock_that_was_set_back_makes_no_negative_time(
    started: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(path=here / "runs" / "train-bad")
    run.update(started=started, ended="2026-01-01T00:00:00+00:00")
    assert main(["status"]) == 0
    assert "-" not in next(row for row in capsys.readouterr().out.splitlines() if "train-bad" in row).split("\t")[3]
