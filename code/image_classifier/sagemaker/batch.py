"""Batch transform: a folder or an S3 prefix of images in, one answer an image out, without an endpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from image_classifier.contract.endpoint import PRECISIONS
from image_classifier.contract.errors import ConfigError, ImageError, JobError, RequestError
from image_classifier.contract.text import as_text
from image_classifier.launch.client import Answer, find_images, read_answer, read_image
from image_classifier.launch.process import Interrupts
from image_classifier.launch.runs import Run, Status
from image_classifier.launch.view import SILENT, View
from image_classifier.sagemaker import cost, remote
from image_classifier.sagemaker import endpoint_requests as bodies
from image_classifier.sagemaker.aws_settings import SageMakerSettings, is_arm, is_gpu
from image_classifier.sagemaker.endpoints import MODELS, doubt_of, publish
from image_classifier.sagemaker.failures import describe_reason
from image_classifier.sagemaker.images import find_image
from image_classifier.sagemaker.jobs import FINISHED
from image_classifier.sagemaker.requests import ApiRequest, Place, job_name
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.training_job import detached, dry_place, failing, save_requests, show_requests
from image_classifier.sagemaker.upload import download, ensure_bucket, file_uri, list_objects, put, split_uri
from image_classifier.sagemaker.watch import watch, when_ready
from image_classifier.vision import artifact
from image_classifier.vision.decode import decode

KIND = "batch"
ANSWER_SUFFIX = ".out"  # what SageMaker adds to an input's name
THREADS = 16


def predict(
    aws: SageMakerSettings,
    sources: Sequence[str],
    archive: Path,
    runs_dir: Path,
    *,
    precision: str = PRECISIONS[0],
    yes: bool = False,
    dry_run: bool = False,
    view: View = SILENT,
) -> list[Answer] | None:
    """Asks about every image with one batch job; with `dry_run` shows `view` the requests and returns None.

    Args:
        sources: files and folders of this machine, or one `s3://` prefix.
        precision: the number format to compute in, of PRECISIONS.

    Raises:
        ConfigError, AwsError: it cannot be started.
        JobError: the job failed.
        JobStopped: the user stopped waiting; the job goes on.
    """
    session = Session(aws, view)
    session.require_role()
    if is_arm(aws.serve_instance):
        raise ConfigError(
            f"serve_instance is {aws.serve_instance}: SageMaker has no arm64 processors for batch jobs",
            "name another for this job, such as CLASSIFIER_SAGEMAKER_SERVE_INSTANCE=ml.c7i.xlarge",
        )
    image = find_image("serve", aws, on_gpu=is_gpu(aws.serve_instance))
    session.require_region(image)
    in_s3 = [source for source in sources if source.startswith("s3://")]
    if in_s3 and len(sources) > 1:
        raise ConfigError("one S3 prefix, or files and folders, but not both")
    files = [] if in_s3 else find_images([Path(source) for source in sources], view)
    with tempfile.TemporaryDirectory() as folder:
        doubt = doubt_of(archive, artifact.unpack(archive, Path(folder) / "model"))  # before anything costs money

    def parts(place: Place) -> list[ApiRequest]:
        name = job_name(place.run)
        where = in_s3[0].rstrip("/") + "/" if in_s3 else questions(place)
        url = file_uri(session, archive, MODELS)
        return [
            bodies.model(name, aws, image=image, data_url=url, place=place, precision=precision),
            bodies.transform_job(name, name, aws, image=image, source=where, place=place),
        ]

    if dry_run:
        show_requests(parts(dry_place(session, KIND, "")), view)
        return None
    cost.confirm(cost.batch(aws, len(files)), view, yes=yes, doubt=doubt)
    run, place = remote.create(session, runs_dir, KIND, "", data=" ".join(sources))
    with failing(run):
        made = parts(place)
        save_requests(run, made)
        name = str(made[1].body["TransformJobName"])
        remote.note(run, remote.FILES, f"{place.root}/runs/{run.name}/")
        bad = _upload(session, files, place) if files else {}
        remote.remember(
            run, job=name, source=str(made[1].body["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"])
        )
        remote.remember(run, files={_key(i, file): as_text(file) for i, file in enumerate(files)}, bad=bad)
        publish(session, archive)
        remote.note(run, remote.MODEL, name)
        when_ready(lambda: session.send(made[0]), view.note)
        remote.note(run, remote.TRANSFORM_JOB, name)
        when_ready(lambda: session.send(made[1]), view.note)
        run.begin()
    return follow(run, session)


def follow(run: Run, session: Session) -> list[Answer]:
    """Waits for a batch job, and fetches its answers. Raises as `predict`."""
    with Interrupts() as interrupts, session.view.live() as live:
        state = watch(lambda: _describe(run, session), lambda state: state[0] in FINISHED, interrupts, live.show)
    if state is None:
        raise detached(run, interrupts)
    return _finish(run, session, *state)


def refresh(run: Run, session: Session) -> None:
    """Notes the end of a batch job if it has ended. Raises JobError, AwsError."""
    state = _describe(run, session)
    if state[0] in FINISHED:
        _finish(run, session, *state)


def questions(place: Place) -> str:
    """Where the images of a batch go, with a slash at its end."""
    return f"{place.root}/runs/{place.run}/questions/"


def _describe(run: Run, session: Session) -> tuple[str, str]:
    name = str(remote.details_of(run)["job"])
    reply = session.call("sagemaker", "describe_transform_job", TransformJobName=name)
    return str(reply["TransformJobStatus"]), str(reply.get("FailureReason", ""))


def _finish(run: Run, session: Session, status: str, reason: str) -> list[Answer]:
    if status != "Completed":
        error = describe_reason(reason or f"the batch job was {status.lower()}")
        run.end(Status.STOPPED if status == "Stopped" else Status.FAILED, failure=error.message)
        raise JobError(error.message, error.hint or f"one bad image fails a whole batch job; run {run.path}")
    answers = list(_answers(run, session))
    run.end(Status.COMPLETED, exit_code=0)
    return answers


def _answers(run: Run, session: Session) -> Iterator[Answer]:
    """Fetches the answers, with the names that the images had here; those that were never sent come last."""
    details, place = remote.details_of(run), remote.place_of(run)
    names, bad = dict(details.get("files", {})), dict(details.get("bad", {}))
    folder = run.path / "answers"
    _, prefix = split_uri(place.answers + "/")
    bucket, _ = split_uri(place.root)
    found = sorted(key for key, _ in list_objects(session, place.answers + "/") if key.endswith(ANSWER_SUFFIX))
    for key in found:
        name = key.removeprefix(prefix).removesuffix(ANSWER_SUFFIX)
        target = folder / f"{name}.json"
        download(session, f"s3://{bucket}/{key}", target)
        try:
            said = read_answer(target.read_bytes())
        except ValueError:
            yield Answer(file=names.get(name, name), error="the answer is not one of ours", hint=str(target))
        else:
            yield Answer(file=names.get(name, name), predictions=said.ranking, model=said.model, abstain=said.abstain)
    for file, message in bad.items():
        yield Answer(file=file, error=message, hint="it was left out: one bad image fails a whole batch job")


def _upload(session: Session, files: Sequence[Path], place: Place) -> dict[str, str]:
    """Sends what can be read, made smaller where it must be; returns file -> why not for the rest. Raises AwsError."""
    ensure_bucket(session)
    _, folder = split_uri(questions(place))

    def send(numbered: tuple[int, Path]) -> str:
        i, file = numbered
        try:
            body, _, _ = read_image(file)
            decode(body)
        except (ImageError, RequestError) as error:
            return error.message
        put(session, folder + _key(i, file), body)
        return ""

    with ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(send, enumerate(files)))
    bad = {as_text(file): message for file, message in zip(files, results, strict=True) if message}
    session.view.note(f"{len(files) - len(bad)} of {len(files)} images uploaded")
    if len(bad) == len(files):
        raise ImageError("none of the images can be read")
    return bad


def _key(number: int, file: Path) -> str:
    """Unique, and in the order of the files."""
    return f"{number:06}{file.suffix.lower()}"
