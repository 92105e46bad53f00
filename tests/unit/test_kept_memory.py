"""What a training on a CPU frees is used again without asking the system for it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.test_training_loop import CONFIG

from image_classifier.contract.paths import MlPaths
from image_classifier.training import job, kept_memory
from image_classifier.training.kept_memory import DECODED_BYTES, keep_decoded_memory, keep_freed_memory
from image_classifier.training.stop import StopFlag

CODE = str(Path(kept_memory.__file__).parents[2])
PROGRAM = """
import ctypes, resource, sys
from image_classifier.training.kept_memory import keep_decoded_memory, keep_freed_memory

libc = ctypes.CDLL(None)
assert libc.prctl(41, 1, 0, 0, 0) == 0  # no huge pages: they are few whether kept or not
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
used, beside = int(sys.argv[1]), int(sys.argv[2])
kept = {"kept": keep_freed_memory, "decoded": keep_decoded_memory, "not": bool}[sys.argv[3]]()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory, untouched = libc.malloc(used), libc.malloc(beside)
    assert memory and untouched
    libc.memset(memory, 1, used)
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    libc.free(memory)
    libc.free(untouched)
    return found

first, second = faults(), faults()
print(kept, first, second)
"""
USED, PAGE = 2**26, 4096


def page_faults(how: str, beside: int, used: int = USED) -> tuple[bool, int, int]:
    """Whether it was set; pages that the system gave for a large buffer, and for the next one."""
    command = [sys.executable, "-c", PROGRAM, str(used), str(beside), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": CODE})
    kept, first, second = done.stdout.split()
    return kept == "True", int(first), int(second)


@pytest.mark.parametrize("beside", [2**20, 3 * 2**30], ids=["a little", "more than 2 GB"])
def test_what_is_freed_is_not_asked_for_again(beside: int) -> None:
    """However much is freed with it."""
    pages = USED // PAGE
    kept, first, second = page_faults("kept", beside)
    assert kept
    assert first > 0.9 * pages
    assert second < pages / 10
    kept, _, second = page_faults("not", beside)
    assert not kept
    assert second > 0.9 * pages


@pytest.mark.parametrize("megabytes", [4, 20])
def test_what_a_picture_took_is_there_for_the_next_one(megabytes: int) -> None:
    pages = megabytes * 2**20 // PAGE
    kept, first, second = page_faults("decoded", 2**10, megabytes * 2**20)
    assert kept
    assert first > 0.9 * pages
    assert second < pages / 10


def test_what_a_huge_picture_took_goes_back() -> None:
    kept, _, second = page_faults("decoded", 2**10, 4 * DECODED_BYTES)
    assert kept
    assert second > 0.9 * 4 * DECODED_BYTES // PAGE


LARGE = """
import ctypes, sys
from image_classifier.training.kept_memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
assert sys.argv[1] == "not" or keep_freed_memory()
place = libc.malloc(2**26) + 2**25
is_there = False
for line in open("/proc/self/smaps"):
    first, _, rest = line.partition("-")
    if rest and ":" not in first:
        is_there = int(first, 16) <= place < int(rest.split()[0], 16)
    elif is_there and line.startswith("VmFlags"):
        print("hg" in line.split())
"""
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("how", ["kept", "not"])
def test_large_pages_are_asked_for_where_the_system_has_some(how: str) -> None:
    """How many it has to give is another question."""
    if not LARGE_PAGES.exists():
        pytest.skip("this system has no large pages")
    if kept_memory.OVERCOMMIT.read_text().strip() == kept_memory.STRICT:
        pytest.skip("this system counts what is asked for")
    command = [sys.executable, "-c", LARGE, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": CODE})
    assert done.stdout.split() == [str(how == "kept")]


class Function:
    """Of a C library; answers so, and keeps what it was called with."""

    def __init__(self, *answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answers = iter(answers)

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return next(self._answers, None)


class Library:
    """A C library whose mallopt answers so, and which has memory at a place."""

    def __init__(self, *answers: int, place: int | None = 0x1234) -> None:
        self.mallopt, self.malloc, self.free, self.madvise = Function(*answers), Function(place), Function(), Function()

    @property
    def set(self) -> list[tuple[int, int]]:
        return self.mallopt.calls


@pytest.fixture
def nothing_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that has nothing to say of malloc."""
    for name in [name for name in kept_memory.os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("answers", "expected"), [((1, 1), True), ((0, 1), False), ((1, 0), False)])
@pytest.mark.parametrize(
    ("keep", "settings"),
    [
        (keep_freed_memory, [(-4, 0), (-1, -1)]),
        (keep_decoded_memory, [(-3, DECODED_BYTES), (-1, 2 * DECODED_BYTES)]),
    ],
    ids=["a training", "a loading process"],
)
@pytest.mark.usefixtures("nothing_set_up")
def test_it_is_set_where_both_settings_are_taken(
    monkeypatch: pytest.MonkeyPatch,
    keep: Callable[[], bool],
    settings: list[tuple[int, int]],
    answers: tuple[int, int],
    expected: bool,
) -> None:
    library = Library(*answers)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert keep() is expected
    assert library.set == settings
    assert len(library.malloc.calls) == (expected and keep is keep_freed_memory)  # for its large pages


@pytest.mark.parametrize(("overcommit", "asked"), [("0", True), ("1", True), ("2", False), (None, False)])
@pytest.mark.parametrize("place", [0x1234, None], ids=["there", "more than there may be"])
@pytest.mark.usefixtures("nothing_set_up")
def test_the_heap_grows_to_what_is_free_and_whole_pages_of_it_may_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overcommit: str | None, asked: bool, place: int | None
) -> None:
    """But where memory counts as used that nobody has written to."""
    library = Library(1, 1, place=place)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(kept_memory, "memory", lambda: (10 * PAGE, 4 * PAGE))
    monkeypatch.setattr(kept_memory, "OVERCOMMIT", tmp_path / "overcommit_memory")
    if overcommit is not None:
        kept_memory.OVERCOMMIT.write_text(f"{overcommit}\n")
    assert keep_freed_memory() is True
    assert library.malloc.calls == ([(4 * PAGE,)] if asked else [])
    there = asked and place is not None
    assert library.madvise.calls == ([(0x2000, 3 * PAGE, 14)] if there else [])
    assert library.free.calls == ([(0x1234,)] if there else [])


@pytest.mark.usefixtures("nothing_set_up")
def test_another_c_library_has_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert keep_freed_memory() is False


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
@pytest.mark.usefixtures("nothing_set_up")
def test_what_the_environment_sets_up_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    library = Library(1, 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False
    assert library.set == []


class Reached(Exception):
    """The job is as far as the test looks."""


@pytest.mark.parametrize(
    ("device", "fine_tune", "kept"), [("cpu", "full", True), ("cpu", "head", False), ("cuda", "full", False)]
)
def test_a_job_keeps_it_where_a_whole_network_trains_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, fine_tune: str, kept: bool
) -> None:
    called: list[str] = []

    def wake(*_: Any) -> None:
        called.append("woken")
        raise Reached

    monkeypatch.setattr(job, "import_ahead", lambda *_, **__: None)
    monkeypatch.setattr(job, "choose_device", lambda _: torch.device(device))
    monkeypatch.setattr(job, "tell_device", lambda *_: None)
    monkeypatch.setattr(job, "keep_freed_memory", lambda: called.append("kept"))
    monkeypatch.setattr(job, "wake", wake)
    group: Any = SimpleNamespace(size=1, is_main=True, local_rank=0)
    with pytest.raises(Reached):
        job.run_in(group, CONFIG.replace(fine_tune=fine_tune), MlPaths(base=tmp_path), StopFlag(), begun=0.0)
    assert called == (["kept"] if kept else []) + ["woken"]
