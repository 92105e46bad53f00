"""The outside of a training job: arguments in, exit code and failure file out. What a job does is in `job.py`."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import psutil

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import EXIT_PLATFORM, ClassifierError, JobStopped, PlatformError, ProcessLost
from image_classifier.contract.importing import uncollected
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import visible
from image_classifier.training.ending import explain, report, write_failure
from image_classifier.training.given_data import GivenData
from image_classifier.training.stop import StopFlag, end_workers, remove_temporary_folder

log = logging.getLogger(__name__)


def main(argv: Sequence[str], stop: StopFlag | None = None) -> int:
    """Runs one training job with the hyperparameters in `argv` (`--name value ...`).

    Args:
        stop: one that is installed already; default: a new one.

    Returns:
        0 when the model was written, 143 when the job was stopped and can be resumed, 2 for a hyperparameter that
        is unknown or out of range, 3 when a rule stopped it, 4 when the machine refused (a full disk), 5 when another
        process of the same training has ended, 1 for any other failure. Unless it is 0, the failure file holds the
        cause.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    configure_logging(logging.INFO if is_main else logging.ERROR)
    if stop is None:
        stop = StopFlag()
        stop.install()
    paths = MlPaths.from_environment()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        paths.failure.unlink(missing_ok=True)  # an earlier attempt's
    try:
        config = TrainConfig.from_argv(argv)
        given = GivenData(config, paths, ahead=True)
        with uncollected():  # after the arguments: torch takes seconds to import
            from image_classifier.training.distributed import joined
            from image_classifier.training.job import run_in

        with joined(stop) as group:
            run_in(group, config, paths, stop, begun=process_started(), given=given)
            # whoever started the processes may end all as soon as one ends: the others wait for all that is written
            group.from_main(lambda: end_and_report(paths))
    except Exception as caught:
        error = explain(caught)
        if not isinstance(caught, (ClassifierError, OSError)):
            log.error("the job failed in a way nobody foresaw", exc_info=caught)
        log.log(logging.WARNING if isinstance(error, JobStopped) else logging.ERROR, "%s", error.message)
        if error.hint:
            log.info("hint: %s", error.hint)
        if not isinstance(error, ProcessLost) or not paths.failure.exists():  # the one that ended first wrote the cause
            write_failure(paths.failure, error)
        if is_main:
            end_and_report(paths)
        return EXIT_PLATFORM if isinstance(error, PlatformError) else error.exit_code
    finally:
        end_workers()
    return 0


def leave(status: int) -> NoReturn:
    """Ends the process, all of whose files are written, with that exit code.

    Nothing is taken down: freeing a network and its libraries object by object takes most of a second of nobody's use.
    In a process that was one of several, threads of gloo would meet peers that have left then, which aborts it now and
    then: SIGABRT in the place of its exit code. So it does not even wait for its threads, nor call what waits for exit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its forks
        atexit._run_exitfuncs()
    else:
        remove_temporary_folder()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def end_and_report(paths: MlPaths) -> None:
    """What the main process does last, however the job went."""
    end_workers()
    report(paths)


def process_started() -> float:
    """Unix seconds at which this process began."""
    try:
        return psutil.Process().create_time()
    except psutil.Error:
        return time.time()


def configure_logging(level: int = logging.INFO) -> None:
    """One line a message on standard output: `14:03:07 epoch=1/10 step=10/40 loss=1.23`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        if record.name == "py.warnings":  # comes with a line of source below it
            record.message = " ".join(record.message.split())
        record.message = visible(record.message)  # one line: a name in it makes no second one
        text = super().formatMessage(record)
        if record.levelno < logging.WARNING:
            return text
        return text.replace(record.message, f"{record.levelname.lower()}: {record.message}", 1)
