"""The delete command: removes what a run made on AWS, and says what it leaves.

Only what carries the run's own tag is touched: an endpoint that another run has updated since is that run's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from image_classifier.contract.errors import PlatformError
from image_classifier.launch.process import Interrupts
from image_classifier.launch.runs import ACTIVE, Run, Status
from image_classifier.sagemaker import jobs, remote
from image_classifier.sagemaker.endpoint_requests import VARIANT, scalable_target
from image_classifier.sagemaker.failures import MISSING, AwsError
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.upload import delete_objects
from image_classifier.sagemaker.watch import watch

JOBS = frozenset({remote.TRAINING_JOB, remote.TUNING_JOB, remote.TRANSFORM_JOB})
SHARED = (
    "the data set, weights and models in {root} (other runs may use them)",
    "the logs in CloudWatch",
    "the images in ECR",
)


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """What is gone and what is left, in words."""

    removed: tuple[str, ...]
    left: tuple[str, ...]


def delete(session: Session, run: Run) -> Deleted:
    """Removes what the run made, last made first. Raises AwsError; what is gone is noted, and delete can go on."""
    removed: list[str] = []
    left: list[str] = []
    for kind, name in reversed(remote.resources(run)):
        what = remove(session, run, kind, name)
        (left if what.startswith("left: ") else removed).append(what.removeprefix("left: "))
    left += [line.format(root=remote.details_of(run)["root"]) for line in SHARED]
    if run.record().status in ACTIVE:
        run.end(Status.STOPPED, failure="deleted")
    return Deleted(removed=tuple(removed), left=tuple(left))


def remove(session: Session, run: Run, kind: str, name: str) -> str:
    """Removes one resource. Returns what was done, `left: ...` when it is not the run's any more. Raises AwsError."""
    try:
        done = _remove(session, run, kind, name)
    except AwsError as error:
        if error.code != MISSING:
            raise
        done = f"{kind} {name} (was gone already)"
    if not done.startswith("left: "):
        remote.forget(run, kind, name)
    return done


def _remove(session: Session, run: Run, kind: str, name: str) -> str:
    if kind in JOBS:
        return _end_job(session, kind, name)
    if kind == remote.FILES:
        return f"{delete_objects(session, name)} files in {name}"
    if kind in (remote.MODEL_PACKAGE, remote.ALARM, remote.SCALING):
        return _remove_untagged(session, kind, name)
    describe, delete, member, arn = {
        remote.ENDPOINT: ("describe_endpoint", "delete_endpoint", "EndpointName", "EndpointArn"),
        remote.ENDPOINT_CONFIG: (
            "describe_endpoint_config",
            "delete_endpoint_config",
            "EndpointConfigName",
            "EndpointConfigArn",
        ),
        remote.MODEL: ("describe_model", "delete_model", "ModelName", "ModelArn"),
    }[kind]
    found: Any = session.call("sagemaker", describe, **{member: name})
    if not remote.is_ours(session, found[arn], remote.place_of(run)):
        remote.forget(run, kind, name)
        return f"left: {kind} {name} belongs to another run by now"
    session.call("sagemaker", delete, **{member: name})
    return f"{kind} {name}"


def _remove_untagged(session: Session, kind: str, name: str) -> str:
    """What the run alone can have made by that name."""
    if kind == remote.MODEL_PACKAGE:
        session.call("sagemaker", "delete_model_package", ModelPackageName=name)
        return f"{kind} {name.rpartition('model-package/')[2]}"
    if kind == remote.ALARM:
        session.call("cloudwatch", "delete_alarms", AlarmNames=[name])
        return f"alarm {name}"
    target = scalable_target(name.removeprefix("endpoint/").removesuffix(f"/variant/{VARIANT}"))
    session.call("application-autoscaling", "deregister_scalable_target", **target)
    return f"scaling of {name}"


def _end_job(session: Session, kind: str, name: str) -> str:
    """Stops a job that runs, and waits for its end: SageMaker keeps a record of every job, which costs nothing."""

    def read() -> str:
        if kind == remote.TRAINING_JOB:
            return jobs.describe_training_job(session, name).status
        if kind == remote.TUNING_JOB:
            return jobs.describe_tuning_job(session, name).status
        reply = session.call("sagemaker", "describe_transform_job", TransformJobName=name)
        return str(reply["TransformJobStatus"])

    if read() in jobs.FINISHED:
        return f"{kind} {name} (had ended; its record stays in SageMaker and costs nothing)"
    if kind == remote.TRAINING_JOB:
        jobs.stop_training_job(session, name)
    elif kind == remote.TUNING_JOB:
        jobs.stop_tuning_job(session, name)
    else:
        session.call("sagemaker", "stop_transform_job", TransformJobName=name)
    with Interrupts() as interrupts:
        if watch(read, lambda status: status in jobs.FINISHED, interrupts, session.view.note) is None:
            raise PlatformError(f"the {kind} {name} is still stopping", "run delete again to make sure")
    return f"{kind} {name} (stopped; its record stays in SageMaker and costs nothing)"
