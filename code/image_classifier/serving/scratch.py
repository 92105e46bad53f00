"""The folder through which the server program and its workers talk while starting and stopping.

    SCRATCH/model/            the empty folder the model server takes for the model; nothing is imported from it
    SCRATCH/workers/PID       what became of a worker's start: the engine's name, or the first cause of its failure
    SCRATCH/engine.json       which engine serves, and why (`choice.Choice.to_json`)
    SCRATCH/busy/PID          since when a worker has been answering a request, or that it does not
    SCRATCH/seen/PID          what a worker saw and answered lately (`sightings.py`)
    SCRATCH/front.sock        our front, for this program only; SCRATCH/model.sock the model server behind it
    SCRATCH/...               sockets, pid file, configuration of the model server

The program makes it, workers find it through the environment, and it is gone when the program is.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import ClassifierError, PlatformError, describe

SCRATCH_VARIABLE = "CLASSIFIER_SCRATCH"
THREADS_VARIABLE = "CLASSIFIER_ENGINE_THREADS"  # of a worker's engine on the CPU
PRELOAD_VARIABLE = "MMS_PRELOAD_MODEL"  # multi-model-server's: "true" loads the model once, before workers are forked
_SINCE = struct.Struct("d")  # seconds of time.monotonic(), which all processes of a machine share; 0 for not busy


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the start of one worker ended: `engine` when well, else `error` and `hint`. `parent` has forked it."""

    parent: int = 0
    engine: str = ""
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Scratch:
    """The folder at `root`, which exists."""

    root: Path

    @classmethod
    def from_environment(cls) -> Scratch:
        """The folder of the program that started this process. Raises PlatformError outside of a server."""
        try:
            return cls(Path(os.environ[SCRATCH_VARIABLE]))
        except KeyError:
            raise PlatformError(
                "this program is started by the server", "start image_classifier.serving.entry"
            ) from None

    def create(self) -> None:
        """Makes the folders below `root`."""
        for folder in (self.model, self._workers, self._busy, self._seen):
            folder.mkdir()

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def server_config(self) -> Path:
        return self.root / "model_server.properties"

    @property
    def server_pid(self) -> Path:
        return self.root / ".model_server.pid"  # multi-model-server's name for it, in $TMPDIR

    @property
    def _workers(self) -> Path:
        return self.root / "workers"

    @property
    def _busy(self) -> Path:
        return self.root / "busy"

    @property
    def _seen(self) -> Path:
        return self.root / "seen"

    @property
    def front_socket(self) -> Path:
        return self.root / "front.sock"

    @property
    def model_socket(self) -> Path:
        return self.root / "model.sock"

    def report_loaded(self, engine: str, *, forked: bool) -> None:
        """Called by a worker that reproduced the golden samples, or was forked from a process that did."""
        self._report({"engine": engine, "parent": os.getppid() if forked else 0})

    def report_failure(self, error: BaseException) -> None:
        """Called by a worker that could not load the model."""
        self._report({"error": describe(error), "hint": error.hint if isinstance(error, ClassifierError) else ""})

    def write_choice(self, choice: Mapping[str, Any]) -> None:
        """Called by the process that loaded the model, before it or a worker reports."""
        partial = self.root / f"engine-{os.getpid()}.partial"
        partial.write_text(json.dumps(choice))
        partial.replace(self.root / "engine.json")

    def choice(self) -> dict[str, Any]:
        """What `write_choice` wrote; empty before it, and once the server has ended."""
        with suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.root / "engine.json").read_text())
            return found
        return {}

    def _report(self, values: dict[str, str | int]) -> None:
        partial = self.root / f"worker-{os.getpid()}.partial"
        partial.write_text(json.dumps(values))
        partial.replace(self._workers / str(os.getpid()))

    def reports(self) -> dict[int, Report]:
        """What the workers reported so far, by process id; nothing once the server has ended, because then the folder
        is removed."""
        with suppress(FileNotFoundError):
            return {int(path.name): Report(**json.loads(path.read_text())) for path in self._workers.iterdir()}
        return {}

    def forget(self, process: int) -> None:
        """Removes what a worker that has ended left here."""
        for folder in (self._workers, self._busy, self._seen):
            (folder / str(process)).unlink(missing_ok=True)

    def busy_since(self, process: int) -> float | None:
        """Since when, in seconds of time.monotonic(), a worker has been answering one request; None when it is free."""
        with suppress(OSError, struct.error):
            (since,) = _SINCE.unpack((self._busy / str(process)).read_bytes())
            return since or None
        return None

    @property
    def ring(self) -> Path:
        """This process's own."""
        return self._seen / str(os.getpid())

    def rings(self) -> dict[int, Path]:
        """Those of the workers, by process id; none once the server has ended."""
        with suppress(FileNotFoundError):
            return {int(path.name): path for path in self._seen.iterdir()}
        return {}

    def busy_mark(self) -> BusyMark:
        """This process's own."""
        return BusyMark(self._busy / str(os.getpid()))


class BusyMark:
    """A word of memory, shared through a file, in which a worker says since when it has been busy: no system call."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(_SINCE.pack(0.0))
        with path.open("r+b") as file:
            self._word = mmap.mmap(file.fileno(), _SINCE.size)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Says so while the block runs."""
        self._word[:] = _SINCE.pack(time.monotonic())
        try:
            yield
        finally:
            self._word[:] = _SINCE.pack(0.0)
