"""Which of several processes of one host is the cause when a training fails: programs of a line, and no network."""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from image_classifier.contract.errors import EXIT_PLATFORM, EXIT_PROCESS_LOST, ProcessLost
from image_classifier.contract.paths import MlPaths
from image_classifier.training import toolkit_module
from image_classifier.training.ending import PROCESS_LOST, explain
from image_classifier.training.program import TrainingProgram
from image_classifier.training.toolkit_module import MAX_RESTARTS, run_program

PROGRAM = """
import os, sys, time
with open("begun", "a") as begun:
    begun.write("1")
exec(sys.argv[1 + int(os.environ["RANK"])])
"""
NOTICES = f"sys.exit({EXIT_PROCESS_LOST})"
IS_KILLED = f"os.kill(os.getpid(), {signal.SIGKILL:d})"
REFUSED = f"sys.exit({EXIT_PLATFORM})"
LATER = "time.sleep(0.5); "
HANGS = "time.sleep(600)"
KILLED = 128 + signal.SIGKILL


class Left(Exception):
    """In the place of the end of this process."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, int]]:
    """Runs a training of these processes, by rank; its exit code, and how often it was started."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    MlPaths(base=tmp_path).output.mkdir()
    (tmp_path / "train.py").write_text(PROGRAM)
    codes = [0]

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    monkeypatch.setattr(toolkit_module, "_leave", leave)
    monkeypatch.setattr(toolkit_module, "_install", lambda handler: None)
    monkeypatch.setattr(toolkit_module, "_GRACE_S", 1.0)

    def run(*processes: str, is_ours: bool = True) -> tuple[int, int]:
        program = TrainingProgram(name="train.py", folder=tmp_path, is_ours=is_ours)
        with contextlib.suppress(Left):
            run_program(program, processes, [{"RANK": str(rank)} for rank in range(len(processes))])
        return codes[-1], len((tmp_path / "begun").read_text()) // len(processes)

    return run


@pytest.mark.parametrize("processes", [(NOTICES, LATER + IS_KILLED), (LATER + IS_KILLED, NOTICES)])
def test_one_that_was_killed_is_the_cause_although_another_that_missed_it_was_gone_first(
    run: Callable[..., tuple[int, int]], tmp_path: Path, processes: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(*processes) == (KILLED, 1 + MAX_RESTARTS)
    assert caplog.text.count("a process of the training was killed by SIGKILL: all start again") == MAX_RESTARTS
    assert MlPaths(base=tmp_path).failure.read_text().startswith("the training script was killed by SIGKILL")


@pytest.mark.parametrize("processes", [(NOTICES, LATER + REFUSED), (LATER + REFUSED, NOTICES), (REFUSED, HANGS)])
def test_one_that_failed_by_itself_is_the_cause_and_nothing_is_started_again(
    run: Callable[..., tuple[int, int]], processes: tuple[str, str]
) -> None:
    assert run(*processes) == (EXIT_PLATFORM, 1)


def test_the_first_of_two_that_failed_by_themselves_is_the_cause(run: Callable[..., tuple[int, int]]) -> None:
    assert run(LATER + "sys.exit(1)", REFUSED) == (EXIT_PLATFORM, 1)


@pytest.mark.parametrize("processes", [(NOTICES, NOTICES), (HANGS, NOTICES)])
def test_where_all_miss_one_it_was_on_another_host(
    run: Callable[..., tuple[int, int]], processes: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """One that hangs is killed after a while, by us: no cause."""
    assert run(*processes) == (EXIT_PROCESS_LOST, 1 + MAX_RESTARTS)
    assert caplog.text.count(f"{PROCESS_LOST}: all start again") == MAX_RESTARTS


def test_a_program_of_somebodys_own_is_not_started_again(run: Callable[..., tuple[int, int]]) -> None:
    assert run(NOTICES, LATER + IS_KILLED, is_ours=False) == (KILLED, 1)


def test_nothing_failed(run: Callable[..., tuple[int, int]]) -> None:
    assert run("pass", LATER + "pass") == (0, 1)


def test_what_gloo_says_of_a_peer_that_is_gone_has_an_exit_code_of_its_own_in_every_process() -> None:
    error = explain(RuntimeError("[pair.cc:545] Read error [127.0.0.1]:44214: Connection reset by peer."))
    assert isinstance(error, ProcessLost)
    sent = pickle.loads(pickle.dumps(error))  # as one process tells another
    assert (sent.message, sent.hint, sent.exit_code) == (error.message, error.hint, EXIT_PROCESS_LOST)
