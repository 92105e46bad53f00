"""The server program: what `IMAGE serve` and `deploy.py serve` run. `python -m image_classifier.serving.entry`.

    artifact verified -> port free -> model server started -> every worker reproduced the golden samples ->
    the port opens (/ping is 200 from here on) -> the golden samples through HTTP -> `ready ...` -> SIGTERM or Ctrl-C ->
    requests in flight answered -> nothing left

Exit codes: 0 after SIGTERM or SIGINT, also while starting; 1 with an `error:` line when the model or the machine is at
fault, or when the model server dies; 2 for a wrong setting. The settings are in `contract.endpoint`, the model folder
is $SAGEMAKER_BASE_DIR/model.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from image_classifier.contract import endpoint
from image_classifier.contract.errors import ArtifactError, ClassifierError, ConfigError, PlatformError, describe
from image_classifier.contract.machine import usable_cores
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import visible
from image_classifier.contract.wire import JSON_TYPE, TOP_K_HEADER
from image_classifier.serving.engines import has_gpu, requested_engine
from image_classifier.serving.scratch import Report, Scratch
from image_classifier.serving.server import Address, ServerProcess
from image_classifier.vision.artifact import Artifact, check_answer, load_model
from image_classifier.vision.manifest import GoldenSample

_STARTUP_POLL_S = 0.05
_WATCH_POLL_S = 0.5
_MAX_TEMPORARY_BYTES = 70  # of the 107 that a socket's path has at most; ours add 30
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_SEE_ABOVE = "its own messages stand above"
_GPU_WORKERS = 4  # a worker decodes one image at a time; more of them only fill the GPU's memory
_INVOCATION_TIMEOUT_S = 60


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
    num_workers = _number(endpoint.WORKERS_VARIABLE, _default_workers(), high=1024)
    address.check_free()
    artifact = load_model(MlPaths.from_environment().model)
    with tempfile.TemporaryDirectory(prefix="ic-", dir=_temporary(), ignore_cleanup_errors=True) as folder:
        scratch = Scratch(Path(folder))
        scratch.create()
        with ServerProcess(scratch, address, num_workers=num_workers) as server:
            engine = _wait_for_workers(server, scratch, num_workers, deadline, stop)
            if engine is None:
                return
            server.open_port(deadline)
            for sample in artifact.golden:
                check_answer(sample, artifact.classes, _invoke(address, artifact, sample))
            line = endpoint.ready_line(
                url=address.url,
                model=artifact.fingerprint,
                engine=engine,
                workers=num_workers,
                startup_s=time.monotonic() - started,
            )
            print(line, flush=True)
            _watch(server, scratch, stop)
            server.drain()


def _wait_for_workers(
    server: ServerProcess, scratch: Scratch, num_workers: int, deadline: float, stop: threading.Event
) -> str | None:
    """The name of the engine once all workers have loaded; None when told to stop. Raises what a worker reported."""
    while not stop.wait(_STARTUP_POLL_S):
        reports = _good_reports(scratch)
        if len(reports) >= num_workers:
            return reports[0].engine
        if server.ended():
            raise PlatformError("the model server ended while starting", _SEE_ABOVE)
        if time.monotonic() > deadline:
            raise PlatformError(
                f"only {len(reports)} of {num_workers} workers loaded the model in time",
                f"raise {endpoint.STARTUP_TIMEOUT_VARIABLE} or lower {endpoint.WORKERS_VARIABLE}",
            )
    return None


def _watch(server: ServerProcess, scratch: Scratch, stop: threading.Event) -> None:
    """Returns when told to stop. Raises when the server is gone, or a replaced worker cannot load the model again."""
    while not stop.wait(_WATCH_POLL_S):
        _good_reports(scratch)
        if server.ended():
            raise PlatformError("the model server ended by itself", _SEE_ABOVE)


def _good_reports(scratch: Scratch) -> list[Report]:
    reports = scratch.reports()
    for report in reports:
        if report.error:
            raise ArtifactError(report.error, report.hint)
    return reports


def _invoke(address: Address, artifact: Artifact, sample: GoldenSample) -> dict[str, float]:
    """Asks the running server about one golden sample, as any client would: label -> probability for all classes."""
    headers = {"Accept": JSON_TYPE, "Content-Type": "application/x-image", TOP_K_HEADER: str(len(artifact.classes))}
    connection = http.client.HTTPConnection(address.reachable_host, address.port, timeout=_INVOCATION_TIMEOUT_S)
    try:
        connection.request("POST", "/invocations", body=sample.image, headers=headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        return {item["label"]: item["probability"] for item in answer["predictions"]}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise PlatformError(f"the server does not answer the golden sample {sample.name}", _SEE_ABOVE) from error
    finally:
        connection.close()


def _temporary() -> str:
    """The folder for temporary files, or /tmp where its name is too long to hold the server's sockets, or holds what
    the server's settings are split at: a list of models at commas, a line of its configuration at `=`."""
    folder = tempfile.gettempdir()
    fits = len(os.fsencode(folder)) <= _MAX_TEMPORARY_BYTES and _PLAIN.fullmatch(folder)
    return folder if fits else "/tmp"  # noqa: S108


def _default_workers() -> int:
    cores = usable_cores()
    return min(cores, _GPU_WORKERS) if requested_engine() != "openvino" and has_gpu() else cores


def _number(variable: str, default: int, *, high: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= high):
        raise ConfigError(f"{variable} must be a whole number of 1 to {high}, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
