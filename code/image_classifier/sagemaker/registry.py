"""The model registry as `serve` reads it: which version a name means, and what it is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from image_classifier.contract.errors import ConfigError
from image_classifier.contract.outputs import JOB
from image_classifier.launch.runs import find_run
from image_classifier.sagemaker import remote
from image_classifier.sagemaker.images import Image, parse_uri
from image_classifier.sagemaker.registry_requests import APPROVED, CUDA_MAJOR, PENDING, PROCESSOR
from image_classifier.sagemaker.session import Session

KIND = "register"  # of the run that adds a version
_PACKAGE = re.compile(r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:model-package/[a-zA-Z0-9-]+/\d{1,9}")
_VERSION = re.compile(r"([a-zA-Z0-9][a-zA-Z0-9-]{0,62})/(\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A version of a model in the registry. `model_url` is its archive in S3."""

    arn: str
    image: Image
    model_url: str


def arn_of(session: Session, text: str, runs_dir: Path) -> str:
    """The version that `text` means: its ARN, GROUP/VERSION, the run that registered it, or the group of the settings
    for its newest approved one; empty where `text` is none of these, as a run or an archive.

    Raises:
        ConfigError: no version of the group is approved.
        AwsError: the registry cannot be asked.
    """
    if _PACKAGE.fullmatch(text):
        return text
    if not text or Path(text).exists():
        return ""
    if JOB.is_in(runs_dir / text):
        run = find_run(runs_dir, text)
        return str(remote.details_of(run).get("package", "")) if run.record().kind == KIND else ""
    if version := _VERSION.fullmatch(text):
        partition = session.boto.get_partition_for_region(session.region)
        return f"arn:{partition}:sagemaker:{session.region}:{session.account}:model-package/{version[1]}/{version[2]}"
    if text != session.settings.model_group:
        return ""
    found = session.call(
        "sagemaker",
        "list_model_packages",
        ModelPackageGroupName=text,
        ModelApprovalStatus=APPROVED,
        SortBy="CreationTime",
        SortOrder="Descending",
    )["ModelPackageSummaryList"]
    if not found:
        raise ConfigError(
            f"no version of {text} is approved", f"approve one: deploy.py register --approve {text}/VERSION"
        )
    return str(found[0]["ModelPackageArn"])


def find_package(session: Session, arn: str) -> Package:
    """A version that may be served. Raises ConfigError for one that is not approved or not of our making, AwsError."""
    found = session.call("sagemaker", "describe_model_package", ModelPackageName=arn)
    status = found.get("ModelApprovalStatus", PENDING)
    name = arn.rpartition("model-package/")[2]
    if status != APPROVED:
        raise ConfigError(f"{name} is {status}, not {APPROVED}", f"deploy.py register --approve {name}")
    try:
        (container,) = found["InferenceSpecification"]["Containers"]
        noted = found["CustomerMetadataProperties"]
        image = parse_uri(str(container["Image"]), int(noted[CUDA_MAJOR]))
        image = replace(image, processor=str(noted.get(PROCESSOR, "")))
        return Package(arn=arn, image=image, model_url=str(container["ModelDataUrl"]))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{name} was not made by `deploy.py register`", "serve its model.tar.gz, if it is one of ours"
        ) from None
