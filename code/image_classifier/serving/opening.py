"""From a model server that was started to a port that answers, and until it is told to stop.

Whatever is wrong with the model is said by whoever finds it first: this process reads and verifies it while Java
starts, the workers compute with it.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract import endpoint
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.wire import JSON_TYPE, TOP_K_HEADER
from image_classifier.serving.access_log import AccessLog
from image_classifier.serving.drift_watch import DriftWatch
from image_classifier.serving.front import Behind, Front
from image_classifier.serving.scratch import Scratch
from image_classifier.serving.server import Address, ServerProcess
from image_classifier.serving.workers import MIN_REPLACEMENT_S, Workers
from image_classifier.vision.artifact import Artifact, check_answer, load_model
from image_classifier.vision.manifest import GoldenSample

_STARTUP_POLL_S = 0.05
_WATCH_POLL_S = 0.25
_ENDING_S = 0.5
DRAIN_LIMIT_S = 25.0  # SageMaker sends SIGKILL 30 s after SIGTERM
_SEE_ABOVE = "its own messages stand above"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A server that was started with `started` on the clock (`time.monotonic`), and has to be ready by `deadline`.

    Args:
        listener: bound to `address`; nobody is let in before the server is ready.
        metrics_listener: for metrics; None for none.
        answer_s: for how long a worker may be busy with a request.
        say: gets the line that says that it is ready.
    """

    server: ServerProcess
    scratch: Scratch
    address: Address
    listener: socket.socket
    metrics_listener: socket.socket | None
    num_workers: int
    answer_s: int
    started: float
    deadline: float
    say: Callable[[str], None]

    def serve(self, stack: ExitStack, stop: threading.Event) -> None:
        """Serves until told to stop, then answers what was accepted. `stack` ends what was begun here.

        Raises:
            ArtifactError: the model is damaged, cannot be computed, or is not what it was when it was trained.
            PlatformError: the model server, or a worker, does not start or has gone.
        """
        artifact = load_model(MlPaths.from_environment().model)
        self.server.show_output()
        workers = Workers(self.scratch, num_wanted=self.num_workers, answer_s=self.answer_s)
        engine = self._wait_for_workers(workers, stop)
        if engine is None:
            return
        behind = Behind(
            socket=self.scratch.model_socket,
            num_workers=self.num_workers,
            num_alive=lambda: workers.num_alive,
            about={
                "model": artifact.fingerprint,
                "workers": self.num_workers,
                "engine": self.scratch.choice() or engine,
            },
            answer_s=self.answer_s,
        )
        front = stack.enter_context(Front(behind, AccessLog(_access_log_file())))
        front.listen_privately(self.scratch.front_socket)
        self._check_golden(artifact, engine)
        drift = DriftWatch(self.scratch, artifact.manifest.reference)
        drift.begin()
        front.watch_drift(drift)
        with self.address.errors():
            front.listen(self.listener)
        if self.metrics_listener is not None:
            front.show_meters(self.metrics_listener)
        startup_s = time.monotonic() - self.started
        workers.replacement_s = max(workers.replacement_s, 2 * startup_s)
        line = endpoint.ready_line(
            url=self.address.url,
            model=artifact.fingerprint,
            engine=engine,
            workers=self.num_workers,
            startup_s=startup_s,
        )
        self.say(line)
        self._watch(workers, drift, stop)
        front.drain(DRAIN_LIMIT_S)

    def _wait_for_workers(self, workers: Workers, stop: threading.Event) -> str | None:
        """The name of the engine once all workers have loaded and the model server listens; None when told to stop.

        Raises what a worker reported.
        """
        workers.replacement_s = math.inf  # there is nothing to replace yet
        while not stop.wait(_STARTUP_POLL_S):
            reports = workers.look()
            if len(reports) >= workers.num_wanted and self.scratch.model_socket.exists():
                workers.replacement_s = MIN_REPLACEMENT_S
                return reports[0].engine
            if self.server.ended():
                raise PlatformError("the model server ended while starting", _SEE_ABOVE)
            if time.monotonic() > self.deadline:
                raise PlatformError(
                    f"only {len(reports)} of {workers.num_wanted} workers loaded the model in time",
                    f"raise {endpoint.STARTUP_TIMEOUT_VARIABLE} or lower {endpoint.WORKERS_VARIABLE}",
                )
        return None

    def _check_golden(self, artifact: Artifact, engine: str) -> None:
        """Raises ArtifactError when the whole way from the front on does not answer the golden samples as it should."""
        tolerance = artifact.manifest.tolerance(endpoint.precision_of(engine))
        for sample in artifact.golden:
            answer = _invoke(self.scratch.front_socket, artifact, sample)
            check_answer(sample, artifact.classes, answer, tolerance=tolerance)

    def _watch(self, workers: Workers, drift: DriftWatch, stop: threading.Event) -> None:
        """Returns when told to stop. Raises when the server is gone, or workers are and stay away."""
        while not stop.wait(_WATCH_POLL_S):
            drift.read()
            try:
                workers.look()
            except PlatformError:
                stop.wait(_ENDING_S)  # so that the cause is told and not its consequence: workers end with their server
                if not self.server.ended():
                    raise
            if self.server.ended():
                raise PlatformError("the model server ended by itself", _SEE_ABOVE)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=endpoint.MAX_ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _invoke(path: Path, artifact: Artifact, sample: GoldenSample) -> dict[str, float]:
    """Asks the running server about one golden sample, as any client would: label -> probability for all classes."""
    headers = {"Accept": JSON_TYPE, "Content-Type": "application/x-image", TOP_K_HEADER: str(len(artifact.classes))}
    with closing(_UnixConnection(path)) as connection:
        try:
            connection.request("POST", "/invocations", body=sample.image, headers=headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            return {item["label"]: item["probability"] for item in answer["predictions"]}
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise PlatformError(f"the server does not answer the golden sample {sample.name}", _SEE_ABOVE) from error


def _access_log_file() -> Path | None:
    name = os.environ.get(endpoint.ACCESS_LOG_VARIABLE)
    return Path(name) if name else None
