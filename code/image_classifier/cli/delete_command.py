"""The delete and prune commands: ask, remove what a run made on AWS or its folder here, and say what is gone."""

from __future__ import annotations

from pathlib import Path

from image_classifier.cli import render
from image_classifier.cli.show_remote import deleted
from image_classifier.contract.errors import ConfigError, JobStopped
from image_classifier.launch.housekeeping import in_words, prunable, remove
from image_classifier.launch.runs import Run
from image_classifier.sagemaker import delete as removal
from image_classifier.sagemaker import remote
from image_classifier.sagemaker.aws_settings import SageMakerSettings


def delete(run: Run, aws: SageMakerSettings, *, yes: bool) -> None:
    """Removes what `run` made on AWS, or the folder of a run of this machine.

    Raises:
        ConfigError: it is still running, or there is nobody to ask.
        JobStopped: the answer was no.
        AwsError: it could not be removed.
    """
    view = render.Console()
    if not run.is_remote:
        view.note(f"removed: {in_words(remove([run], view, yes=yes))}")
        return
    made = remote.resources(run)
    for kind, name in made:
        view.note(f"{kind}: {name}")
    if not made:
        view.note(f"{run.name} has nothing left on AWS")
        return
    answer = True if yes else view.ask("Remove these?")
    if answer is None:
        raise ConfigError("there is no terminal to ask on", "give --yes to remove these")
    if not answer:
        raise JobStopped("nothing was removed")
    deleted(removal.delete(remote.session_of(run, aws, view), run))


def prune(runs_dir: Path, keep: int, *, yes: bool) -> None:
    """Removes the folders of all but the newest `keep` runs of each kind. Raises as `delete`."""
    view = render.Console()
    old = prunable(runs_dir, keep)
    if not old:
        view.note(f"nothing to remove: {runs_dir} has no more than {keep} of each kind that have ended here")
        return
    view.note(f"removed: {in_words(remove(old, view, yes=yes))}")
