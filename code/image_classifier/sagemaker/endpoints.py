"""The serve command on SageMaker: a model, a configuration, an endpoint created or updated, and proof that it is right.

A new endpoint that fails, or that does not reproduce the golden samples, is deleted with all that was made for it. An
existing one goes back to the configuration it had.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.endpoint import PRECISIONS
from image_classifier.contract.errors import ClassifierError, JobError, JobStopped, PlatformError
from image_classifier.launch.process import Interrupts
from image_classifier.launch.runs import REMOTE, Run, Status
from image_classifier.launch.serving_run import KIND, find_archive
from image_classifier.launch.view import SILENT, View
from image_classifier.report.before_serving import standing_of_model
from image_classifier.sagemaker import cost, remote
from image_classifier.sagemaker import endpoint_requests as bodies
from image_classifier.sagemaker.aws_settings import AUTO, SageMakerSettings
from image_classifier.sagemaker.delete import remove
from image_classifier.sagemaker.failures import MISSING, AwsError, describe_reason
from image_classifier.sagemaker.images import Image, find_image
from image_classifier.sagemaker.logs import ENDPOINT_GROUP, LogTail
from image_classifier.sagemaker.predict import RemoteClient, check_golden
from image_classifier.sagemaker.registry import Package, arn_of, find_package
from image_classifier.sagemaker.requests import ApiRequest, Place, job_name, tags
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.training_job import dry_place, failing, save_requests, show_requests
from image_classifier.sagemaker.upload import copy_file, download, file_uri, upload_file
from image_classifier.sagemaker.watch import watch, when_ready
from image_classifier.vision import artifact

MODELS = "models"  # folder of the bucket
SETTLED = frozenset({"InService", "Failed", "OutOfService", "UpdateRollbackFailed"})
LAST_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What is put where.

    Args:
        existing: DescribeEndpoint's reply, None when there is no endpoint of that name.
        precision: the number format it computes in, of PRECISIONS.
        package: the version in the model registry that names image and archive; None for an archive of one's own.
    """

    session: Session
    settings: SageMakerSettings
    image: Image
    archive: Path
    existing: Any
    precision: str = PRECISIONS[0]
    package: Package | None = None

    @property
    def endpoint(self) -> str:
        return self.settings.endpoint

    @property
    def model_url(self) -> str:
        return self.package.model_url if self.package else file_uri(self.session, self.archive, MODELS)

    def parts(self, place: Place) -> list[ApiRequest]:
        """Model, configuration, and the endpoint itself."""
        name = job_name(place.run)
        model = bodies.model(
            name,
            self.settings,
            image=self.image,
            data_url=self.model_url,
            place=place,
            precision=self.precision,
            package=self.package.arn if self.package else "",
        )
        config = bodies.endpoint_config(name, name, self.settings, image=self.image, place=place)
        if self.existing is None:
            return [model, config, bodies.create_endpoint(self.endpoint, name, self.settings, place=place)]
        return [
            model,
            config,
            *self.watched(place),
            bodies.update_endpoint(self.endpoint, name, self.settings),
        ]

    def watched(self, place: Place) -> list[ApiRequest]:
        """The alarm that rolls updates back, unless the user has alarms of their own."""
        if self.settings.alarms != AUTO or self.settings.variant != "instance":
            return []
        return [bodies.alarm(self.endpoint, self.settings, place=place)]

    def afterwards(self, place: Place) -> list[ApiRequest]:
        """What an endpoint gets once it is in service."""
        scaling = bodies.scaling(self.endpoint, self.settings, place=place) if self.settings.scales else []
        return [*([] if self.existing else self.watched(place)), *scaling]


def serve(
    aws: SageMakerSettings,
    model: str,
    runs_dir: Path,
    *,
    precision: str = PRECISIONS[0],
    yes: bool = False,
    dry_run: bool = False,
    view: View = SILENT,
) -> Run | None:
    """Creates or updates the endpoint, and returns when it answers correctly; with `dry_run` only shows the requests.

    Args:
        model: a model.tar.gz or a run, see `find_archive`; of one that SageMaker trained, the copy in S3 is used. Or a
            version in the model registry, see `arn_of`.
        precision: the number format the endpoint computes in, of PRECISIONS.

    Raises:
        ConfigError, AwsError: it cannot be started.
        JobError, ArtifactError: the endpoint failed, or is wrong; it is deleted, or back to what it was.
        JobStopped: the user stopped waiting; the endpoint goes on.
    """
    session = Session(aws, view)
    session.require_role()
    with tempfile.TemporaryDirectory() as folder:
        package, image, archive = _source(session, model, runs_dir, Path(folder))
        session.require_region(image)
        unpacked = artifact.unpack(archive, Path(folder) / "model")  # before anything costs money
        existing = describe(session, aws.endpoint)
        deployment = Deployment(
            session=session,
            settings=aws,
            image=image,
            archive=archive,
            existing=existing,
            precision=precision,
            package=package,
        )
        if existing is not None and existing["EndpointStatus"] != "InService":
            raise PlatformError(
                f"the endpoint {aws.endpoint} is {existing['EndpointStatus']} and cannot be updated now",
                "wait until it is InService, delete it, or choose another name: endpoint under [sagemaker]",
            )
        if dry_run:
            place = dry_place(session, KIND, "")
            show_requests([*deployment.parts(place), *deployment.afterwards(place)], view)
            return None
        cost.confirm(cost.endpoint(aws), view, yes=yes, doubt=doubt_of(archive, unpacked))
        data = package.arn if package else str(archive.resolve())
        run, place = remote.create(session, runs_dir, KIND, "", data=data)
        if package is None:
            with failing(run):
                publish(session, archive)
        _deploy(deployment, run, place, unpacked)
    return run


def _source(session: Session, model: str, runs_dir: Path, folder: Path) -> tuple[Package | None, Image, Path]:
    """The version in the registry, if `model` means one, the image, and the archive: here, or fetched to `folder`."""
    if arn := arn_of(session, model, runs_dir):
        package = find_package(session, arn)
        archive = folder / "model.tar.gz"
        session.view.note(f"fetching the model of {arn}, to know what it answers to its golden samples")
        download(session, package.model_url, archive)
        return package, package.image, archive
    archive = find_archive(model, runs_dir)
    aws = session.settings
    return None, find_image("serve", aws, on_gpu=aws.serves_on_gpu, on_arm=aws.serves_on_arm), archive


def doubt_of(archive: Path, model: artifact.Artifact) -> str:
    """What speaks against paying for a model's answers; empty for one that is ready to be served."""
    found = standing_of_model(archive, model.manifest.metrics)
    return "" if found["ready"] else str(found["sentence"])


def describe(session: Session, endpoint: str) -> Any:
    """DescribeEndpoint's reply, None when there is no such endpoint. Raises AwsError."""
    try:
        return session.call("sagemaker", "describe_endpoint", EndpointName=endpoint)
    except AwsError as error:
        if error.code == MISSING:
            return None
        raise


def publish(session: Session, archive: Path) -> None:
    """Puts the archive to its own place in S3, so that deleting the run that trained it does not take it away.

    Of an archive that a run on SageMaker trained, the copy in S3 is used.
    """
    source = remote.trained_by(archive)
    uri = "" if source is None else str(source.record().details.get(REMOTE, {}).get("model", ""))
    if uri:
        copy_file(session, uri, file_uri(session, archive, MODELS))
    else:
        session.view.note(f"uploading {archive.name} ({archive.stat().st_size / 1e6:.0f} MB) unless it is in S3")
        upload_file(session, archive, MODELS)


def _deploy(deployment: Deployment, run: Run, place: Place, model: artifact.Artifact) -> None:
    session, endpoint = deployment.session, deployment.endpoint
    parts = deployment.parts(place)
    save_requests(run, parts)
    before = deployment.existing["EndpointConfigName"] if deployment.existing else ""
    remote.remember(
        run, endpoint=endpoint, variant=deployment.settings.variant, before=before, fingerprint=model.fingerprint
    )
    try:
        for part in parts:
            _make(session, run, part)
        run.begin()
        with Interrupts() as interrupts:
            _wait(deployment, run, interrupts)
        if deployment.existing:
            arn = deployment.existing["EndpointArn"]
            session.call("sagemaker", "add_tags", ResourceArn=arn, Tags=tags(place, deployment.settings))
        client = RemoteClient(session, endpoint, is_async=deployment.settings.variant == "async")
        check_golden(client, model)
        session.view.note(f"the endpoint {endpoint} reproduces its {len(model.golden)} golden samples")
        for part in deployment.afterwards(place):
            _make(session, run, part, on_reply=lambda reply: _wake(deployment, run, place, reply))
    except JobStopped:
        raise  # the user has seen enough: it goes on
    except BaseException as error:  # whatever it is: nothing may be left behind that costs money
        _undo(deployment, run, before)
        run.end(Status.FAILED, exit_code=1, failure=str(error) or "interrupted")
        raise
    run.end(Status.COMPLETED, exit_code=0)


def _make(session: Session, run: Run, part: ApiRequest, on_reply: Callable[[Any], None] = lambda reply: None) -> None:
    """Sends a request, noting what it makes first."""
    body = part.body
    kinds = {
        "create_model": (remote.MODEL, "ModelName"),
        "create_endpoint_config": (remote.ENDPOINT_CONFIG, "EndpointConfigName"),
        "create_endpoint": (remote.ENDPOINT, "EndpointName"),
        "update_endpoint": (remote.ENDPOINT, "EndpointName"),
        "put_metric_alarm": (remote.ALARM, "AlarmName"),
        "register_scalable_target": (remote.SCALING, "ResourceId"),
    }
    if part.operation in kinds:
        kind, member = kinds[part.operation]
        remote.note(run, kind, str(body[member]))
    on_reply(when_ready(lambda: session.send(part), session.view.note))


def _wake(deployment: Deployment, run: Run, place: Place, reply: Any) -> None:
    """The alarm that starts the first instance of an async endpoint needs the ARN of the policy it sets off."""
    arn = reply.get("PolicyARN", "") if isinstance(reply, dict) else ""
    if arn.endswith(f"policyName/{deployment.endpoint}-wake"):
        _make(
            deployment.session,
            run,
            bodies.wake_alarm(deployment.endpoint, arn, deployment.settings, place=place),
        )


def _wait(deployment: Deployment, run: Run, interrupts: Interrupts) -> None:
    """Waits until the endpoint is in service with this run's configuration. Raises JobError, JobStopped, AwsError."""
    session, endpoint = deployment.session, deployment.endpoint
    tail = LogTail(session, f"{ENDPOINT_GROUP}/{endpoint}", bodies.VARIANT)
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with session.view.live() as live, run.log.open("w", encoding="utf-8") as log:
        seen = [""]

        def read() -> Any:
            state = session.call("sagemaker", "describe_endpoint", EndpointName=endpoint)
            if state["EndpointStatus"] != seen[-1]:
                seen.append(state["EndpointStatus"])
                live.show(f"endpoint {endpoint}: {state['EndpointStatus']}")
            for line in tail.lines():
                log.write(line + "\n")
            log.flush()
            return state

        state = watch(read, lambda state: state["EndpointStatus"] in SETTLED, interrupts, live.show)
    if state is None:
        stopped = JobStopped(
            f"no longer waiting for the endpoint {endpoint}, which goes on and costs money",
            f"deploy.py status {run.name} shows it, deploy.py delete {run.name} removes it",
        )
        stopped.exit_code = interrupts.exit_code
        raise stopped
    if state["EndpointStatus"] != "InService":
        raise _failed(session, run, state.get("FailureReason", ""), f"the endpoint became {state['EndpointStatus']}")
    if state["EndpointConfigName"] != job_name(run.name):
        raise _failed(session, run, state.get("FailureReason", ""), "the update was rolled back")


def _failed(session: Session, run: Run, reason: str, otherwise: str) -> JobError:
    lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    if lines:
        for line in ("the last lines of its log:", *lines):
            session.view.note(line)
    error = describe_reason(reason or otherwise)
    return JobError(error.message if reason else otherwise, error.hint or f"the log is {run.log}")


def _undo(deployment: Deployment, run: Run, before: str) -> None:
    """Back to how it was. What cannot be removed is named: it costs money."""
    session, endpoint = deployment.session, deployment.endpoint
    try:
        state = describe(session, endpoint)
        if before and state is not None and state["EndpointConfigName"] != before:
            session.view.note(f"putting the endpoint {endpoint} back to {before}")
            session.call("sagemaker", "update_endpoint", EndpointName=endpoint, EndpointConfigName=before)
            with Interrupts() as interrupts:
                watch(
                    lambda: session.call("sagemaker", "describe_endpoint", EndpointName=endpoint),
                    lambda state: state["EndpointStatus"] in SETTLED,
                    interrupts,
                    session.view.note,
                )
        if before:
            remote.forget(run, remote.ENDPOINT, endpoint)  # it is the run's that made it
            remote.forget(run, remote.ALARM, f"{endpoint}-5xx")
        for kind, name in reversed(remote.resources(run)):
            remove(session, run, kind, name)
            session.view.note(f"removed the {kind} {name}")
    except ClassifierError as error:
        left = ", ".join(f"{kind} {name}" for kind, name in remote.resources(run))
        session.view.warn(f"cleaning up failed ({error.message}); still there: {left}")
        session.view.warn(f"an endpoint costs money until it is gone: deploy.py delete {run.name}")
