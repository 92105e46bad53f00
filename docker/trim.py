"""Take out of the shared package layer what a ResNet50 never calls. Runs in a build stage only.

    python trim.py SITE_PACKAGES TRAIN_ONLY_DIR LEFT_OUT_DIR [--stubs]

* LEFT_OUT: whole packages. Their metadata moves below LEFT_OUT_DIR: pip must see them, or it would install them again.
* REMOVED: files nothing in the images loads.
* OPENED_LATE: libraries that torch opens when a function of linear algebra on the GPU is called, and what those alone
  need. Then torch raises an error that names the missing file.

Every library that torch names as needed stays, whole. With --stubs, whose images no GPU has run yet, also:

* STUBBED: CUDA libraries that libtorch names as needed, so the loader insists on them, but whose functions no
  ResNet50 reaches. Each is replaced by a library of a few kilobytes with the same soname and those of its symbols
  that something left in SITE_PACKAGES imports. A call into one says so and aborts: never a wrong result.
* SERVE_STUBBED: the same in the serve image, while the train image gets the real ones: moved, under the same relative
  path, below TRAIN_ONLY_DIR.
* ONLY_FOR_STUBBED: what only the real ones of those need.

That nothing reaches them was examined with docker/stub_callers.py, for the releases in EXAMINED. Another release of
torch, a pattern that matches nothing, or a library that calls a stub and has not been looked at is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

EXAMINED = ("2.14.1", "2.10.0")  # torch for CUDA 13 and for CUDA 12
LEFT_OUT = ("triton",)  # for torch.compile, which needs a C compiler besides, and which nothing here uses
REMOVED = (
    "nvidia/**/libcusolverMg.so.*",  # several GPUs in one cuSOLVER call
    "nvidia/**/*.alt.so.*",  # a second build of NVRTC for old C++ dialects
    "nvidia/**/libnvperf_*.so",  # Nsight's counters, not the profiler's
    "nvidia/**/libnvblas.so.*",
    "nvidia/**/libcufftw.so.*",
    "nvidia/**/libnvshmem_device.bc",  # for kernels compiled against NVSHMEM
    "nvidia/**/nvshmem_*.so.*",  # NVSHMEM's transports and bootstraps
    "nvidia/**/include",
    "torch/include",  # for compiling extensions: there is no compiler here
    "torch/share",
)
OPENED_LATE = (
    "torch/lib/libtorch_cuda_linalg.so",  # opened by torch.linalg's functions for GPUs; the only caller of cuSOLVER
    "nvidia/**/libcusolver.so.*",
)
ONLY_FOR_STUBBED = ("nvidia/**/libnvJitLink.so.*",)  # called by the real cuSPARSE, cuSOLVER and cuFFT alone
# Library -> the libraries that import from it and were examined.
STUBBED = {
    "libcufft": {"libtorch_cuda.so"},  # torch.fft
    "libcurand": set[str](),  # named as needed, never called: random numbers on the GPU are inlined
    "libcusparse": {"libtorch_cuda.so"},  # sparse tensors
    "libcusparseLt": {"libtorch_cuda.so"},  # semi-structured sparse tensors
    "libnvshmem_host": {"libtorch_nvshmem.so"},  # symmetric memory of several GPUs
}
SERVE_STUBBED = {"libnccl": {"libtorch_cuda.so", "libtorch_python.so"}}  # several GPUs

STUB_HEAD = """
#include <stdio.h>
#include <stdlib.h>
static void absent(const char *name) {
    fprintf(stderr, "%s of {soname} was called, which this image leaves out: build it without TRIM=--stubs\\n", name);
    abort();
}
"""


def main(site: Path, train_only: Path, left_out: Path, *, stubs: bool) -> None:
    """Apply the lists to `site`; without `stubs` LEFT_OUT, REMOVED and OPENED_LATE alone.

    Raises:
        SystemExit: a pattern matches nothing, or something calls a stub that was not examined.
    """
    train_only.mkdir(parents=True)
    left_out.mkdir(parents=True)
    for package in LEFT_OUT:
        (metadata,) = matches(site, f"{package}-*.dist-info")
        shutil.move(metadata, left_out)
        shutil.rmtree(site / package)
    for pattern in (*REMOVED, *OPENED_LATE, *(ONLY_FOR_STUBBED if stubs else ())):
        for path in matches(site, pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not stubs:
        return
    (torch,) = (path.stem.split("-")[1].partition("+")[0] for path in matches(site, "torch-*.dist-info"))
    if torch not in EXAMINED:
        raise SystemExit(f"error: what calls the stubbed libraries in torch {torch} has not been examined (EXAMINED)")
    imported = imported_symbols(site)
    for name, examined in (STUBBED | SERVE_STUBBED).items():
        for library in matches(site, f"nvidia/**/{name}.so.*"):
            stub = build_stub(library, imported, examined)
            if name in SERVE_STUBBED:
                target = train_only / library.relative_to(site)
                target.parent.mkdir(parents=True)
                shutil.copy2(library, target)
            library.write_bytes(stub)


def matches(site: Path, pattern: str) -> list[Path]:
    found = sorted(site.glob(pattern))
    if not found:
        raise SystemExit(f"error: {pattern} matches nothing in {site}: correct the lists of docker/trim.py")
    return found


def imported_symbols(site: Path) -> dict[str, set[str]]:
    """Library or extension below `site` -> the symbols, as `name` or `name@VERSION`, that it imports."""
    symbols: dict[str, set[str]] = {}
    for path in (*site.rglob("*.so"), *site.rglob("*.so.*")):
        symbols.setdefault(path.name, set()).update(dynamic_symbols(path, "--undefined-only"))
    return symbols


def dynamic_symbols(library: Path, which: str) -> Iterator[str]:
    listing = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        yield line.split()[-1].replace("@@", "@")


def build_stub(library: Path, imported: Mapping[str, set[str]], examined: set[str]) -> bytes:
    """A shared library with `library`'s soname that defines those of its symbols that are imported."""
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    soname = re.search(r"soname: \[(.+?)\]", dynamic)
    if soname is None:
        raise SystemExit(f"error: {library} has no soname")
    # CUDA's interfaces are C. A C++ symbol is a copy of the standard library's that slipped out: no stub may shadow it.
    defined = {symbol for symbol in dynamic_symbols(library, "--defined-only") if not symbol.startswith("_Z")}
    callers = {name: defined & symbols for name, symbols in imported.items() if defined & symbols}
    if unknown := sorted(callers.keys() - examined):
        raise SystemExit(f"error: {unknown[0]} calls {library.name}, which has not been examined (docker/trim.py)")
    wanted = sorted(set().union(*callers.values()))
    names = [symbol.partition("@")[0] for symbol in wanted]
    versions = {symbol.partition("@")[2] for symbol in wanted} - {""}
    source = STUB_HEAD.replace("{soname}", soname[1])
    source += "".join(f'void {name}(void) {{ absent("{name}"); }}\n' for name in names)
    with tempfile.TemporaryDirectory() as folder:
        code, script, output = Path(folder, "stub.c"), Path(folder, "stub.map"), Path(folder, "stub.so")
        code.write_text(source)
        script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions))
        version_flag = [f"-Wl,--version-script={script}"] if versions else []
        subprocess.run(
            [
                "gcc",
                "-shared",
                "-fPIC",
                "-Os",
                "-s",
                "-w",
                f"-Wl,-soname,{soname[1]}",
                *version_flag,
                "-o",
                output,
                code,
            ],
            check=True,
        )
        return output.read_bytes()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), stubs="--stubs" in sys.argv[4:])
