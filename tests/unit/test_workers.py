"""What the server program sees of its workers, with processes that play them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classifier.contract.errors import ArtifactError, PlatformError
from image_classifier.serving import workers
from image_classifier.serving.scratch import BusyMark, Scratch
from image_classifier.serving.workers import Workers


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    made = Scratch(tmp_path)
    made.create()
    return made


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def report(scratch: Scratch, process: int, **values: object) -> None:
    (scratch.root / "workers" / str(process)).write_text(json.dumps({"parent": os.getpid()} | values))


def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_worker_that_could_not_load_and_has_ended_since_is_told_of(scratch: Scratch):
    report(scratch, ended(), error="the model is damaged", hint="train it again")
    with pytest.raises(ArtifactError, match="the model is damaged"):
        Workers(scratch, num_wanted=1, answer_s=50).look()


def test_only_the_living_count_and_what_the_dead_left_is_removed(scratch: Scratch, worker: subprocess.Popen[bytes]):
    report(scratch, worker.pid, engine="e")
    report(scratch, ended(), engine="e")
    seen = Workers(scratch, num_wanted=2, answer_s=50)
    assert [each.engine for each in seen.look()] == ["e"]
    assert seen.num_alive == 1
    assert set(scratch.reports()) == {worker.pid}


def test_one_that_is_busy_for_too_long_is_killed_and_others_are_not(scratch: Scratch, worker: subprocess.Popen[bytes]):
    report(scratch, worker.pid, engine="e")
    mark = BusyMark(scratch.root / "busy" / str(worker.pid))
    Workers(scratch, num_wanted=1, answer_s=0).look()
    with mark.busy():
        since = scratch.busy_since(worker.pid)
        while time.monotonic() - since <= workers._KILL_AFTER_S:
            time.sleep(0.05)
        Workers(scratch, num_wanted=1, answer_s=50).look()
        assert worker.poll() is None
        Workers(scratch, num_wanted=1, answer_s=0).look()
    assert worker.wait(10) == -9


def test_workers_that_stay_away_end_the_program_and_so_does_a_parent_that_died(
    scratch: Scratch, worker: subprocess.Popen[bytes]
):
    seen = Workers(scratch, num_wanted=1, answer_s=50)
    seen.look()
    seen.replacement_s = 0
    with pytest.raises(PlatformError, match="1 of 1 workers died"):
        seen.look()
    report(scratch, worker.pid, engine="e", parent=ended())
    with pytest.raises(PlatformError, match="the process that workers are forked from has died"):
        seen.look()
