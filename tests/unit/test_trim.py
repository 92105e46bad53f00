"""What docker/trim.py makes of a folder of packages, with small libraries that a compiler makes on the spot."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")
REAL, LATE, CALLER = "nvidia/fft/lib/libcufft.so.12", "nvidia/s/lib/libcusolver.so.12", "torch/lib/libtorch_cuda.so"


@pytest.fixture
def trim(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("trim", Path(__file__).parents[2] / "docker" / "trim.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LEFT_OUT", ())
    monkeypatch.setattr(module, "REMOVED", ())
    monkeypatch.setattr(module, "OPENED_LATE", ("nvidia/**/libcusolver.so.*",))
    monkeypatch.setattr(module, "ONLY_FOR_STUBBED", ())
    monkeypatch.setattr(module, "STUBBED", {"libcufft": {"libtorch_cuda.so"}})
    monkeypatch.setattr(module, "SERVE_STUBBED", {})
    return module


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Packages in which libtorch_cuda calls libcufft."""
    site = tmp_path / "site-packages"
    (site / "torch-2.14.1.dist-info").mkdir(parents=True)
    source = tmp_path / "a.c"
    for name, code in {
        REAL: "int cufftGetVersion(int *v) { *v = 12; return 0; } int other(void) { return 1; }",
        LATE: "int solve(void) { return 0; }",
        CALLER: "extern int cufftGetVersion(int *); int call(void) { int v; cufftGetVersion(&v); return v; }",
    }.items():
        library = site / name
        library.parent.mkdir(parents=True)
        source.write_text(code)
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source]
        subprocess.run(["gcc", *flags, *([site / REAL] if name == CALLER else [])], check=True)
    return site


def run(trim: ModuleType, site: Path, *, stubs: bool) -> None:
    trim.main(site, site.parent / "train-only", site.parent / "left-out", stubs=stubs)


def called(site: Path) -> subprocess.CompletedProcess[str]:
    """What the caller says when it calls."""
    code = f"import ctypes; ctypes.CDLL({str(site / REAL)!r}, 256); print(ctypes.CDLL({str(site / CALLER)!r}).call())"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


def test_what_torch_names_as_needed_stays_whole_unless_stubs_are_asked_for(trim: ModuleType, site: Path):
    before = (site / REAL).read_bytes()
    run(trim, site, stubs=False)
    assert (site / REAL).read_bytes() == before
    assert not (site / LATE).exists()
    assert called(site).stdout == "12\n"


def test_a_call_into_a_stub_says_which_and_how_to_get_the_real_one(trim: ModuleType, site: Path):
    run(trim, site, stubs=True)
    done = called(site)
    assert done.returncode < 0
    assert done.stderr == (
        "cufftGetVersion of libcufft.so.12 was called, which this image leaves out: build it without TRIM=--stubs\n"
    )


def test_a_caller_that_nobody_has_looked_at_ends_the_build(trim: ModuleType, site: Path, monkeypatch):
    monkeypatch.setattr(trim, "STUBBED", {"libcufft": set()})
    with pytest.raises(SystemExit, match=r"libtorch_cuda.so calls libcufft.so.12, which has not been examined"):
        run(trim, site, stubs=True)


def test_a_release_of_torch_that_nobody_has_looked_at_ends_the_build(trim: ModuleType, site: Path, monkeypatch):
    monkeypatch.setattr(trim, "EXAMINED", ("2.0.0",))
    with pytest.raises(SystemExit, match=r"torch 2.14.1 has not been examined"):
        run(trim, site, stubs=True)


def test_a_pattern_that_matches_nothing_ends_the_build(trim: ModuleType, site: Path, monkeypatch):
    monkeypatch.setattr(trim, "REMOVED", ("nvidia/**/libgone.so.*",))
    with pytest.raises(SystemExit, match="matches nothing"):
        run(trim, site, stubs=False)
