"""Training and tuning jobs through sagemaker-core: the only module that imports it.

It sends the bodies that `requests` built, member by member. Where it gave trouble: `create` reads the job back and so
can fail although the job runs (`_created` asks before it believes that); it always makes its own client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from image_classifier.contract.errors import ConfigError
from image_classifier.sagemaker.failures import MISSING, NETWORK, TAKEN, AwsError, translated
from image_classifier.sagemaker.remote import is_ours
from image_classifier.sagemaker.requests import ApiRequest, Place
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.validation import validate
from image_classifier.sagemaker.watch import when_ready

FINISHED = frozenset({"Completed", "Failed", "Stopped"})


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How a training job stands, in SageMaker's words.

    Args:
        secondary: what it is doing, or why it was ended: `Downloading`, `MaxRuntimeExceeded`.
        reason: FailureReason, empty unless it failed.
        model: `s3://.../model.tar.gz`, empty until there is one.
        billable_s, training_s: seconds that are paid for, and that it ran (more, with spot instances).
    """

    status: str
    secondary: str = ""
    reason: str = ""
    model: str = ""
    billable_s: int = 0
    training_s: int = 0

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training job of a tuning job. `value` is the objective, None until it has logged one."""

    job: str
    status: str
    values: Mapping[str, str]
    value: float | None
    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class TuningState:
    """How a tuning job stands. `best` is the name of the best training job so far."""

    status: str
    reason: str = ""
    best: str = ""
    trials: tuple[Trial, ...] = field(default_factory=tuple)

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


def create_training_job(session: Session, request: ApiRequest, place: Place) -> None:
    """Creates a training job, waiting a while for a new role. Raises ConfigError or AwsError."""
    from sagemaker.core.resources import TrainingJob

    validate("sagemaker", "CreateTrainingJob", request.body)
    name = request.body["TrainingJobName"]
    arguments = _arguments(request.body, "CreateTrainingJobRequest")
    _created(
        lambda: TrainingJob.create(**arguments, session=session.boto, region=session.region),
        lambda: str(TrainingJob.get(name, session=session.boto, region=session.region).training_job_arn),
        session,
        place,
        "create the training job",
    )


def describe_training_job(session: Session, name: str) -> JobState:
    """How a training job stands. Raises AwsError."""
    from sagemaker.core.resources import TrainingJob

    with translated("describe the training job"):
        job = TrainingJob.get(name, session=session.boto, region=session.region)
    artifacts = _known(job.model_artifacts, None)
    return JobState(
        status=str(job.training_job_status),
        secondary=str(_known(job.secondary_status, "")),
        reason=str(_known(job.failure_reason, "")),
        model=str(_known(artifacts.s3_model_artifacts, "")) if artifacts else "",
        billable_s=int(_known(job.billable_time_in_seconds, 0)),
        training_s=int(_known(job.training_time_in_seconds, 0)),
    )


def stop_training_job(session: Session, name: str) -> None:
    """Asks a training job to save its state and end. Raises AwsError."""
    from sagemaker.core.resources import TrainingJob

    with translated("stop the training job"):
        TrainingJob.get(name, session=session.boto, region=session.region).stop()


def create_tuning_job(session: Session, request: ApiRequest, place: Place) -> None:
    """Creates a tuning job, waiting a while for a new role. Raises ConfigError or AwsError.

    boto3 sends it: sagemaker-core leaves empty lists out, and the SDK's `attach` looks for each list of ranges.
    """
    from sagemaker.core.resources import HyperParameterTuningJob

    validate("sagemaker", "CreateHyperParameterTuningJob", request.body)
    name = request.body["HyperParameterTuningJobName"]
    found = HyperParameterTuningJob
    _created(
        lambda: session.send(request),
        lambda: str(found.get(name, session=session.boto, region=session.region).hyper_parameter_tuning_job_arn),
        session,
        place,
        "create the tuning job",
    )


def debugger_image(region: str) -> str:
    """AWS's image that evaluates the managed Debugger's rules in a region. Raises ConfigError where there is none."""
    from sagemaker.core import image_uris

    try:
        return str(image_uris.retrieve("debugger", region))
    except ValueError:
        raise ConfigError(f"AWS's Debugger is not offered in {region}", "set managed_debugger = false") from None


def describe_tuning_job(session: Session, name: str) -> TuningState:
    """How a tuning job and all its training jobs stand. Raises AwsError."""
    from sagemaker.core.resources import HyperParameterTuningJob

    with translated("describe the tuning job"):
        job = HyperParameterTuningJob.get(name, session=session.boto, region=session.region)
        best = _known(job.best_training_job, None)
        trials = tuple(_trial(summary) for summary in job.get_all_training_jobs(sort_by="CreationTime"))
    return TuningState(
        status=str(job.hyper_parameter_tuning_job_status),
        reason=str(_known(job.failure_reason, "")),
        best=str(_known(best.training_job_name, "")) if best else "",
        trials=trials,
    )


def stop_tuning_job(session: Session, name: str) -> None:
    """Asks a tuning job and its training jobs to end. Raises AwsError."""
    from sagemaker.core.resources import HyperParameterTuningJob

    with translated("stop the tuning job"):
        HyperParameterTuningJob.get(name, session=session.boto, region=session.region).stop()


def _created(
    create: Callable[[], object], find: Callable[[], str], session: Session, place: Place, action: str
) -> None:
    """Creates a job once. When the answer got lost, or the name is taken by a first attempt that did arrive, the job
    that is there is ours if it has our tag."""

    def attempt() -> None:
        with translated(action):
            create()

    try:
        when_ready(attempt, session.view.note)
    except AwsError as error:
        if error.code not in {NETWORK, TAKEN} or not _exists(find, session, place):
            raise


def _exists(find: Callable[[], str], session: Session, place: Place) -> bool:
    try:
        with translated("find the job"):
            arn = find()
        return is_ours(session, arn, place)
    except AwsError as error:
        if error.code in {MISSING, NETWORK}:
            return False
        raise


def _arguments(body: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """A request body in sagemaker-core's spelling, `training_job_name` for `TrainingJobName`."""
    from sagemaker.core.utils.code_injection.codec import transform

    return dict(transform(dict(body), shape))


def _trial(summary: Any) -> Trial:
    metric = _known(summary.final_hyper_parameter_tuning_job_objective_metric, None)
    started, ended = _known(summary.training_start_time, None), _known(summary.training_end_time, None)
    return Trial(
        job=str(summary.training_job_name),
        status=str(summary.training_job_status),
        values={str(name): str(value) for name, value in _known(summary.tuned_hyper_parameters, {}).items()},
        value=float(metric.value) if metric else None,
        seconds=(ended - started).total_seconds() if started and ended else 0.0,
        reason=str(_known(summary.failure_reason, "")),
    )


def _known(value: Any, otherwise: Any) -> Any:
    """sagemaker-core marks what a reply does not hold with an object of its own."""
    from sagemaker.core.utils.utils import Unassigned

    return otherwise if value is None or isinstance(value, Unassigned) else value
