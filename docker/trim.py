"""Take out of the shared package layer what a ResNet50 never calls. Runs in a build stage only.

    python trim.py SITE_PACKAGES TRAIN_ONLY_DIR [--no-stubs]

* REMOVED: files nothing in the images loads.
* STUBBED: CUDA libraries that libtorch names as needed, so the loader insists on them, but whose functions no
  ResNet50 reaches. Each is replaced by a library of a few kilobytes with the same soname and those of its symbols
  that something left in SITE_PACKAGES imports. A call into one says so and aborts: never a wrong result.
* SERVE_STUBBED: the same in the serve image, while the train image gets the real ones.
* TRAIN_ONLY: in the train image alone.

What the train image alone gets is moved, under the same relative path, below TRAIN_ONLY_DIR. A pattern that matches
nothing is an error: after an update of torch the lists have to be looked at again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    "triton/**/*.a",
    "triton/**/libnvperf_host.so",
    "triton/_C/libproton.so",  # triton's own profiler
)
STUBBED = ("libcufft", "libcurand", "libcusparseLt", "libnvshmem_host")
SERVE_STUBBED = ("libcusparse", "libcusolver", "libnccl")  # linear algebra on the GPU; several GPUs
TRAIN_ONLY = ("triton*", "nvidia/**/libnvJitLink.so.*")  # torch.compile; called by the real cuSPARSE and cuSOLVER alone

STUB_HEAD = """
#include <stdio.h>
#include <stdlib.h>
static void absent(const char *name) {
    fprintf(stderr, "%s of {soname} was called, which this image leaves out: build it with TRIM=--no-stubs\\n", name);
    abort();
}
"""


def main(site: Path, train_only: Path, *, stubs: bool) -> None:
    """Apply the lists to `site`; without `stubs` every CUDA library stays and only triton moves.

    Raises:
        SystemExit: a pattern matches nothing, or a library cannot be read.
    """
    for pattern in REMOVED:
        for path in matches(site, pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not stubs:
        move(site, train_only, TRAIN_ONLY[0])
        return
    needed = imported_symbols(site)
    for name in (*STUBBED, *SERVE_STUBBED):
        for library in matches(site, f"nvidia/**/{name}.so.*"):
            stub = build_stub(library, needed)
            if name in SERVE_STUBBED:
                move(site, train_only, str(library.relative_to(site)))
            library.write_bytes(stub)
    for pattern in TRAIN_ONLY:
        move(site, train_only, pattern)


def move(site: Path, train_only: Path, pattern: str) -> None:
    for path in matches(site, pattern):
        target = train_only / path.relative_to(site)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def matches(site: Path, pattern: str) -> list[Path]:
    found = sorted(site.glob(pattern))
    if not found:
        raise SystemExit(f"error: {pattern} matches nothing in {site}: correct the lists of docker/trim.py")
    return found


def imported_symbols(site: Path) -> set[str]:
    """Every symbol, as `name` or `name@VERSION`, that an extension or library below `site` imports."""
    symbols: set[str] = set()
    for path in (*site.rglob("*.so"), *site.rglob("*.so.*")):
        symbols.update(dynamic_symbols(path, "--undefined-only"))
    return symbols


def dynamic_symbols(library: Path, which: str) -> Iterator[str]:
    listing = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        yield line.split()[-1].replace("@@", "@")


def build_stub(library: Path, needed: set[str]) -> bytes:
    """A shared library with `library`'s soname that defines those of its symbols that are in `needed`."""
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    soname = re.search(r"soname: \[(.+?)\]", dynamic)
    if soname is None:
        raise SystemExit(f"error: {library} has no soname")
    # CUDA's interfaces are C. A C++ symbol is a copy of the standard library's that slipped out: no stub may shadow it.
    defined = (symbol for symbol in dynamic_symbols(library, "--defined-only") if not symbol.startswith("_Z"))
    wanted = sorted(needed.intersection(defined))
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
    main(Path(sys.argv[1]), Path(sys.argv[2]), stubs="--no-stubs" not in sys.argv[3:])
