"""An NVIDIA GPU that a training does not use: why the CPU was chosen although there is one.

torch says only that CUDA is not available. What the driver leaves on the machine tells more: device files, the version
file of its kernel module, its program `nvidia-smi`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VERSION_FILE = "proc/driver/nvidia/version"  # `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat ...`
_VERSION = re.compile(r"\b(\d{3}(?:\.\d+){1,2})\b")
# The oldest driver on Linux that runs what was built for a CUDA major: table 3 of NVIDIA's "CUDA Toolkit Release Notes"
OLDEST_DRIVER = {"12": 525, "13": 580}
PATIENCE_S = 5.0  # for nvidia-smi, which waits for a driver that hangs


@dataclass(frozen=True, kw_only=True)
class UnusedGpu:
    """What to say of it."""

    sentence: str
    hint: str


def unused_gpu(
    torch_version: str, cuda: str | None, *, root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> UnusedGpu | None:
    """Why no NVIDIA GPU is used, where there are signs of one; None where there are none.

    Args:
        torch_version: `2.14.1+cu130`.
        cuda: the CUDA version that torch was built for, `13.0`; None for one without CUDA.
        root: where the machine's files begin.
        environ: the environment, os.environ by default.
    """
    environ = os.environ if environ is None else environ
    devices = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
    driver = driver_version(root, environ)
    if not devices and not driver:
        return None
    built = f"torch {torch_version} is built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    has = f"driver {driver}" if driver else "a driver that does not answer"
    sentence = f"training on the CPU, although this machine has an NVIDIA GPU: {has}, {built}"
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        return UnusedGpu(sentence=f"{sentence}; CUDA_VISIBLE_DEVICES={hidden!r} hides it", hint="unset it")
    if not cuda:
        return UnusedGpu(sentence=sentence, hint="install the torch of requirements/torch.in, which brings CUDA")
    oldest = OLDEST_DRIVER.get(cuda.partition(".")[0])
    if driver and oldest and int(driver.partition(".")[0]) < oldest:
        return UnusedGpu(
            sentence=f"{sentence}, which needs driver {oldest} or newer",
            hint=f"update it, or use the images for CUDA 12 (docs/images.md): driver {OLDEST_DRIVER['12']} or newer",
        )
    if not devices:
        return UnusedGpu(
            sentence=f"{sentence}; its device files are missing here",
            hint="a container gets them with `docker run --gpus all`; on the machine itself nvidia-smi makes them",
        )
    return UnusedGpu(
        sentence=sentence, hint="nvidia-smi tells whether the driver runs; CUDA 13 needs a GPU of Turing or newer"
    )


def driver_version(root: Path, environ: Mapping[str, str]) -> str:
    """The driver's version, empty where none is found: from its kernel module, else from `nvidia-smi`."""
    try:
        found = _VERSION.search((root / VERSION_FILE).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found is None and (program := shutil.which("nvidia-smi", path=environ.get("PATH"))) is not None:
        found = _VERSION.search(_asked(program, environ))
    return found[1] if found else ""


def _asked(program: str, environ: Mapping[str, str]) -> str:
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
