"""What sets a search's best trial apart: it alone is tested, and has its number formats measured and a model written.

While the search goes on, every trial leaves its metrics and a checkpoint that holds its best epoch. In the end the best
one's job is started once more: it finds nothing left to train and goes on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from image_classifier.contract.errors import EXIT_PLATFORM, JobError, JobStopped, PlatformError
from image_classifier.contract.outputs import TRIAL, TRIED
from image_classifier.launch import local
from image_classifier.launch.process import Interrupts, follow
from image_classifier.launch.runs import Run, Status
from image_classifier.launch.training_run import silent_end
from image_classifier.launch.view import View
from image_classifier.tuning.trials import TrialRow, pick_best


def ask_for_metrics_alone(run: Run) -> None:
    """Tells a prepared trial to leave it at its metrics."""
    TRIAL.write(run.paths.config, {"model": False})


def make_room(rows: Sequence[TrialRow], objective: str, *, keep_models: bool) -> None:
    """Only the best of the finished trials needs its checkpoint, until its model is written, and then the model."""
    best = pick_best(rows, objective)
    for row in rows:
        paths = Run(path=row.path).paths
        if row.finished and (row is not best or is_whole(Run(path=row.path))):
            shutil.rmtree(paths.checkpoints, ignore_errors=True)
        if row.finished and row is not best and not keep_models:
            shutil.rmtree(paths.model, ignore_errors=True)


def is_whole(run: Run) -> bool:
    """Whether a trial has been tested and has its model."""
    return any(run.paths.model.glob("*")) and run.result().get("outcome") != TRIED


def is_settled(run: Run) -> bool:
    """Whether a trial is whole, and its record as its training left it: it is mended where a search was killed before
    that."""
    if not is_whole(run):
        return False
    as_it_was(run)
    return True


def finish(
    best: TrialRow,
    channels: Mapping[str, Path],
    starter: local.Starter,
    interrupts: Interrupts,
    view: View,
    *,
    how_to_resume: str,
) -> None:
    """Starts the job of a trial that has been trained once more, for what it left out.

    Args:
        channels: the folders of the search's trials, by channel.

    Raises:
        JobStopped: interrupted.
        PlatformError: the machine refuses.
        JobError: it fails.
    """
    run = Run(path=best.path)
    local.prepare_training(run, best.config.replace(stop_on="none"), channels)  # rules come too late
    (run.paths.config / TRIAL.name).unlink(missing_ok=True)
    remember(run)
    with starter.start_training(run, view=view) as job:
        status = follow(job, lambda _: None, interrupts)
    message = run.failure().message or silent_end(status)
    with suppress(PlatformError):  # of a full disk: the first cause is what is told
        as_it_was(run)
    if status == 0:
        return
    if interrupts.count or status == JobStopped.exit_code:
        raise JobStopped(
            f"stopped before the best trial's model was written ({message})", f"go on with: {how_to_resume}"
        )
    if status == EXIT_PLATFORM:
        raise PlatformError(message, f"then go on with: {how_to_resume}")
    raise JobError(f"the best trial could not be tested: {message}", f"mend that, then: {how_to_resume}")


def remember(run: Run) -> None:
    """Keeps in a trial's record how it stood when its training ended: what it is to say in the end."""
    record = run.record()
    if TRIED not in record.details:
        names = ("status", "started", "ended", "attempts", "exit_code", "failure")
        run.update(details={**record.details, TRIED: {name: getattr(record, name) for name in names}})


def as_it_was(run: Run) -> None:
    """Puts back what `remember` kept, if it did."""
    details = dict(run.record().details)
    if TRIED in details:
        with run.intact():
            tried = dict(details.pop(TRIED))
            run.update(**{**tried, "status": Status(tried["status"]), "details": details})
