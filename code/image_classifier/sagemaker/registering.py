"""The register command: a model becomes the next version in a group of SageMaker's model registry.

A version names the serving image by its digest, the model in its own place in S3, its metrics, who made it and whether
it may be served. It stays when the run that trained the model is deleted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from image_classifier.contract.errors import ConfigError
from image_classifier.contract.files import write_text
from image_classifier.contract.outputs import JOB
from image_classifier.launch.runs import REMOTE, Run, Status
from image_classifier.launch.view import SILENT, View
from image_classifier.sagemaker import registry_requests as bodies
from image_classifier.sagemaker import remote
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.endpoints import MODELS, doubt_of, publish
from image_classifier.sagemaker.failures import MISSING, AwsError
from image_classifier.sagemaker.images import find_image
from image_classifier.sagemaker.registry import KIND, arn_of
from image_classifier.sagemaker.requests import ApiRequest, Place
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.training_job import dry_place, failing, save_requests, show_requests
from image_classifier.sagemaker.upload import file_uri, upload_file
from image_classifier.vision import artifact

QUALITY_FILE = "quality.json"


def register(
    aws: SageMakerSettings,
    archive: Path,
    runs_dir: Path,
    *,
    status: str = bodies.PENDING,
    dry_run: bool = False,
    view: View = SILENT,
) -> str:
    """Adds a model to the group, which is made when it is missing; returns the version's ARN, empty with `dry_run`.

    Args:
        archive: a model.tar.gz; of one that a run on SageMaker trained, the copy in S3 is used.
        status: whether it may be served, of `registry_requests.APPROVALS`.

    Raises:
        ConfigError, ArtifactError, AwsError: it cannot be added.
    """
    session = Session(aws, view)
    image = find_image("serve", aws, on_gpu=aws.serves_on_gpu, on_arm=aws.serves_on_arm)
    session.require_region(image)
    with tempfile.TemporaryDirectory() as folder:
        model = artifact.unpack(archive, Path(folder) / "model")
        quality = Path(folder) / QUALITY_FILE
        write_text(quality, json.dumps(bodies.quality(model.manifest.metrics), indent=1) + "\n")
        trained = _run_of(archive)

        def requests(place: Place) -> list[ApiRequest]:
            package = bodies.model_package(
                aws,
                image=image,
                model_url=file_uri(session, archive, MODELS),
                quality_url=file_uri(session, quality, MODELS),
                doubt=doubt_of(archive, model),
                facts=_facts(model, trained),
                commit=trained.record().git if trained else "",
                status=status,
                place=place,
            )
            made = [] if _exists(session, aws.model_group) else [bodies.model_package_group(aws, place=place)]
            return [*made, package]

        if dry_run:
            show_requests(requests(dry_place(session, KIND, "")), view)
            return ""
        run, place = remote.create(session, runs_dir, KIND, "", data=str(archive.resolve()))
        with failing(run):
            publish(session, archive)
            upload_file(session, quality, MODELS)
            wanted = requests(place)
            save_requests(run, wanted)
            run.begin()
            replies = [session.send(request) for request in wanted]
            arn = str(replies[-1]["ModelPackageArn"])
            remote.note(run, remote.MODEL_PACKAGE, arn)
            remote.remember(run, package=arn)
            run.end(Status.COMPLETED, exit_code=0)
    return arn


def judge(aws: SageMakerSettings, text: str, runs_dir: Path, status: str, view: View = SILENT) -> str:
    """Says of a version whether it may be served; returns its ARN. Raises ConfigError for no version, AwsError."""
    session = Session(aws, view)
    arn = arn_of(session, text, runs_dir)
    if not arn:
        raise ConfigError(f"{text} is no version of a model in the registry", "name its ARN, GROUP/VERSION or the run")
    session.call("sagemaker", "update_model_package", ModelPackageArn=arn, ModelApprovalStatus=status)
    return arn


def _exists(session: Session, group: str) -> bool:
    try:
        session.call("sagemaker", "describe_model_package_group", ModelPackageGroupName=group)
    except AwsError as error:
        if error.code != MISSING:
            raise
        return False
    return True


def _run_of(archive: Path) -> Run | None:
    """The run in whose folder an archive lies."""
    folder = archive.resolve().parent
    return Run(path=folder) if JOB.is_in(folder) else None


def _facts(model: artifact.Artifact, trained: Run | None) -> Mapping[str, str]:
    """What the version says of itself besides its metrics."""
    facts = {
        "model": model.fingerprint,
        "images": model.manifest.data_fingerprint,
        "classes": str(len(model.classes)),
    }
    if trained is None:
        return facts
    job = trained.record().details.get(REMOTE, {}).get("job", "")
    return facts | {"run": trained.name} | ({"job": str(job)} if job else {})
