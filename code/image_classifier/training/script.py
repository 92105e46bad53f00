"""The outside of a training job: arguments in, exit code and failure file out. What a job does is in `job.py`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ClassifierError, DataError, JobError, JobStopped, PlatformError, describe
from image_classifier.contract.paths import FAILURE_MAX_CHARS, JOB_NAME_VARIABLE, MlPaths
from image_classifier.training.stop import StopFlag, end_workers

log = logging.getLogger(__name__)
PROCESS_LOST = "another process of this training has ended"


def main(argv: Sequence[str]) -> int:
    """Runs one training job with the hyperparameters in `argv` (`--name value ...`).

    Returns:
        0 when the model was written, 143 when the job was stopped and can be resumed, 2 for a hyperparameter that
        is unknown or out of range, 1 for any other failure. Unless it is 0, the failure file holds the cause.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    configure_logging(logging.INFO if is_main else logging.ERROR)
    stop = StopFlag()
    stop.install()
    paths = MlPaths.from_environment()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        paths.failure.unlink(missing_ok=True)  # an earlier attempt's
    try:
        config = TrainConfig.from_argv(argv)
        from image_classifier.training.job import run  # after the arguments: torch takes seconds to import

        run(config, paths, stop)
    except Exception as caught:
        error = explain(caught)
        if not isinstance(caught, (ClassifierError, OSError)):
            log.error("the job failed in a way nobody foresaw", exc_info=caught)
        log.log(logging.WARNING if isinstance(error, JobStopped) else logging.ERROR, "%s", error.message)
        if error.hint:
            log.info("hint: %s", error.hint)
        if error.message != PROCESS_LOST or not paths.failure.exists():  # the one that ended first wrote the cause
            write_failure(paths.failure, error)
        return error.exit_code
    finally:
        end_workers()
        if is_main:
            report(paths)
    return 0


def report(paths: MlPaths) -> None:
    """Writes report.html and report.json of a job that left something to report on, however it ended. Never raises."""
    try:
        from image_classifier.report import write_report

        log.info("report: %s", write_report(paths.base, name=os.environ.get(JOB_NAME_VARIABLE, "")))
    except DataError:
        log.info("no report: nothing was recorded")
    except Exception as error:  # any: the report is worth less than the training
        log.warning("no report: %s", describe(error))


def configure_logging(level: int = logging.INFO) -> None:
    """One line a message on standard output: `14:03:07 epoch=1/10 step=10/40 loss=1.23`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        text = super().formatMessage(record)
        if record.levelno < logging.WARNING:
            return text
        return text.replace(record.message, f"{record.levelname.lower()}: {record.message}", 1)


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
        return JobError(PROCESS_LOST, "the log and the failure file of its host say why")
    if "DataLoader worker" in text:
        return JobError(
            f"a data loading process died: {describe(error)}",
            "a container needs shared memory for them (--shm-size=1g); workers=0 does without them",
        )
    return JobError(describe(error))


def write_failure(path: Path, error: ClassifierError) -> None:
    """The sentence, and the hint on a second line, cut to what SageMaker shows of a failure file."""
    text = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text[:FAILURE_MAX_CHARS], encoding="utf-8")
    except OSError as problem:
        log.error("%s cannot be written: %s", path, describe(problem))
