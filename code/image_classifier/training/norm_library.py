"""The kernels of `norm_kernels.c` and what it includes, compiled for this machine's CPU by gcc, in a second or two.

    python3 norm_library.py [--here]

compiles them for every processor they serve, as an image needs that has no compiler; with --here for this machine's, as
when the project's environment is made. A job that finds none compiles its own while it reads its files (`waking.py`).
It needs nothing but Python and gcc.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("norm_kernels.c")
INCLUDED = tuple(SOURCE.with_name(name) for name in ("pooled_norms.c", "parts.c"))
BUILT = Path(__file__).with_name("built")  # what is compiled is kept here, where the folder can be written
LEVELS = {
    "avx512_bf16": (("x86-64-v4", "avx512bf16"), {"avx512_bf16"}),
    "avx512": (("x86-64-v4",), {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    "avx2": (("x86-64-v3",), {"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
}
"""Name -> gcc's name of the processors it is for and of instructions beyond theirs, and the flags that the system tells
of those (beyond the next level's). The best comes first."""
COMPILE_S = 60.0  # at most; it takes one or two


def level(flags: Iterable[str] | None = None) -> str | None:
    """The best of LEVELS that a CPU can run; None without any.

    Args:
        flags: of the CPU, as Linux names them; this machine's without.
    """
    has = set(cpu_flags() if flags is None else flags)
    best = None
    for name, (_, needed) in reversed(LEVELS.items()):
        if not needed <= has:
            break
        best = name
    return best


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What this machine's first CPU can do; nothing where it is no x86-64 or the system does not tell."""
    if platform.machine() != "x86_64":
        return []
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def path_of(name: str) -> Path:
    """Where the library of a level is kept. A changed source has another name."""
    sources = b"".join(each.read_bytes() for each in (SOURCE, *INCLUDED))
    return BUILT / f"norm_kernels-{hashlib.sha256(sources).hexdigest()[:12]}-{name}.so"


def compile_into(path: Path, name: str) -> None:
    """Compiles the kernels of a level, in place of those of another source. The file is whole or not there.

    Raises:
        RuntimeError: gcc fails or takes longer than COMPILE_S; in a line.
        OSError: there is no gcc, or the file cannot be written.
    """
    processors, *more = LEVELS[name][0]
    options = [f"-march={processors}", *(f"-m{each}" for each in more), "-O3", "-fno-math-errno", "-fopenmp", "-fPIC"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made, whole = Path(folder, "kernels.o"), Path(folder, path.name)
        _gcc("-std=gnu11", *options, "-Wno-psabi", "-c", str(SOURCE), "-o", str(made))
        # Without -fopenmp: an OpenMP of its own would have threads beside torch's, spinning against them.
        _gcc("-shared", str(made), "-o", str(whole))
        whole.replace(path)
    for other in set(path.parent.glob(f"norm_kernels-*-{name}.so")) - {path}:
        other.unlink(missing_ok=True)


def _gcc(*arguments: str) -> None:
    words, english = ["gcc", *arguments], os.environ | {"LC_ALL": "C"}
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        subprocess.run(words, check=True, timeout=COMPILE_S, env=english, **quiet)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no gcc to compile {SOURCE.name} with") from None
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error:" in line), f"exit status {error.returncode}")
        raise RuntimeError(f"{SOURCE.name} is not compiled: {said}") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{SOURCE.name} is not compiled: gcc takes longer than {COMPILE_S:.0f} s") from None


def main(*, here: bool = False) -> None:
    """Compiles for every level that this kind of machine has, or the best that this very one has."""
    BUILT.mkdir(exist_ok=True)
    best = level()
    names = ([] if best is None else [best]) if here else LEVELS if platform.machine() == "x86_64" else []
    for name in names:
        compile_into(path_of(name), name)


if __name__ == "__main__":
    main(here="--here" in sys.argv)
