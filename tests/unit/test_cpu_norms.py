"""A CPU's kernels for what ends a layer: right on every processor, the same for any number of threads, and to be had
also where nothing can be written."""

from __future__ import annotations

import ctypes
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from image_classifier.training import cpu_norms, norm_library
from image_classifier.training.cpu_norms import CHUNK_VALUES, CHUNKS, TILE, CpuNorms, load
from image_classifier.training.fused_norms import WAYS, FusedNorms
from image_classifier.training.norm_library import LEVELS, level, path_of
from image_classifier.training.norm_trial import errors, random_case

CPU = torch.device("cpu")
SHAPES = (
    (1, 64, 2, 3),  # fewer rows than a tile
    (3, 128, 7, 9),  # chunks of a tile, the last of five rows
    (3, 64, 61, 67),  # 32 chunks of 383 rows, and one of 5
    (2, 2048, 33, 33),  # chunks of as many values as there may be, and one of two rows
)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch computes with."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_shapes_are_those_that_rows_are_divided_differently_of() -> None:
    few, tiles, parts, large = (shape[0] * shape[2] * shape[3] for shape in SHAPES)
    assert few < TILE
    assert tiles // CHUNKS < TILE < tiles
    assert tiles % TILE == 5
    assert (parts // CHUNKS, parts % CHUNKS) == (383, 5)
    assert large // CHUNKS > CHUNK_VALUES // 2048
    assert large % (CHUNK_VALUES // 2048) == 2


@pytest.mark.parametrize("dtype", CpuNorms.dtypes, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm_kernels", LEVELS, indirect=True)
def test_every_level_computes_the_right_numbers(
    fused: FusedNorms, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    for way in WAYS:
        found = errors(fused, way, shape, dtype)
        assert {name: error for name, error in found.items() if not error <= 1} == {}, way


@pytest.mark.parametrize("dtype", CpuNorms.dtypes, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm_kernels", LEVELS, indirect=True)
def test_the_same_comes_out_for_any_number_of_threads(
    fused: FusedNorms, set_threads: Callable[[int], None], shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    def results(way: str) -> list[Tensor]:
        case = random_case(way, shape, CPU, dtype)
        y, gradients = case.passes(fused)
        return [y, *gradients, *case.norm.buffers()]

    for way in WAYS:
        found = []
        for threads in (1, 2, 3, 40):
            set_threads(threads)
            found.append(results(way))
        for first, *others in zip(*found, strict=True):
            assert all(torch.equal(first, other) for other in others), way


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_is_room_for_the_sums_of_all_chunks_and_for_no_more(
    cpu_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int]
) -> None:
    made: list[tuple[Tensor, Tensor]] = []

    def with_as_much_behind(like: Tensor, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if len(sizes) > 1 or dtype != torch.float32:
            return torch.empty(sizes, dtype=dtype)
        whole = torch.full((2 * sizes[0],), torch.nan)
        made.append((whole[: sizes[0]], whole[sizes[0] :]))
        return made[-1][0]

    case = random_case("add_relu", shape, CPU)
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "new_empty", with_as_much_behind)
        case.passes(FusedNorms(CpuNorms(cpu_library), CPU))
    assert len(made) == 2
    for sums, behind in made:
        assert sums.isfinite().all()
        assert behind.isnan().all()


@pytest.fixture
def built(cpu_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is compiled is kept, with nothing in it. Nothing has been loaded."""
    folder = tmp_path / "built"
    monkeypatch.setattr(norm_library, "BUILT", folder)
    monkeypatch.setattr(cpu_norms, "_loaded", {})
    return folder


def compute(library: ctypes.CDLL) -> None:
    found = errors(FusedNorms(CpuNorms(library), CPU), "add_relu", (3, 64, 5, 7))
    assert all(error <= 1 for error in found.values())


def copied(library: ctypes.CDLL, made: list[Path]) -> Callable[[Path, str], None]:
    """Makes a library as if it compiled it."""

    def compile_into(path: Path, name: str) -> None:
        assert name == level()
        whole = path.with_name(f"{threading.get_ident()}.so")
        shutil.copy(library._name, whole)
        whole.replace(path)
        made.append(path)

    return compile_into


def test_what_was_built_is_loaded(built: Path, cpu_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(cpu_norms, "compile_into", copied(cpu_library, made))
    path = path_of(level() or "")
    built.mkdir()
    shutil.copy(cpu_library._name, path)
    library = load()
    assert library._name == str(path)
    assert made == []
    compute(library)


def test_what_is_missing_is_compiled_and_kept(built: Path) -> None:
    library = load()
    assert [str(path) for path in built.iterdir()] == [library._name]
    compute(library)
    assert load() is library


@pytest.mark.parametrize("why", ["no folder can be made", "nothing can be written"])
def test_where_it_cannot_be_kept_it_is_compiled_for_this_process_alone(
    built: Path, cpu_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(cpu_norms, "compile_into", copied(cpu_library, made))
    if why == "no folder can be made":
        built.touch()
        monkeypatch.setattr(norm_library, "BUILT", built / "below")
    else:  # as for another user than root
        built.mkdir()
        monkeypatch.setattr(cpu_norms.os, "access", lambda *_: False)
    library = load()
    compute(library)
    assert [path.name for path in made] == [path_of(level() or "").name]
    assert not made[0].parent.exists()
    assert built.is_file() or list(built.iterdir()) == []


def test_it_is_compiled_once_also_by_two_threads_at_a_time(
    built: Path, cpu_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, made = threading.Event(), []
    compile_into = copied(cpu_library, made)

    def slowly(path: Path, name: str) -> None:
        begun.wait(30)
        compile_into(path, name)

    monkeypatch.setattr(cpu_norms, "compile_into", slowly)
    found: list[ctypes.CDLL] = []
    threads = [threading.Thread(target=lambda: found.append(load())) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found[0] is found[1]


def test_a_cpu_without_their_instructions_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_norms, "level", lambda: None)
    with pytest.raises(RuntimeError, match=r"^the kernels are for x86-64 with AVX2$"):
        load()
