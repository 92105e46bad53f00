"""How runs on SageMaker stand: asked there, noted in job.json, and their outputs fetched once they have ended."""

from __future__ import annotations

from image_classifier.contract.errors import ClassifierError, JobError
from image_classifier.launch import serving_run as local_serve
from image_classifier.launch import training_run as local_train
from image_classifier.launch.runs import Run, Status
from image_classifier.launch.view import SILENT, View
from image_classifier.sagemaker import batch, jobs, remote
from image_classifier.sagemaker import endpoints as serve
from image_classifier.sagemaker import training_job as train
from image_classifier.sagemaker import tuning_job as tune
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.failures import AwsError
from image_classifier.sagemaker.session import Session
from image_classifier.tuning.tune_settings import KIND as TUNE


def refresh(runs: list[Run], settings: SageMakerSettings, view: View = SILENT) -> None:
    """Brings every run on SageMaker that is still under way up to date; says so when AWS cannot be asked."""
    try:
        for run in runs:
            if run.is_active_remotely:
                _refresh(run, remote.session_of(run, settings, view))
    except AwsError as error:
        view.warn(f"{error.message}; runs on SageMaker are shown as they were last seen")


def follow(run: Run, settings: SageMakerSettings, view: View = SILENT) -> None:
    """Follows a run on SageMaker to its end. Raises what its command raises."""
    session = remote.session_of(run, settings, view)
    kind = run.record().kind
    if kind == local_train.KIND:
        train.follow(run, session)
    elif kind == TUNE:
        tune.follow(run, session)
    elif kind == batch.KIND:
        batch.follow(run, session)
    else:
        _refresh(run, session)


def _refresh(run: Run, session: Session) -> None:
    details, kind = remote.details_of(run), run.record().kind
    if kind == local_serve.KIND:
        _refresh_endpoint(run, session, str(details.get("endpoint", "")))
        return
    if "job" not in details:
        run.end(Status.FAILED, failure="it was ended before the job was created")
        return
    name = str(details["job"])
    try:
        if kind == local_train.KIND and (job := jobs.describe_training_job(session, name)).finished:
            train.finish(run, session, job)
        elif kind == TUNE and (search := jobs.describe_tuning_job(session, name)).finished:
            tune.finish(run, session, search)
        elif kind == batch.KIND:
            batch.refresh(run, session)
    except AwsError:
        raise
    except (JobError, ClassifierError) as error:
        session.view.note(f"{run.name}: {error.message}")  # it is noted in the run


def _refresh_endpoint(run: Run, session: Session, endpoint: str) -> None:
    state = serve.describe(session, endpoint)
    if state is None:
        run.end(Status.FAILED, failure=f"the endpoint {endpoint} is gone")
    elif state["EndpointStatus"] == "InService":
        run.end(Status.COMPLETED)
        session.view.warn(
            f"the endpoint {endpoint} is in service, but nobody checked it: serve the model again to check it"
        )
    elif state["EndpointStatus"] == "Failed":
        run.end(Status.FAILED, failure=str(state.get("FailureReason", "")))
        session.view.warn(f"the endpoint {endpoint} has failed; remove it with `deploy.py delete {run.name}`")
