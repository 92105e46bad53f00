"""A CPU's kernels of batch norms are compiled for what it can run, wholly or not at all."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image_classifier.training import norm_library
from image_classifier.training.norm_library import LEVELS, compile_into, cpu_flags, level, main, path_of

AVX2, AVX512, BF16 = (LEVELS[name][1] for name in ("avx2", "avx512", "avx512_bf16"))
compiles = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.machine() != "x86_64", reason="there is no gcc for x86-64"
)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (set(), None),
        ({"sse4_2", "avx"}, None),
        (AVX2 - {"fma"}, None),
        (AVX2, "avx2"),
        (AVX2 | {"avx512f"}, "avx2"),
        (AVX2 | AVX512, "avx512"),
        (AVX2 | AVX512 | BF16, "avx512_bf16"),
        (AVX2 | BF16, "avx2"),
        (AVX512 | BF16, None),
    ],
    ids=["none", "old", "no FMA", "AVX2", "half of AVX-512", "AVX-512", "all", "bf16 without AVX-512", "no AVX2"],
)
def test_the_best_level_is_the_last_of_which_and_below_which_nothing_is_missing(
    flags: set[str], expected: str | None
) -> None:
    assert level([*flags, "fpu"]) == expected


def test_a_cpu_is_asked_for_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(cpuinfo) == ["fpu", "avx2", "fma"]
    cpuinfo.write_text("processor\t: 0\n")
    assert cpu_flags(cpuinfo) == []
    assert cpu_flags(tmp_path / "none") == []


def test_another_kind_of_machine_has_no_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {' '.join(AVX2)}\n")
    assert cpu_flags(cpuinfo) == []
    assert level() is None
    monkeypatch.setattr(norm_library, "BUILT", tmp_path / "built")
    main()
    assert list((tmp_path / "built").iterdir()) == []  # an image is made of it, empty or not


@compiles
def test_only_what_this_machine_runs_is_compiled_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_library, "BUILT", tmp_path / "built")
    main(here=True)
    assert list((tmp_path / "built").iterdir()) == [path_of(level() or "")]


@pytest.mark.parametrize("number", range(3))
def test_a_changed_source_has_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    source = tmp_path / "kernels.c"
    first, *included = sources = [norm_library.SOURCE, *norm_library.INCLUDED]
    shutil.copy(sources[number], source)
    before = path_of("avx2")
    if number == 0:
        first = source
    else:
        included[number - 1] = source
    monkeypatch.setattr(norm_library, "SOURCE", first)
    monkeypatch.setattr(norm_library, "INCLUDED", included)
    assert path_of("avx2") == before
    assert path_of("avx512") != before
    source.write_text(source.read_text() + "\n")
    assert path_of("avx2") != before


@compiles
def test_a_library_for_every_level_is_made_that_has_torchs_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # noqa: F401  # whose OpenMP they need

    monkeypatch.setattr(norm_library, "BUILT", tmp_path / "built")
    main()
    made = sorted((tmp_path / "built").iterdir())
    assert made == sorted(path_of(name) for name in LEVELS)
    assert len({path.read_bytes() for path in made}) == len(LEVELS)
    for path in made:
        library = ctypes.CDLL(str(path))
        assert library.norm_forward
        assert library.norm_backward
        assert library.in_parts
        assert b"GOMP_parallel" in path.read_bytes()
        assert b"libgomp" not in path.read_bytes()  # it would be a second one


def test_python_alone_is_enough_to_compile_them() -> None:
    """As an image does before torch is there."""
    script = f"import runpy; print(runpy.run_path({norm_library.__file__!r})['COMPILE_S'])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) == norm_library.COMPILE_S


@compiles
def test_an_error_in_the_source_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = tmp_path / "wrong.c", tmp_path / "built"
    source.write_text("#warning not this\n#error nonsense\n")
    folder.mkdir()
    monkeypatch.setattr(norm_library, "SOURCE", source)
    told = r"^wrong\.c is not compiled: \S*wrong\.c:2:2: error: #error nonsense$"
    with pytest.raises(RuntimeError, match=told):
        compile_into(folder / "kernels.so", "avx2")
    assert list(folder.iterdir()) == []


def test_without_a_compiler_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="gcc"):
        compile_into(tmp_path / "kernels.so", "avx2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", r"gcc takes longer than 0 s"),
        ("echo nothing >&2; exit 3", r"exit status 3"),
        ('case "$1" in -shared) echo "ld: error: no space" >&2; exit 1; esac', r"ld: error: no space"),
    ],
    ids=["hangs", "fails without a word", "does not link"],
)
def test_a_compiler_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    programs, folder = tmp_path / "bin", tmp_path / "built"
    programs.mkdir()
    folder.mkdir()
    (programs / "gcc").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    if "sleep" in script:
        monkeypatch.setattr(norm_library, "COMPILE_S", 0.2)
    with pytest.raises(RuntimeError, match=rf"^norm_kernels\.c is not compiled: {said}$"):
        compile_into(folder / "kernels.so", "avx2")
    assert list(folder.iterdir()) == []
