"""Runs that nobody needs any more: how much they take, and how their folders are removed."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from image_classifier.contract.errors import ConfigError, JobStopped, PlatformError, describe
from image_classifier.contract.outputs import TRIALS_FOLDER
from image_classifier.launch.runs import ACTIVE, Run, list_runs, still_running
from image_classifier.launch.view import View


def size_bytes(folder: Path) -> int:
    """What the files below a folder take; what links lead to, such as a run's images, is not in it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


def in_words(size: int) -> str:
    """`1.2 GB`, `34 MB`, `56 KB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1000:.0f} KB"


def prunable(runs_dir: Path, keep: int) -> list[Run]:
    """The runs of this machine that have ended, without the newest `keep` of each kind; oldest first. A run on AWS is
    kept, as its folder knows what is left there, and so is one whose record is damaged."""
    of_kind: dict[str, list[Run]] = defaultdict(list)
    for run in list_runs(runs_dir):
        with suppress(PlatformError):
            if not run.is_remote and run.record().status not in ACTIVE:
                of_kind[run.record().kind].append(run)
    old = {run.path for runs in of_kind.values() for run in runs[: max(0, len(runs) - keep)]}
    return [run for run in list_runs(runs_dir) if run.path in old]


def remove(runs: Sequence[Run], view: View, *, yes: bool) -> int:
    """Removes the folders of runs of this machine, after a question; returns how many bytes they took.

    Raises:
        ConfigError: one is still running or is a trial of a search, or there is nobody to ask.
        JobStopped: the answer was no.
        PlatformError: a folder cannot be removed.
    """
    for run in runs:
        if run.path.parent.name == TRIALS_FOLDER:
            raise ConfigError(f"{run.name} is a trial of {run.path.parents[1].name}", "delete the search as a whole")
        if run.record().status in ACTIVE:
            raise still_running(run)
    sizes = [size_bytes(run.path) for run in runs]
    for run, size in zip(runs, sizes, strict=True):
        view.note(f"{run.path}: {in_words(size)}")
    what = "this folder" if len(runs) == 1 else f"these {len(runs)} folders"
    answer = True if yes else view.ask(f"Remove {what}, {in_words(sum(sizes))}, with models and reports?")
    if answer is None:
        raise ConfigError("there is no terminal to ask on", "give --yes to remove")
    if not answer:
        raise JobStopped("nothing was removed")
    for run in runs:
        with run.held():
            _remove(run.path)
    return sum(sizes)


def _remove(folder: Path) -> None:
    """Takes a run's folder away in one step, and then to pieces: half a run is never listed."""
    gone = folder.with_name(f".{folder.name}.removed")
    try:
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise PlatformError(
            f"cannot remove {folder}: {error.strerror or describe(error)}", "check permissions"
        ) from None
