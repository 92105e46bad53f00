"""Cores, memory and ports are counted once, and a container's limits count, those of the groups above it included."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from image_classifier.contract import machine
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.machine import (
    allowed_cores,
    free_port,
    memory,
    require_free_port,
    usable_cores,
    usual_threads,
)

ALLOWED = len(allowed_cores())


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ALLOWED),
        ({"cpu.max": "max 100000"}, ALLOWED),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000000 100000"}, ALLOWED),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALLOWED),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_cores_are_limited_by_affinity_and_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path, files)
    assert usable_cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("wished", "expected"), [(None, 4), ("", 4), ("3", 3), ("64", 4), ("0", 4), ("4,2", 4), ("-1", 4), ("²", 4)]
)
def test_a_job_that_shares_the_machine_takes_its_share_of_threads(
    monkeypatch: pytest.MonkeyPatch, wished: str | None, expected: int
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    if wished is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert usual_threads() == expected


def test_the_container_limit_of_memory_counts_and_the_files_it_has_read_do_not(tmp_path: Path) -> None:
    total, _ = memory(tmp_path)
    limit = {"memory.current": "700000", "memory.stat": "anon 200000\ninactive_file 500000"}
    write(tmp_path, {"memory.max": "1000000", **limit})
    assert memory(tmp_path) == (1_000_000, 800_000)
    write(tmp_path, {"memory.max": "max"})
    assert memory(tmp_path)[0] == total
    (tmp_path / "memory.max").unlink()
    old = {"limit_in_bytes": "2000000", "usage_in_bytes": "500000", "stat": "total_inactive_file 0"}
    write(tmp_path, {f"memory/memory.{name}": text for name, text in old.items()})
    assert memory(tmp_path) == (2_000_000, 1_500_000)


def test_limits_of_the_groups_above_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"own": "0::/slice/job"})
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    write(tmp_path, {"slice/cpu.max": "100000 100000", "slice/job/cpu.max": "max 100000"})
    usage = {"memory.current": "0", "memory.stat": "inactive_file 0"}
    write(tmp_path, {f"slice/{name}": text for name, text in {"memory.max": "3000000", **usage}.items()})
    write(tmp_path, {f"slice/job/{name}": text for name, text in {"memory.max": "max", **usage}.items()})
    assert usable_cores(tmp_path) == 1
    assert memory(tmp_path) == (3_000_000, 3_000_000)


def test_a_group_outside_of_what_the_container_sees_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"own": "0::/../../other", "cpu.max": "100000 100000"})
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    assert usable_cores(tmp_path) == 1


def test_a_taken_port_is_named_and_the_next_free_one_found() -> None:
    port = free_port("127.0.0.1", 20_000)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(PlatformError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            require_free_port("127.0.0.1", port)
        assert f"--port {port + 1}" in caught.value.hint
        assert free_port("127.0.0.1", port) > port
    require_free_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PlatformError, match=r"cannot listen on 192\.0\.2\.1"):
        require_free_port("192.0.2.1", 8080)


def test_cores_memory_and_ports_are_counted_nowhere_else() -> None:
    """A second place would forget the container's limits, as five did once."""
    package = Path(machine.__file__).parents[1]
    counting = ("sched_getaffinity", "cpu_count(", "virtual_memory().total", "virtual_memory().available")
    found = {
        f"{path.relative_to(package)}: {word}"
        for path in package.rglob("*.py")
        for word in counting
        if word in path.read_text(encoding="utf-8")
    }
    assert found == {"contract/machine.py: sched_getaffinity"}
