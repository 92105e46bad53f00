"""Run folders: made without collisions, read back as they truly stand."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from image_classifier.contract.errors import ConfigError, PlatformError
from image_classifier.contract.outputs import JOB, Failure
from image_classifier.launch.runs import Run, Status, create_run, find_run, list_runs


def dead_process() -> tuple[int, float]:
    """Id and start time of a process that has ended."""
    import psutil

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = psutil.Process(process.pid).create_time()
        process.communicate(b"\n")
    return process.pid, started


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda _: create_run(tmp_path, "train"), range(16)))
    assert len({run.path for run in runs}) == 16
    assert {run.record().status for run in runs} == {Status.FAILED}  # nobody runs them


def test_a_run_is_named_so_that_the_hint_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for runs_dir in (Path("runs"), Path("demo/runs"), tmp_path.parent / f"{tmp_path.name}-elsewhere"):
        run = create_run(runs_dir, "train")
        assert find_run(Path("runs"), run.typed) == run
    assert create_run(Path("runs"), "train", "x").typed.endswith("-x")
    assert "/" not in create_run(Path("runs"), "train").typed


def test_running_job_is_in_progress_and_keeps_what_was_written(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train", "mine", data="/d", config={"lr": "0.1"})
    run.begin()
    record = Run(path=run.path).record()
    assert (record.status, record.attempts, record.config) == (Status.IN_PROGRESS, 1, {"lr": "0.1"})
    assert run.name.startswith("train-")
    assert run.name.endswith("-mine")
    assert record.version


def test_job_without_processes_is_seen_as_killed(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train")
    run.begin()
    run.update(processes=(dead_process(),))
    record = run.record()
    assert record.status == Status.FAILED
    assert "killed" in record.failure


def test_reused_process_id_does_not_bring_a_job_to_life(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train")
    run.begin()
    run.update(processes=((os.getpid(), 12345.0),))
    assert run.record().status == Status.FAILED


def test_first_cause_of_a_dead_job_is_its_failure_file(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train")
    run.begin()
    run.update(processes=(dead_process(),))
    run.paths.output.mkdir()
    run.paths.failure.write_text("stopped by SIGTERM in epoch 2\nhint: go on")
    record = run.record()
    assert (record.status, record.failure) == (Status.STOPPED, "stopped by SIGTERM in epoch 2")
    assert run.failure() == Failure("stopped by SIGTERM in epoch 2", "go on")


def test_newest_finished_run_of_a_kind_is_found(tmp_path: Path) -> None:
    first, second, third = (create_run(tmp_path, "train") for _ in range(3))
    create_run(tmp_path, "tune")
    first.end(Status.COMPLETED)
    second.end(Status.COMPLETED)
    third.end(Status.FAILED)
    assert find_run(tmp_path, kind="train", status=Status.COMPLETED) == second
    assert [run for run in list_runs(tmp_path) if run.name.startswith("train")] == [first, second, third]


def test_run_is_found_by_folder_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(tmp_path, "train")
    monkeypatch.chdir(tmp_path)
    assert find_run(Path("elsewhere"), str(run.path)) == run
    assert find_run(tmp_path, run.name) == run
    with pytest.raises(ConfigError, match="is a train run, not a tune run"):
        find_run(tmp_path, run.name, kind="tune")
    with pytest.raises(ConfigError, match="there is no run 'nothing'"):
        find_run(tmp_path, "nothing")
    with pytest.raises(ConfigError, match="there is no finished serve run"):
        find_run(tmp_path, kind="serve", status=Status.COMPLETED)


@pytest.mark.parametrize("name", ["a b", "../up", "x" * 41, "-dash", "ü"])
def test_names_that_make_bad_folders_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a run"):
        create_run(tmp_path, "train", name)
    assert not list(tmp_path.iterdir())


def test_runs_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlatformError, match=r"cannot make a run folder in .*: Not a directory") as caught:
        create_run(tmp_path / "file" / "runs", "train")
    assert "--runs-dir" in caught.value.hint


def test_damaged_record_is_a_sentence(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train")
    (run.path / JOB.name).write_text(json.dumps({"kind": "train"}))
    with pytest.raises(PlatformError, match=r"job.json is damaged"):
        run.record()
    with pytest.raises(ConfigError, match="there is no run"):  # and the others can still be found
        find_run(tmp_path)


def test_a_run_is_its_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run = create_run(tmp_path / "runs", "train")
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
