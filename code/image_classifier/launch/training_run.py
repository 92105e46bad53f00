"""The train command: checks first, then one training job, followed to its end and packed into model.tar.gz."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.config import NAMED_WEIGHTS, TrainConfig
from image_classifier.contract.errors import (
    EXIT_PLATFORM,
    ConfigError,
    JobError,
    JobStopped,
    PlatformError,
    RuleFired,
)
from image_classifier.contract.files import open_plain
from image_classifier.contract.outputs import ARCHIVE
from image_classifier.contract.paths import path_here
from image_classifier.launch import local
from image_classifier.launch.job_data import channels_for, check_data, data_of, keep_split
from image_classifier.launch.process import Interrupts, follow
from image_classifier.launch.progress import ProgressView
from image_classifier.launch.runs import ACTIVE, Run, Status, create_run, still_running
from image_classifier.launch.view import SILENT, View
from image_classifier.vision import artifact
from image_classifier.vision.folders import ImageFolders
from image_classifier.vision.foreign_weights import check_file
from image_classifier.vision.weights_preview import check_contents

KIND = "train"
EXIT_KILLED = 137  # 128 + SIGKILL
LAST_LINES = 20  # of the log, shown with --debug when a job failed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished training left: its folder, the trainer's metrics.json, and the wall time in seconds."""

    run: Run
    result: Mapping[str, Any]
    seconds: float

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metric name -> value, of the best epoch and of the test."""
        return self.result.get("metrics", {})  # type: ignore[no-any-return]  # see `read_result`


def resolve_weights(config: TrainConfig, runs_dir: Path) -> TrainConfig:
    """The configuration with weights that can be found from any working directory: a run stands for its model.

    Raises:
        ConfigError: there is no such file or run, or the run left no model.
        WeightsError: the file cannot hold weights.
    """
    if config.weights in NAMED_WEIGHTS:
        return config
    path = path_here(config.weights).expanduser()
    if not path.exists() and len(path.parts) == 1:
        path = runs_dir / path
    if not path.exists():
        raise ConfigError(
            f"there are no weights {config.weights}",
            "weights is imagenet, none, a finished training's name, or the path of a file that exists",
        )
    if path.is_dir():
        path /= ARCHIVE
        if not path.is_file():
            raise ConfigError(f"{path.parent} holds no {ARCHIVE} to start from", "name a training that has finished")
    if not path.is_file():
        raise ConfigError(f"the weights {config.weights} are no file", "name one .pth or .safetensors file")
    check_file(path)
    return config.replace(weights=str(path.resolve()))


def check_weights(config: TrainConfig, folders: ImageFolders) -> None:
    """Raises WeightsError when the job would refuse the weights that `resolve_weights` found, as far as can be told
    without torch."""
    if config.weights not in NAMED_WEIGHTS:
        check_contents(Path(config.weights), len(folders.classes))


def train(
    config: TrainConfig,
    data: Path,
    runs_dir: Path,
    *,
    name: str = "",
    starter: local.Starter = local,
    view: View = SILENT,
) -> Outcome:
    """Runs a new training job.

    Raises:
        ConfigError, DataError, WeightsError, PlatformError: it cannot be started.
        JobStopped: it was interrupted, and can be resumed.
        JobError: it failed; the message is the first cause.
    """
    config = resolve_weights(config, runs_dir)
    folders = check_data(data, config, view)
    check_weights(config, folders)
    local.require_free_disk(runs_dir)
    data = data_of(data, folders)
    run = create_run(runs_dir, KIND, name, data=str(data), config=config.to_hyperparameters())
    view.note(f"run {run.path}")
    with run.held():
        keep_split(run, folders)
        local.prepare_training(run, config, channels_for(data, run))
        return _run_to_the_end(run, config, starter, view)


def resume(run: Run, *, starter: local.Starter = local, view: View = SILENT) -> Outcome:
    """Goes on with an interrupted or failed training where its checkpoint left off. Raises as `train`."""
    record = run.record()
    if record.status in ACTIVE:
        raise still_running(run)
    if record.status == Status.COMPLETED:
        raise ConfigError(f"{run.name} has finished", f"serve its model with `deploy.py serve {run.typed}`")
    config = TrainConfig.from_hyperparameters(record.config)
    data = Path(record.data)
    check_data(data, config, view, run=run)
    local.require_free_disk(run.path)
    view.note(f"run {run.path}, attempt {record.attempts + 1}")
    local.prepare_training(run, config, channels_for(data, run))
    return _run_to_the_end(run, config, starter, view)


def _run_to_the_end(run: Run, config: TrainConfig, starter: local.Starter, view: View) -> Outcome:
    started = time.monotonic()
    with Interrupts() as interrupts:
        with starter.start_training(run, view=view) as job, view.live() as live:
            status = follow(job, ProgressView(live, config).line, interrupts, lambda: live.show(STOPPING))
        if status == 0:
            artifact.pack(run.paths.model, run.archive)
            run.end(Status.COMPLETED, exit_code=0)
            return Outcome(run=run, result=run.result(), seconds=time.monotonic() - started)
        raise ending(run, status, interrupts, f"deploy.py train --resume {run.typed}")


STOPPING = "stopping: the job saves its state first (Ctrl-C again kills it)"


def ending(run: Run, status: int, interrupts: Interrupts, how_to_resume: str) -> JobError:
    """Notes the end of a job that did not succeed, and returns the error to raise."""
    cause = run.failure()
    message, hint = cause.message, cause.hint
    if interrupts.count or status == JobStopped.exit_code:
        stopped = JobStopped(message or "the job was killed before it saved its state", f"go on with: {how_to_resume}")
        if interrupts.count:
            stopped.exit_code = interrupts.exit_code
        run.end(Status.STOPPED, exit_code=status, failure=stopped.message)
        return stopped
    if status == RuleFired.exit_code:
        run.end(Status.STOPPED, exit_code=status, failure=message)
        return RuleFired(message, hint)
    message = message or silent_end(status)
    with suppress(PlatformError):  # of a full disk: the first cause is what is told
        run.end(Status.FAILED, exit_code=status, failure=message)
    error = JobError(message, f"{hint}; the log is {run.log}" if hint else f"the log is {run.log}")
    error.add_note(last_lines(run.log))  # shown by --debug, with the traceback
    return error


def silent_end(status: int) -> str:
    """The cause of an end that the job could not explain itself."""
    if status == EXIT_PLATFORM:
        return "the job could not write its files, not even why: the disk is full"
    if status == EXIT_KILLED:
        return "the job was killed: memory ran out, or somebody killed it"
    return f"the job ended with exit status {status} and gave no reason"


def last_lines(log: Path) -> str:
    """The end of a log."""
    try:
        with open_plain(log, "r", encoding="utf-8", errors="replace") as file:
            return "\n".join(file.read().splitlines()[-LAST_LINES:])
    except OSError:
        return ""
