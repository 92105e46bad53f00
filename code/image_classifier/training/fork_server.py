"""One process that imports what trainings need, and forks each of them: for the trials of a search on this machine.

    python -m image_classifier.training.fork_server FD          (FD is the server's end of a socket pair)

`contract/fork_requests.py` says what it is told and answers. For each training there are two forks: a supervisor, in a
session of its own, as `contract/supervisor.py` describes it, and the training below it, which goes on as a process
that was started anew would: with its own folder, output, signals and random numbers. Nothing is computed before a
fork, so that no thread is lost in it and none of torch's pools has a size yet. When the launcher is gone, the
supervisors see to the trainings, and the server ends with the last of them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from image_classifier.contract import supervisor
from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ClassifierError
from image_classifier.contract.fork_requests import READY, ForkRequest
from image_classifier.contract.importing import uncollected
from image_classifier.contract.paths import BASE_DIR_VARIABLE, MlPaths
from image_classifier.contract.supervised import GRACE_S
from image_classifier.training import script
from image_classifier.training.ending import note_end
from image_classifier.training.stop import StopFlag

PROGRAM = "train.py"  # by this name a training is known to people, however it was started
CANNOT_START = 127  # as a shell says it
WARM = ("training.job", "training.smdebug_files", "report", "report.job_page")  # what a job imports, of ours
_STOPS = (signal.SIGTERM, signal.SIGINT)
Handlers = Mapping[signal.Signals, Any]  # as `signal.getsignal` gives them


def main(argv: Sequence[str]) -> int:
    """Serves until the launcher is gone and returns 0; in a fork, returns a training's exit code."""
    requests = socket.socket(fileno=int(argv[0]))
    requests.set_inheritable(False)
    before = {number: signal.getsignal(number) for number in supervisor.WAKING}
    wake = supervisor.wake_on_signals()
    warm_up()
    requests.send(READY)
    request = serve(requests, wake, before)
    return 0 if request is None else train(request)


def warm_up() -> None:
    """Imports what trainings would."""
    with uncollected():  # what is never looked at by the collector stays one copy for all forks
        for name in WARM:
            importlib.import_module(f"image_classifier.{name}")
        with suppress(Exception):  # each training says itself that it goes without
            importlib.import_module("image_classifier.training.hook").import_smdebug()
        gc.collect()


def prepare_for(request: ForkRequest) -> None:
    """Has in this process what only trainings on pictures need: the memory for what they decode."""
    with suppress(OSError, ValueError, ClassifierError):  # the training itself will say it
        config = TrainConfig.from_hyperparameters(_hyperparameters(MlPaths(base=request.base)))
        if importlib.import_module("image_classifier.training.setup").wants_cache(config):
            importlib.import_module("image_classifier.training.shared_pictures").share_pictures(config)


def serve(requests: socket.socket, wake: int, before: Handlers) -> ForkRequest | None:
    """Forks a training for each request. Returns in every fork with what it is to do, and in the server with None when
    there is nobody to serve and nothing left to wait for.

    Args:
        wake: can be read after each signal.
        before: what the signals did in this program at first, and do in trainings.
    """
    sources, running = [wake, requests.fileno()], 0
    while running or requests.fileno() in sources:
        ready = select.select(sources, [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
        running -= _reap()
        if requests.fileno() not in ready:
            continue
        request = _next(requests)
        if request is None:
            sources.remove(requests.fileno())
            continue
        prepare_for(request)
        try:
            process = os.fork()
        except OSError as error:
            _write(request.output, f"error: cannot start {PROGRAM}: {error.strerror}")
            _write(request.answer, f"0\n{CANNOT_START}")
            process = 0
        else:
            if process == 0:
                requests.close()
                os.close(signal.set_wakeup_fd(-1))
                os.close(wake)
                return _fork_training(request, before)
            running += 1
        request.close()
    return None


def train(request: ForkRequest) -> int:
    """Runs the training as `train` of the toolkit does. Returns its exit code."""
    paths = MlPaths(base=request.base)
    stop = StopFlag()
    stop.install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)  # what came since the fork is heard now
    os.environ |= {BASE_DIR_VARIABLE: str(paths.base), "PYTHONPATH": str(paths.code)}
    os.chdir(paths.code)
    random.seed()  # a process that is started anew has random numbers of its own
    sys.argv = [PROGRAM, *(f"--{name}={value}" for name, value in _hyperparameters(paths).items())]
    return script.main(sys.argv[1:], stop)


def _hyperparameters(paths: MlPaths) -> dict[str, str]:
    return dict(json.loads(paths.hyperparameters.read_text(encoding="utf-8")))


def _next(requests: socket.socket) -> ForkRequest | None:
    try:
        return ForkRequest.receive(requests)
    except OSError:  # the launcher was killed
        return None


def _fork_training(request: ForkRequest, before: Handlers) -> ForkRequest:
    """In the first fork: forks the training, supervises it to its end and leaves. Returns in the second one."""
    try:
        os.setsid()
        for file, number in zip((request.orders, request.output, request.output), (0, 1, 2), strict=True):
            os.dup2(file, number)
        wake = supervisor.prepare()
        _write(request.answer, str(os.getpid()))
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # in the training until it can obey
        process = os.fork()
        if process == 0:
            _be_the_program(request, wake, before)
            return request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        _supervise(request, process, wake)
    except BaseException:  # whatever it is: it must not become another server
        traceback.print_exc()
        os._exit(1)


def _supervise(request: ForkRequest, process: int, wake: int) -> NoReturn:
    code = supervisor.supervise(process, wake, GRACE_S)
    paths = MlPaths(base=request.base)
    if code != 0:
        note_end(paths.failure, code, PROGRAM)
    else:
        with suppress(OSError):
            (paths.output / "success").touch()  # as the toolkit does
    sys.stdout.flush()
    _write(request.answer, str(code))
    os._exit(0)


def _be_the_program(request: ForkRequest, wake: int, before: Handlers) -> None:
    """Gives a fork back what a program starts with."""
    request.close()
    os.close(signal.set_wakeup_fd(-1))
    os.close(wake)
    for number, handler in before.items():
        signal.signal(number, handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _write(file: int, text: str) -> None:
    """Writes a line; that the launcher is gone, or the disk full, changes nothing."""
    with suppress(OSError):
        os.write(file, f"{text}\n".encode())


def _reap() -> int:
    """Takes the status of the supervisors that have ended; returns how many."""
    ended = 0
    while True:
        try:
            process, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if process == 0:
            return ended
        ended += 1


if __name__ == "__main__":
    script.leave(main(sys.argv[1:]))
