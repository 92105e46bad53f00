"""What every part of the GPU check is given: where it works, how large, and where it writes what it found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
FAKE_GPU = Path(__file__).parent / "fake_gpu"  # an NVML for machines without a GPU
CARRIED = ROOT / "build" / "gpu-carried"  # what carry.py made
CLASSES = 133
IMAGES = {"train": 6680, "valid": 835, "test": 836}  # 8,351 photos, as the dog-breed set is divided

Size = TypeVar("Size")


class Missing(Exception):
    """A part of the check cannot run here; the text says what is missing."""


@dataclass(kw_only=True)
class Kit:
    """One part's tools. Whatever is noted is on the disk at once: a part that is killed keeps what it measured.

    Args:
        folder: of the whole check; parts leave photos and trained models there for others.
        fake: toy sizes on the CPU, to try the program.
        file: where the part's findings are written.
    """

    folder: Path
    fake: bool
    file: Path
    measured: dict[str, Any] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def photos(self) -> Path:
        """train, valid and test folders of JPEG files: the first part makes them."""
        return self.folder / "photos"

    @property
    def image_size(self) -> int:
        """Side of what the network sees, in pixels."""
        return self.size(224, 32)

    def size(self, real: Size, toy: Size) -> Size:
        """The number to use: `real` on a GPU, `toy` with --fake."""
        return toy if self.fake else real

    def note(self, name: str, value: Any) -> None:
        """Takes down something measured; JSON's types, numbers with four digits."""
        self.measured[name] = rounded(value)
        self.write()
        print(f"{name}: {json.dumps(self.measured[name])}", flush=True)

    def claim(self, text: str, holds: bool, measured: str) -> None:
        """Takes down whether something that is said of the project holds here; toy sizes prove nothing."""
        self.claims.append({"claim": text, "holds": None if self.fake else bool(holds), "measured": measured})
        self.write()
        print(f"claim: {text}: {measured}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Takes down what is not measured here, by name."""
        self.skipped.append({"what": what, "why": why})
        self.write()
        print(f"skipped: {what}: {why}", flush=True)

    def write(self, **status: Any) -> None:
        """Replaces the part's file."""
        found = {"measured": self.measured, "claims": self.claims, "skipped": self.skipped, **status}
        write_json(self.file, found)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote; empty without the file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def rounded(value: Any) -> Any:
    """Numbers to four significant digits, whole ones as they are, also within lists and objects."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{float(value):.4g}")


def search_path(*, fake: bool) -> list[str]:
    """The folders of PYTHONPATH: the project's code, and what the machine lacks.

    What was carried comes first, for a machine may have a protobuf that smdebug cannot use.
    """
    packages = CARRIED / "packages"
    wanted = packages.is_dir() and (str(packages) in sys.path or lacks("smdebug"))  # a part finds it on its path
    carried = [str(packages)] if wanted else []
    return [*carried, *([str(FAKE_GPU)] if fake else []), str(ROOT / "code"), str(ROOT)]


def lacks(module: str) -> bool:
    """Whether a package is not installed here."""
    return importlib.util.find_spec(module) is None


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a program of ours: this one's, in which PYTHONPATH is set already."""
    return os.environ | {"PYTHONUNBUFFERED": "1"} | more


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def synchronised(device: Any) -> Callable[[], None]:
    """A function that returns when the device has done all it was given."""
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def after_steps(action: Callable[[], object]) -> Callable[[], None]:
    """Has `action` called after each training step in this process; returns what ends that. (Our optimisers are
    torch's without what would call its hooks.)"""
    loop = importlib.import_module("image_classifier.training.loop")
    plain = loop.train_step

    def step(*arguments: Any, **keywords: Any) -> Any:
        result = plain(*arguments, **keywords)
        action()
        return result

    def end() -> None:
        loop.train_step = plain  # type: ignore[attr-defined]

    loop.train_step = step  # type: ignore[attr-defined]
    return end
