"""Threads that compute spin while the cores are theirs, and sleep beside a busy process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from image_classifier.contract.machine import allowed_cores
from image_classifier.training.waiting_threads import (
    ALONE_LOOKS,
    DIVIDED,
    LOOK_S,
    TASKS,
    Crowding,
    IdleTeam,
    WaitingThreads,
    teams_needed,
    waits_for_cores,
)

CODE = Path(__file__).parents[2] / "code"
# Switches that OpenMP's threads made because they went to sleep, while they wait between divided sums
SLEEPS = f"""
import os, time, torch
from image_classifier.training.waiting_threads import IdleTeam

def switches():
    lines = open(f"/proc/self/task/{{computing}}/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary")).split()[1])

before = set(os.listdir("/proc/self/task"))
numbers = torch.zeros({DIVIDED}).add_(1)
(computing,) = set(os.listdir("/proc/self/task")) - before
team = IdleTeam()
for kept in (False, True, False):
    team.keep(kept)
    first = switches()
    for _ in range(300):
        numbers.add_(1)
        until = time.perf_counter() + 1e-4
        while time.perf_counter() < until:
            pass
    print(switches() - first)
"""


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads() -> set[str]:
    """The ids of this process's; tests before this one may have left some that end at any time."""
    return {each.name for each in TASKS.iterdir()}


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether it does: a thread that has ended is there for a moment longer."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def looks(*shares: float) -> list[bool]:
    """What is seen when threads wait for these shares of the time between two looks."""
    moments = iter([LOOK_S * number for number in range(len(shares) + 1)])
    waited = iter([{"1": LOOK_S * sum(shares[:number])} for number in range(len(shares) + 1)])
    crowding = Crowding(lambda: next(waited), lambda: next(moments))
    return [crowding.look() for _ in shares]


def test_a_team_has_threads_and_leaves_none(two_threads: None) -> None:
    torch.zeros(DIVIDED).add_(1)  # the threads of this one
    before = threads()
    team = IdleTeam()
    team.keep(True)
    team.keep(True)
    assert comes_true(lambda: len(threads() - before) == 2)
    team.keep(False)
    assert comes_true(lambda: not threads() - before)


@pytest.mark.skipif(len(allowed_cores()) < 2, reason="on one core two threads always sleep")
def test_threads_sleep_only_while_there_is_a_team() -> None:
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment |= {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(CODE)}
    done = subprocess.run(
        [sys.executable, "-c", SLEEPS], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    before, kept, after = map(int, done.stdout.split())
    assert kept > 2 * max(before, after)


@pytest.mark.parametrize(("cores", "threads"), [(2, 2), (3, 2), (8, 8), (8, 4), (8, 2), (64, 4), (1, 2)])
def test_there_are_more_threads_than_cores_and_no_team_too_many(cores: int, threads: int) -> None:
    teams = teams_needed(cores, threads)
    assert 1 + (threads - 1) * (1 + teams) > cores
    assert teams == 1 or 1 + (threads - 1) * teams <= cores


def test_a_neighbour_is_noticed_at_once_and_its_end_after_some_looks() -> None:
    assert looks(0.01, 0.02, 0.7) == [False, False, True]
    assert looks(0.7, *[0.01] * ALONE_LOOKS) == [*[True] * ALONE_LOOKS, False]


def test_a_short_rest_of_the_neighbour_changes_nothing() -> None:
    almost = [0.01] * (ALONE_LOOKS - 1)
    assert all(looks(0.7, *almost, 0.07, *almost, 0.07))


def test_threads_that_come_and_go_count_for_what_they_waited() -> None:
    waited = iter([{"1": 5.0, "2": 90.0}, {"1": 5.0, "3": 0.4}, {"1": 5.0}])
    moments = iter([0.0, 1.0, 2.0])
    crowding = Crowding(lambda: next(waited), lambda: next(moments))
    assert crowding.look()  # thread 2 has ended, thread 3 has waited
    assert crowding.look()  # one quiet look is not enough


def test_where_the_system_does_not_tell_threads_sleep(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "schedstat").write_text("strange\n")
    assert waits_for_cores(tmp_path) == {}
    crowding = Crowding(lambda: {})
    assert crowding.is_crowded
    assert crowding.look()


def test_waits_are_read_for_each_thread(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("81 2500000000 3\n")
    assert waits_for_cores(tmp_path) == {"7": 2.5}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_nobody_looks_where_a_gpu_computes_or_one_thread(two_threads: None, device: str) -> None:
    torch.set_num_threads(2 if device == "cuda" else 1)
    before = threads()
    with WaitingThreads(torch.device(device)):
        assert not threads() - before


def test_the_looking_ends_with_the_training(two_threads: None) -> None:
    torch.zeros(DIVIDED).add_(1)
    before = threads()
    with WaitingThreads(torch.device("cpu")):
        assert comes_true(lambda: len(threads() - before) == 1)
    assert comes_true(lambda: not threads() - before)
