"""How a job ends when it does not end well: the sentence, the failure file, the report, and the way out of a hang."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from image_classifier.contract.errors import (
    EXIT_STOPPED,
    ClassifierError,
    DataError,
    JobError,
    JobStopped,
    PlatformError,
    ProcessLost,
    describe,
)
from image_classifier.contract.outputs import failure_text
from image_classifier.contract.paths import JOB_NAME_VARIABLE, MlPaths
from image_classifier.training.stop import remove_temporary_folder

log = logging.getLogger(__name__)
KILLED = 128  # and the signal's number: the exit code of a script that was killed
LEAVE_WITHIN_S = 60.0  # the storage may be what hangs
PROCESS_LOST = "another process of this training has ended"


def explain(error: Exception) -> ClassifierError:
    """Any exception as one of ours, so that every failure has a sentence and an exit code."""
    if isinstance(error, ClassifierError):
        return error
    if isinstance(error, OSError):
        return PlatformError(describe(error))
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return JobError("the memory ran out", "lower batch_size or image_size")
    if any(words in text for words in ("closed by peer", "reset by peer", "Broken pipe")):
        return ProcessLost(PROCESS_LOST, "the log and the failure file of its host say why")
    if "DataLoader worker" in text:
        return JobError(
            f"a data loading process died: {describe(error)}",
            "a container needs shared memory for them (--shm-size=1g); workers=0 does without them",
        )
    return JobError(describe(error))


def write_failure(path: Path, error: ClassifierError) -> None:
    """Writes the failure file; that it cannot be written is no further failure, but a line in the log."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(failure_text(error), encoding="utf-8")
    except OSError as problem:
        log.error("%s cannot be written: %s", path, describe(problem))


def note_end(failure: Path, code: int, program: str) -> None:
    """Writes the failure file of a program that ended with a code other than 0 and could not write its own.

    Args:
        code: 128 + N after signal N; 9 is how Linux ends a process when memory runs out.
        program: its name, for people.
    """
    if code > KILLED and not (code == EXIT_STOPPED and failure.exists()):
        name = signal.Signals(code - KILLED).name
        hint = "memory ran out, or somebody killed it: lower batch_size or workers" if name == "SIGKILL" else ""
        write_failure(failure, JobError(f"the training script was killed by {name}", hint))
    elif not failure.exists():  # ours has written it
        write_failure(failure, JobError(f"{program} ended with exit code {code}", "the log says why"))


def report(paths: MlPaths) -> None:
    """Writes report.html and report.json of a job that left something to report on, however it ended. Never raises."""
    try:
        from image_classifier.report import write_report

        log.info("report: %s", write_report(paths.base, name=os.environ.get(JOB_NAME_VARIABLE, "")))
    except DataError:
        log.info("no report: nothing was recorded")
    except Exception as error:  # any: the report is worth less than the training
        log.warning("no report: %s", describe(error))


def leave(error: JobStopped, paths: MlPaths) -> NoReturn:
    """The end of a job whose main thread hangs, in a data loader or a collective, and so cannot end itself.

    Says where the main thread stands and why the job ends, then ends the process and those that load data.
    """
    deadline = threading.Timer(LEAVE_WITHIN_S, os._exit, (error.exit_code,))
    deadline.daemon = True
    deadline.start()
    for line in ("the main thread does not go on from here:", *main_stack().splitlines()):
        log.warning("%s", line)
    log.warning("%s", error.message)
    log.info("hint: %s", error.hint)
    write_failure(paths.failure, error)
    report(paths)
    for worker in multiprocessing.active_children():
        worker.kill()
    remove_temporary_folder()
    sys.stdout.flush()
    os._exit(error.exit_code)


def main_stack() -> str:
    """The calls that the main thread is in, the innermost last."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "unknown"
