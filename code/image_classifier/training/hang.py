"""The end of a job whose main thread hangs, in a data loader or a collective, and so cannot end itself."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import traceback
from typing import NoReturn

from image_classifier.contract.errors import JobStopped
from image_classifier.contract.paths import MlPaths
from image_classifier.training.script import report, write_failure

log = logging.getLogger(__name__)
LEAVE_WITHIN_S = 60.0  # the storage may be what hangs


def leave(error: JobStopped, paths: MlPaths) -> NoReturn:
    """Says where the main thread stands and why the job ends, then ends the process and those that load data."""
    deadline = threading.Timer(LEAVE_WITHIN_S, os._exit, (error.exit_code,))
    deadline.daemon = True
    deadline.start()
    log.warning("the main thread does not go on from here:\n%s", main_stack())
    log.warning("%s", error.message)
    log.info("hint: %s", error.hint)
    write_failure(paths.failure, error)
    report(paths)
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    os._exit(error.exit_code)


def main_stack() -> str:
    """The calls that the main thread is in, the innermost last."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "unknown"
