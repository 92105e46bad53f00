"""How many workers a server starts of its own accord, and with how many threads each computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.test_machine import write

from image_classifier.contract.machine import usable_cores
from image_classifier.serving.capacity import SHARED_BYTES, WORKER_BYTES, default_workers, threads_of


def limit(cgroup: Path, size: int) -> None:
    write(cgroup, {"memory.max": str(size), "memory.current": "0", "memory.stat": "inactive_file 0"})


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_container_without_memory_for_more_gets_fewer_workers_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    monkeypatch.setattr("image_classifier.serving.capacity.usable_cores", lambda _: 64)
    limit(tmp_path, SHARED_BYTES + room * WORKER_BYTES)
    assert default_workers(tmp_path) == max(1, room)


def test_where_there_is_memory_every_core_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    limit(tmp_path, 2_000_000_000)
    assert default_workers(tmp_path) == min(3, usable_cores())


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (2, 2, 1), (2, 1, 2), (16, 3, 5), (2, 9, 1)])
def test_fewer_workers_than_cores_share_the_cores_among_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    monkeypatch.setattr("image_classifier.serving.capacity.usable_cores", lambda _: cores)
    assert threads_of(workers) == threads


def test_where_a_gpu_computes_a_worker_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "auto")
    monkeypatch.setattr("image_classifier.serving.capacity.has_gpu", lambda: True)
    monkeypatch.setattr("image_classifier.serving.capacity.usable_cores", lambda _: 16)
    assert threads_of(4) == 1
