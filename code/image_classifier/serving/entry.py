"""The server program: what `IMAGE serve` and `deploy.py serve` run. `python -m image_classifier.serving.entry`.

    port ours -> model server started -> artifact verified -> every worker reproduced the golden samples ->
    the golden samples through the front -> the port opens (/ping is 200 from here on) -> `ready ...` -> SIGTERM or
    Ctrl-C -> whatever was accepted answered -> nothing left

Exit codes: 0 after SIGTERM or SIGINT, also while starting; 1 with an `error:` line when the model or the machine is at
fault, or when the model server dies; 2 for a wrong setting. The settings are in `contract.endpoint`, the model folder
is $SAGEMAKER_BASE_DIR/model.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from image_classifier.contract import endpoint
from image_classifier.contract.errors import ClassifierError, ConfigError, PlatformError, describe
from image_classifier.contract.machine import bind
from image_classifier.contract.text import visible
from image_classifier.serving.capacity import default_workers, threads_of
from image_classifier.serving.requested import requested_precision
from image_classifier.serving.scratch import Scratch
from image_classifier.serving.server import Address, ServerProcess

_MAX_TEMPORARY_BYTES = 70  # of the 107 that a socket's path has at most; ours add 30
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")


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
    if program := os.environ.get(endpoint.PROGRAM_VARIABLE):
        told = f"warning: {program} of {endpoint.PROGRAM_VARIABLE} is not run: this image has its own code that answers"
        print(visible(told), file=sys.stderr, flush=True)
    requested_precision()  # a wrong one is an error before anything is loaded
    with ExitStack() as stack:
        listener = stack.enter_context(address.bind())
        metrics_listener = _bind_metrics(stack)
        folder = tempfile.TemporaryDirectory(prefix="ic-", dir=_temporary(), ignore_cleanup_errors=True)
        scratch = Scratch(Path(stack.enter_context(folder)))
        scratch.create()
        server = stack.enter_context(
            ServerProcess(scratch, num_workers=num_workers, num_threads=threads_of(num_workers))
        )

        from image_classifier.serving.opening import Opening  # brings numpy and aiohttp: while Java starts

        opening = Opening(
            server=server,
            scratch=scratch,
            address=address,
            listener=listener,
            metrics_listener=metrics_listener,
            num_workers=num_workers,
            answer_s=answer_s,
            started=started,
            deadline=deadline,
            say=partial(print, flush=True),
        )
        opening.serve(stack, stop)


def _bind_metrics(stack: ExitStack) -> socket.socket | None:
    if not os.environ.get(endpoint.METRICS_PORT_VARIABLE):
        return None
    port = _number(endpoint.METRICS_PORT_VARIABLE, 0, high=endpoint.MAX_PORT)
    hint = f"choose another port with {endpoint.METRICS_PORT_VARIABLE}"
    return stack.enter_context(bind("127.0.0.1", port, hint=hint))


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
