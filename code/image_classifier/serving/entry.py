"""The server program: what `IMAGE serve` and `deploy.py serve` run. `python -m image_classifier.serving.entry`.

    artifact verified -> port ours -> model server started -> every worker reproduced the golden samples ->
    the golden samples through the front -> the port opens (/ping is 200 from here on) -> `ready ...` -> SIGTERM or
    Ctrl-C -> whatever was accepted answered -> nothing left

Exit codes: 0 after SIGTERM or SIGINT, also while starting; 1 with an `error:` line when the model or the machine is at
fault, or when the model server dies; 2 for a wrong setting. The settings are in `contract.endpoint`, the model folder
is $SAGEMAKER_BASE_DIR/model.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from image_classifier.contract import endpoint
from image_classifier.contract.errors import ClassifierError, ConfigError, PlatformError, describe
from image_classifier.contract.machine import bind
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import visible
from image_classifier.contract.wire import JSON_TYPE, TOP_K_HEADER
from image_classifier.serving.access_log import AccessLog
from image_classifier.serving.capacity import default_workers
from image_classifier.serving.drift_watch import DriftWatch
from image_classifier.serving.engines import requested_precision
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
_MAX_TEMPORARY_BYTES = 70  # of the 107 that a socket's path has at most; ours add 30
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_SEE_ABOVE = "its own messages stand above"


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop. `IMAGE serve` passes the word "serve", which is the only argument there is."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        if arguments not in ([], ["serve"]):
            raise ConfigError(f"unknown argument {' '.join(arguments)!r}", "settings come from the environment")
        _serve(stop)
    except ClassifierError as error:
        return _fail(error)
    except OSError as error:  # no temporary folder, a full disk, no more processes
        return _fail(PlatformError(describe(error), "the server needs a writable temporary folder ($TMPDIR)"))
    return 0


def _fail(error: ClassifierError) -> int:
    print(visible(f"error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(visible(f"hint: {error.hint}"), file=sys.stderr, flush=True)
    return error.exit_code


def _serve(stop: threading.Event) -> None:
    started = time.monotonic()
    address = Address(
        host=os.environ.get(endpoint.HOST_VARIABLE) or endpoint.DEFAULT_HOST,
        port=_number(endpoint.PORT_VARIABLE, endpoint.DEFAULT_PORT, high=endpoint.MAX_PORT),
    )
    deadline = started + _number(endpoint.STARTUP_TIMEOUT_VARIABLE, endpoint.DEFAULT_STARTUP_TIMEOUT_S, high=86_400)
    num_workers = _number(endpoint.WORKERS_VARIABLE, default_workers(), high=1024)
    answer_s = _number(
        endpoint.ANSWER_TIMEOUT_VARIABLE, endpoint.DEFAULT_ANSWER_TIMEOUT_S, high=endpoint.MAX_ANSWER_TIMEOUT_S
    )
    requested_precision()  # a wrong one is an error before anything is loaded
    with ExitStack() as stack:
        listener = stack.enter_context(address.bind())
        metrics_listener = _bind_metrics(stack)
        artifact = load_model(MlPaths.from_environment().model)
        folder = tempfile.TemporaryDirectory(prefix="ic-", dir=_temporary(), ignore_cleanup_errors=True)
        scratch = Scratch(Path(stack.enter_context(folder)))
        scratch.create()
        server = stack.enter_context(ServerProcess(scratch, num_workers=num_workers))
        workers = Workers(scratch, num_wanted=num_workers, answer_s=answer_s)
        engine = _wait_for_workers(server, workers, scratch, deadline, stop)
        if engine is None:
            return
        behind = Behind(
            socket=scratch.model_socket,
            num_workers=num_workers,
            num_alive=lambda: workers.num_alive,
            about={"model": artifact.fingerprint, "workers": num_workers, "engine": scratch.choice() or engine},
            answer_s=answer_s,
        )
        front = stack.enter_context(Front(behind, AccessLog(_access_log_file())))
        front.listen_privately(scratch.front_socket)
        tolerance = artifact.manifest.tolerance(endpoint.precision_of(engine))
        for sample in artifact.golden:
            answer = _invoke(scratch.front_socket, artifact, sample)
            check_answer(sample, artifact.classes, answer, tolerance=tolerance)
        drift = DriftWatch(scratch, artifact.manifest.reference)
        drift.begin()
        front.watch_drift(drift)
        with address.errors():
            front.listen(listener)
        if metrics_listener is not None:
            front.show_meters(metrics_listener)
        startup_s = time.monotonic() - started
        workers.replacement_s = max(workers.replacement_s, 2 * startup_s)
        line = endpoint.ready_line(
            url=address.url, model=artifact.fingerprint, engine=engine, workers=num_workers, startup_s=startup_s
        )
        print(line, flush=True)
        _watch(server, workers, drift, stop)
        front.drain(DRAIN_LIMIT_S)


def _wait_for_workers(
    server: ServerProcess, workers: Workers, scratch: Scratch, deadline: float, stop: threading.Event
) -> str | None:
    """The name of the engine once all workers have loaded and the model server listens; None when told to stop.

    Raises what a worker reported.
    """
    workers.replacement_s = math.inf  # there is nothing to replace yet
    while not stop.wait(_STARTUP_POLL_S):
        reports = workers.look()
        if len(reports) >= workers.num_wanted and scratch.model_socket.exists():
            workers.replacement_s = MIN_REPLACEMENT_S
            return reports[0].engine
        if server.ended():
            raise PlatformError("the model server ended while starting", _SEE_ABOVE)
        if time.monotonic() > deadline:
            raise PlatformError(
                f"only {len(reports)} of {workers.num_wanted} workers loaded the model in time",
                f"raise {endpoint.STARTUP_TIMEOUT_VARIABLE} or lower {endpoint.WORKERS_VARIABLE}",
            )
    return None


def _watch(server: ServerProcess, workers: Workers, drift: DriftWatch, stop: threading.Event) -> None:
    """Returns when told to stop. Raises when the server is gone, or workers are and stay away."""
    while not stop.wait(_WATCH_POLL_S):
        drift.read()
        try:
            workers.look()
        except PlatformError:
            stop.wait(_ENDING_S)  # so that the cause is told and not its consequence: workers end with their server
            if not server.ended():
                raise
        if server.ended():
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


def _bind_metrics(stack: ExitStack) -> socket.socket | None:
    if not os.environ.get(endpoint.METRICS_PORT_VARIABLE):
        return None
    port = _number(endpoint.METRICS_PORT_VARIABLE, 0, high=endpoint.MAX_PORT)
    hint = f"choose another port with {endpoint.METRICS_PORT_VARIABLE}"
    return stack.enter_context(bind("127.0.0.1", port, hint=hint))


def _access_log_file() -> Path | None:
    name = os.environ.get(endpoint.ACCESS_LOG_VARIABLE)
    return Path(name) if name else None


def _temporary() -> str:
    """The folder for temporary files, or /tmp where its name is too long to hold the server's sockets, or holds what
    the server's settings are split at: a list of models at commas, a line of its configuration at `=`."""
    folder = tempfile.gettempdir()
    fits = len(os.fsencode(folder)) <= _MAX_TEMPORARY_BYTES and _PLAIN.fullmatch(folder)
    return folder if fits else "/tmp"  # noqa: S108


def _number(variable: str, default: int, *, high: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= high):
        raise ConfigError(f"{variable} must be a whole number of 1 to {high}, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
