"""What job.json knows of a run on AWS: where it runs and everything it made, so that nothing is ever lost sight of.

A resource is noted before it is created: if the program dies in between, `delete` looks for a thing that is not
there, which is better than one running that nobody knows of.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import ConfigError
from image_classifier.contract.outputs import JOB
from image_classifier.launch.runs import REMOTE, Run, create_run
from image_classifier.launch.view import SILENT, View
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.requests import ID_TAG, Place
from image_classifier.sagemaker.session import Session

TRAINING_JOB = "training job"
TUNING_JOB = "tuning job"
TRANSFORM_JOB = "transform job"
MODEL = "model"
ENDPOINT_CONFIG = "endpoint config"
ENDPOINT = "endpoint"
ALARM = "alarm"
SCALING = "scaling"
MODEL_PACKAGE = "model package"  # a version in the model registry, by its ARN
FILES = "files"  # everything below the run's folder in S3


def new_place(session: Session, run: str) -> Place:
    """Where a new run's things go."""
    return Place(run=run, id=secrets.token_hex(8), root=session.root)


def create(session: Session, runs_dir: Path, kind: str, name: str, **record: Any) -> tuple[Run, Place]:
    """Makes the run folder of a run on AWS, and says where it is."""
    run = create_run(runs_dir, kind, name, **record)
    place = new_place(session, run.name)
    details = {
        "id": place.id,
        "region": session.region,
        "account": session.account,
        "root": place.root,
        "resources": [],
    }
    run.update(details={**run.record().details, REMOTE: details})
    session.view.note(f"run {run.path}")
    return run, place


def place_of(run: Run) -> Place:
    """Where an existing run's things are."""
    details = details_of(run)
    return Place(run=run.name, id=details["id"], root=details["root"])


def session_of(run: Run, settings: SageMakerSettings, view: View = SILENT) -> Session:
    """A session in the region of an existing run, whatever the settings say by now. Raises AwsError."""
    return Session(dataclasses.replace(settings, region=str(details_of(run)["region"])), view)


def details_of(run: Run) -> Mapping[str, Any]:
    """What is known of a run on AWS. Raises ConfigError for a run of this machine."""
    details = run.record().details.get(REMOTE)
    if details is None:
        raise ConfigError(f"{run.name} did not run on SageMaker")
    with run.intact():
        if not all(isinstance(details[name], str) for name in ("id", "region", "root")):
            raise TypeError("a name is no text")
        for kind, name in details["resources"]:
            if not isinstance(kind, str) or not isinstance(name, str):
                raise TypeError("a resource is no pair of texts")
    return details  # type: ignore[no-any-return]  # JSON


def remember(run: Run, **facts: Any) -> None:
    """Adds facts about the run on AWS."""
    run.update(details={**run.record().details, REMOTE: {**details_of(run), **facts}})


def note(run: Run, kind: str, name: str) -> None:
    """Notes a resource that is about to be created."""
    known = resources(run)
    if (kind, name) not in known:
        remember(run, resources=[*known, (kind, name)])


def forget(run: Run, kind: str, name: str) -> None:
    """Notes that a resource is gone."""
    remember(run, resources=[item for item in resources(run) if item != (kind, name)])


def resources(run: Run) -> list[tuple[str, str]]:
    """(kind, name) of everything the run made and that was not removed again, in the order of making."""
    return [(str(kind), str(name)) for kind, name in details_of(run)["resources"]]


def is_ours(session: Session, arn: str, place: Place) -> bool:
    """Whether a SageMaker resource carries this very run's tag."""
    found = session.call("sagemaker", "list_tags", ResourceArn=arn).get("Tags", [])
    return any(tag["Key"] == ID_TAG and tag["Value"] == place.id for tag in found)


def trained_by(archive: Path) -> Run | None:
    """The run on SageMaker in whose folder an archive lies, None for any other."""
    run = Run(path=archive.resolve().parent)
    return run if JOB.is_in(run.path) and run.is_remote else None
