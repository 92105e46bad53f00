"""The train command on SageMaker: data to S3, one training job, its log and its outputs back in the run folder."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from image_classifier.contract.config import NAMED_WEIGHTS, TrainConfig
from image_classifier.contract.errors import ConfigError, JobError, JobStopped, PlatformError
from image_classifier.contract.files import write_text
from image_classifier.contract.text import as_text
from image_classifier.launch.job_data import check_data, keep_split
from image_classifier.launch.process import Interrupts
from image_classifier.launch.progress import ProgressView
from image_classifier.launch.runs import ACTIVE, Run, Status
from image_classifier.launch.training_run import KIND, Outcome, check_weights, last_lines, resolve_weights
from image_classifier.launch.view import SILENT, View, one_line
from image_classifier.sagemaker import cost, jobs, remote
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.failures import MISSING, AwsError, describe_reason
from image_classifier.sagemaker.images import Image, find_image
from image_classifier.sagemaker.logs import TRAINING_GROUP, LogTail
from image_classifier.sagemaker.requests import ApiRequest, Place, job_name, training_job
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.upload import (
    DataSet,
    Sent,
    download,
    file_uri,
    read_data_set,
    upload_data_set,
    upload_file,
)
from image_classifier.sagemaker.validation import validate
from image_classifier.sagemaker.watch import LOG_LAG_S, pause, watch
from image_classifier.vision import artifact
from image_classifier.vision.folders import ImageFolders

REQUEST_FILE = "request.json"
OUTPUT_ARCHIVE = "output.tar.gz"
WEIGHTS_CHANNEL = "weights"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a training or tuning job starts from, before anything is sent.

    Args:
        config: with `weights` as the job sees it: a name, or a file in the `weights` channel.
        weights: the file on this machine, None without one.
    """

    session: Session
    image: Image
    folder: Path
    folders: ImageFolders
    data: DataSet
    config: TrainConfig
    weights: Path | None

    def channels(self) -> dict[str, str]:
        """Channel -> S3 folder."""
        uris = self.data.uris(self.session.root)
        if self.weights is not None:
            uris[WEIGHTS_CHANNEL] = file_uri(self.session, self.weights, WEIGHTS_CHANNEL).rpartition("/")[0] + "/"
        return uris

    def request(self, place: Place) -> ApiRequest:
        """The request of a training job."""
        name = job_name(place.run)
        return build(name, self.config, self.session, image=self.image, place=place, channels=self.channels())

    def create_run(self, runs_dir: Path, kind: str, name: str, config: TrainConfig, **record: Any) -> tuple[Run, Place]:
        """Makes the run's folder and says where it is."""
        data, values = str(self.folder.resolve()), config.to_hyperparameters()
        run, place = remote.create(self.session, runs_dir, kind, name, data=data, config=values, **record)
        keep_split(run, self.folders)
        return run, place

    def upload(self) -> None:
        """Sends what S3 does not have yet. Raises AwsError."""
        with self.session.view.live() as live:

            def show(sent: Sent) -> None:
                live.draw(lambda: one_line(f"uploading: {sent.describe()}"))

            sent = upload_data_set(self.session, self.data, show)
            live.show(f"data in S3: {sent.describe()}")
            if self.weights is not None:
                live.draw(lambda: one_line("uploading the weights"))
                upload_file(self.session, self.weights, WEIGHTS_CHANNEL)


def read_inputs(config: TrainConfig, aws: SageMakerSettings, data: Path, view: View, *, runs_dir: Path) -> Inputs:
    """Checks data and settings, and hashes the data. Raises ConfigError, DataError, WeightsError, AwsError."""
    session = Session(aws, view)
    session.require_role()
    image = find_image("train", aws)
    session.require_region(image)
    config = resolve_weights(config, runs_dir)
    folders = check_data(data, config, view)
    check_weights(config, folders)
    weights = None
    if config.weights not in NAMED_WEIGHTS:
        weights = Path(config.weights)
        config = config.replace(weights=as_text(weights.name))
    return Inputs(
        session=session,
        image=image,
        folder=data,
        folders=folders,
        data=read_data_set(folders),
        config=config,
        weights=weights,
    )


def train(
    config: TrainConfig,
    aws: SageMakerSettings,
    data: Path,
    runs_dir: Path,
    *,
    name: str = "",
    yes: bool = False,
    dry_run: bool = False,
    view: View = SILENT,
) -> Outcome | None:
    """Runs a new training job, and follows it to its end; with `dry_run` shows `view` the request and returns None.

    Raises:
        ConfigError, DataError, AwsError: it cannot be started.
        JobStopped: the user stopped following it (the job goes on), or it was stopped.
        JobError: it failed; the message is the first cause.
    """
    inputs = read_inputs(config, aws, data, view, runs_dir=runs_dir)
    if dry_run:
        place = dry_place(inputs.session, KIND, name)
        show_requests([inputs.request(place)], view)
        return None
    cost.confirm(cost.training(aws), view, yes=yes)
    run, place = inputs.create_run(runs_dir, KIND, name, inputs.config)
    with failing(run):
        inputs.upload()
        remote.remember(run, channels=inputs.channels())
        _create(run, inputs.session, inputs.request(place), place)
    return follow(run, inputs.session)


def resume(run: Run, aws: SageMakerSettings, *, yes: bool = False, view: View = SILENT) -> Outcome:
    """Starts another job from the checkpoints of one that was stopped or failed. Raises as `train`."""
    record, details = run.record(), remote.details_of(run)
    if record.status in ACTIVE:
        raise ConfigError(f"{run.name} is still running", f"follow it with `deploy.py logs -f {run.name}`")
    if record.status == Status.COMPLETED:
        raise ConfigError(f"{run.name} has finished", f"serve its model with `deploy.py serve {run.name}`")
    if "channels" not in details:
        raise ConfigError(f"{run.name} ended before its data was uploaded", "start a new run")
    session = Session(aws, view)
    image = find_image("train", aws)
    session.require_region(image)
    cost.confirm(cost.training(aws), view, yes=yes)
    place = remote.place_of(run)
    name = job_name(run.name, suffix=f"-r{record.attempts + 1}")
    config = TrainConfig.from_hyperparameters(record.config)
    with failing(run):
        request = build(name, config, session, image=image, place=place, channels=details["channels"])
        _create(run, session, request, place)
    return follow(run, session)


def follow(run: Run, session: Session) -> Outcome:
    """Shows a job's log until it ends, then fetches what it left. Raises as `train`."""
    name = str(remote.details_of(run)["job"])
    tail = LogTail(session, TRAINING_GROUP, f"{name}/")
    config = TrainConfig.from_hyperparameters(run.record().config)
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with Interrupts() as interrupts, session.view.live() as live, run.log.open("w", encoding="utf-8") as log:
        shown = ProgressView(live, config)
        phases = [""]

        def read() -> jobs.JobState:
            state = jobs.describe_training_job(session, name)
            if state.secondary != phases[-1]:
                phases.append(state.secondary)
                live.show(f"{name}: {state.secondary}")
            for line in tail.lines():
                log.write(line + "\n")
                shown.line(line)
            log.flush()
            return state

        state = watch(read, lambda state: state.finished, interrupts, live.show)
        if state is None:
            raise detached(run, interrupts)
        pause(LOG_LAG_S, interrupts)  # the last lines reach CloudWatch after the job has ended
        with suppress(AwsError):
            log.writelines(line + "\n" for line in tail.lines())
    return finish(run, session, state)


def finish(run: Run, session: Session, state: jobs.JobState) -> Outcome:
    """Notes the end of a job and fetches its outputs. Raises JobError, JobStopped, AwsError."""
    name = str(remote.details_of(run)["job"])
    remote.remember(run, billable_s=state.billable_s, training_s=state.training_s, model=state.model)
    place = remote.place_of(run)
    fetch_output(session, f"{place.output}/{name}/output/{OUTPUT_ARCHIVE}", run)
    if state.status == "Completed":
        download(session, state.model, run.archive)
        artifact.unpack(run.archive, fresh(run.paths.model))
        run.end(Status.COMPLETED, exit_code=0)
        return Outcome(run=run, result=run.result(), seconds=float(state.training_s))
    if lines := last_lines(run.log):
        for line in ("the last lines of the log:", *lines.splitlines()):
            session.view.note(line)
    error = describe_reason(state.reason or state.secondary)
    if state.status == "Stopped":
        why = error.message if state.secondary.startswith("Max") else "the job was stopped"
        run.end(Status.STOPPED, failure=why)
        raise JobStopped(why, f"go on from its checkpoint: deploy.py train --resume {run.name}")
    run.end(Status.FAILED, exit_code=1, failure=error.message)
    where = f"the log is {run.log}"
    raise JobError(error.message, f"{error.hint}; {where}" if error.hint else where)


def fetch_output(session: Session, uri: str, run: Run) -> None:
    """Metrics, tables and reports of a job into the run's `output/data`; says so when the job left none."""
    archive = run.path / OUTPUT_ARCHIVE
    try:
        download(session, uri, archive)
    except AwsError as error:
        if error.code != MISSING:
            raise
        session.view.note(f"{run.name} left no metrics ({uri} is not there)")
        return
    try:
        with tarfile.open(archive) as tar:
            extract_files(tar, run.paths.output_data)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PlatformError(f"{uri} cannot be unpacked: {error}", "fetch it again: deploy.py status RUN") from None
    archive.unlink()


def extract_files(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpacks plain files and folders; Python's own filter for that is missing before 3.11.4.

    Raises:
        tarfile.TarError: a link, a device, or a path that leads out of `folder`.
    """
    for member in tar:
        target = folder / member.name
        inside = not Path(member.name).is_absolute() and ".." not in Path(member.name).parts
        source = tar.extractfile(member) if member.isreg() else None
        if not inside or (source is None and not member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is no plain file below the folder")
        (target.parent if source else target).mkdir(parents=True, exist_ok=True)
        if source is not None:
            with target.open("wb") as file:
                shutil.copyfileobj(source, file)


def detached(run: Run, interrupts: Interrupts) -> JobStopped:
    """The user has seen enough; the job goes on."""
    stopped = JobStopped(
        f"no longer following {run.name}, which goes on on SageMaker",
        f"deploy.py status {run.name} shows it, deploy.py logs -f {run.name} follows it, deploy.py delete {run.name} "
        "ends it",
    )
    stopped.exit_code = interrupts.exit_code
    return stopped


@contextmanager
def failing(run: Run) -> Iterator[None]:
    """Within the block, an error is also the end of the run."""
    try:
        yield
    except (KeyboardInterrupt, JobStopped):
        run.end(Status.STOPPED, failure="interrupted before it was created; what was uploaded is not sent again")
        raise
    except BaseException as error:
        run.end(Status.FAILED, failure=str(error))
        raise


def dry_place(session: Session, kind: str, name: str) -> Place:
    """Where a run that is not made would put its things."""
    run = "-".join(part for part in (kind, datetime.now().strftime("%Y%m%d-%H%M%S"), name) if part)
    return remote.new_place(session, run)


def show_requests(requests: list[ApiRequest], view: View) -> None:
    """Shows requests. Raises ConfigError when the service would refuse one of them."""
    for request in requests:
        validate(request.service, pascal(request.operation), request.body)
    view.document([request.to_json() for request in requests])


def save_requests(run: Run, requests: list[ApiRequest]) -> None:
    """Keeps what was sent in the run folder."""
    document: list[Mapping[str, Any]] = [request.to_json() for request in requests]
    write_text(run.path / REQUEST_FILE, json.dumps(document, indent=1) + "\n")


def pascal(operation: str) -> str:
    """`CreateTrainingJob` of `create_training_job`."""
    return "".join(word.capitalize() for word in operation.split("_"))


def fresh(folder: Path) -> Path:
    """`folder`, without what an earlier attempt left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def build(
    name: str, config: TrainConfig, session: Session, *, image: Image, place: Place, channels: Mapping[str, str]
) -> ApiRequest:
    """The request of a training job, with the managed Debugger if the settings ask for it. Raises ConfigError."""
    settings = session.settings
    extra = debugger(config, session, place) if settings.managed_debugger else None
    return training_job(name, config, settings, image=image, data=channels, place=place, debugger=extra)


def debugger(config: TrainConfig, session: Session, place: Place) -> Mapping[str, Any]:
    """The managed Debugger's members of the request, from our own rules. Raises ConfigError."""
    from image_classifier.debugging.rules import parse_rules
    from image_classifier.sagemaker.managed_debugger import managed_debugger

    return managed_debugger(
        parse_rules(config.rules),
        evaluator_image=jobs.debugger_image(session.region),
        s3_output=f"{place.output}/debugger",
        save_interval=max(1, config.debug_interval),
    )


def _create(run: Run, session: Session, request: ApiRequest, place: Place) -> None:
    name = str(request.body["TrainingJobName"])
    save_requests(run, [request])
    remote.note(run, remote.TRAINING_JOB, name)
    remote.note(run, remote.FILES, f"{place.root}/runs/{run.name}/")
    remote.remember(run, job=name)
    jobs.create_training_job(session, request, place)
    run.begin()
    session.view.note(f"training job {name} in {session.region}")
