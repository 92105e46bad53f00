"""The folder through which the server program and its workers talk while starting and stopping.

    SCRATCH/model/            the empty folder the model server takes for the model; nothing is imported from it
    SCRATCH/workers/PID       what became of a worker's start: the engine's name, or the first cause of its failure
    SCRATCH/drained/PID       the worker answered its last request
    SCRATCH/...               sockets, pid file, configuration of the model server

The program makes it, workers find it through the environment, and it is gone when the program is.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.errors import ClassifierError, PlatformError, describe

SCRATCH_VARIABLE = "CLASSIFIER_SCRATCH"
DRAIN_TOKEN_VARIABLE = "CLASSIFIER_DRAIN_TOKEN"  # noqa: S105  # the name of a variable
DRAIN_HEADER = "x-classifier-drain"


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the start of one worker ended: `engine` when well, else `error` and `hint`."""

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
        for folder in (self.model, self._workers, self._drained):
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
    def _drained(self) -> Path:
        return self.root / "drained"

    def report_loaded(self, engine: str) -> None:
        """Called by a worker that reproduced the golden samples."""
        self._report({"engine": engine})

    def report_failure(self, error: BaseException) -> None:
        """Called by a worker that could not load the model."""
        self._report({"error": describe(error), "hint": error.hint if isinstance(error, ClassifierError) else ""})

    def _report(self, values: dict[str, str]) -> None:
        partial = self.root / f"worker-{os.getpid()}.partial"
        partial.write_text(json.dumps(values))
        partial.replace(self._workers / str(os.getpid()))

    def reports(self) -> list[Report]:
        """What the workers reported so far; nothing once the server has ended, because then the folder is removed."""
        with suppress(FileNotFoundError):
            return [Report(**json.loads(path.read_text())) for path in self._workers.iterdir()]
        return []

    def report_drained(self) -> None:
        """Called by a worker that will answer nothing more."""
        (self._drained / str(os.getpid())).touch()

    def num_drained(self) -> int:
        """How many workers reported that; none once the server has ended."""
        with suppress(FileNotFoundError):
            return len(list(self._drained.iterdir()))
        return 0
