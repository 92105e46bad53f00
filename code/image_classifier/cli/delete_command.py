"""The delete command: asks, removes what a run made on AWS, and lists what is gone and what is left."""

from __future__ import annotations

from image_classifier.cli import render
from image_classifier.cli.show_remote import deleted
from image_classifier.contract.errors import ConfigError, JobStopped
from image_classifier.launch.runs import Run
from image_classifier.sagemaker import delete as removal
from image_classifier.sagemaker import remote
from image_classifier.sagemaker.aws_settings import SageMakerSettings


def delete(run: Run, aws: SageMakerSettings, *, yes: bool) -> None:
    """Removes what `run` made on AWS.

    Raises:
        ConfigError: it made nothing there, or there is nobody to ask.
        JobStopped: the answer was no.
        AwsError: it could not be removed.
    """
    if not run.is_remote:
        raise ConfigError(f"{run.name} ran on this machine", f"remove its folder: {run.path}")
    view = render.Console()
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
