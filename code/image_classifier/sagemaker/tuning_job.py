"""The tune command on SageMaker: one tuning job, a line a trial, and the same files as a search on this machine."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection
from pathlib import Path

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobError
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.outputs import JOB, TRIALS_FOLDER, BestEpoch, best_epoch
from image_classifier.contract.search import SearchSpace, parse_search_space
from image_classifier.launch.process import Interrupts
from image_classifier.launch.runs import Record, Run, Status, open_run
from image_classifier.launch.view import SILENT, Live, View, one_line
from image_classifier.sagemaker import cost, jobs, remote
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.failures import AwsError, describe_reason
from image_classifier.sagemaker.parent_searches import warm_start
from image_classifier.sagemaker.requests import TUNING_NAME_CHARS, ApiRequest, Place, job_name, tuning_job
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.training_job import (
    OUTPUT_ARCHIVE,
    Inputs,
    detached,
    dry_place,
    failing,
    fetch_output,
    read_inputs,
    save_requests,
    show_requests,
)
from image_classifier.sagemaker.watch import watch
from image_classifier.tuning.plan import Plan, make_plan
from image_classifier.tuning.trials import Found, TrialRow, write_results
from image_classifier.tuning.tune_settings import KIND, TuneSettings
from image_classifier.tuning.warm_start import PRUNED

WORDS = {"InProgress": "InProgress", "Stopping": "InProgress", "Stopped": "Pruned"}  # others are the same here


def tune(
    config: TrainConfig,
    space: SearchSpace,
    settings: TuneSettings,
    aws: SageMakerSettings,
    *,
    data: Path,
    runs_dir: Path,
    name: str = "",
    given: Collection[str] = (),
    yes: bool = False,
    dry_run: bool = False,
    view: View = SILENT,
) -> Found | None:
    """Runs a new tuning job, and follows it to its end; with `dry_run` shows `view` the request and returns None.

    Args:
        config, space, settings, given: as of `make_plan`.

    Raises:
        ConfigError, DataError, AwsError: it cannot be started.
        JobStopped: the user stopped following it; it goes on.
        JobError: it failed, or no trial gave a result.
    """
    inputs = read_inputs(config, aws, data, view, runs_dir=runs_dir)
    plan = make_plan(inputs.config, space, settings, inputs.folders, given=given, view=view)
    if dry_run:
        show_requests([_request(inputs, plan, aws, dry_place(inputs.session, KIND, name), runs_dir)], view)
        return None
    _request(inputs, plan, aws, dry_place(inputs.session, KIND, name), runs_dir)  # before anything is paid or made
    cost.confirm(cost.training(aws, plan.tune.trials), view, yes=yes)
    run, place = inputs.create_run(runs_dir, KIND, name, plan.base, details=plan.to_json())
    with failing(run):
        inputs.upload()
        made = _request(inputs, plan, aws, place, runs_dir)
        save_requests(run, [made])
        tuning_name = str(made.body["HyperParameterTuningJobName"])
        remote.note(run, remote.TUNING_JOB, tuning_name)
        remote.note(run, remote.FILES, f"{place.root}/runs/{run.name}/")
        remote.remember(run, job=tuning_name)
        jobs.create_tuning_job(inputs.session, made, place)
        run.begin()
    view.note(f"tuning job {tuning_name} in {inputs.session.region}")
    return follow(run, inputs.session)


def _request(inputs: Inputs, plan: Plan, settings: SageMakerSettings, place: Place, runs_dir: Path) -> ApiRequest:
    made = tuning_job(
        job_name(place.run, TUNING_NAME_CHARS),
        plan.base,
        plan.space,
        plan.tune,
        settings,
        image=inputs.image,
        data=inputs.channels(),
        place=place,
    )
    made.body.update(warm_start(plan.tune, made.body, runs_dir))
    return made


def follow(run: Run, session: Session) -> Found:
    """Shows a tuning job's trials until it ends, then writes what it found. Raises as `tune`."""
    name = str(remote.details_of(run)["job"])
    started = time.monotonic()
    with Interrupts() as interrupts, session.view.live() as live:
        with run.intact():
            shown = TrialsView(live, int(run.record().details["tune"]["trials"]))

        def read() -> jobs.TuningState:
            state = jobs.describe_tuning_job(session, name)
            shown.show(state)
            return state

        state = watch(read, lambda state: state.finished, interrupts, live.show)
        if state is None:
            raise detached(run, interrupts)
    return dataclasses.replace(finish(run, session, state), seconds=time.monotonic() - started)


def finish(run: Run, session: Session, state: jobs.TuningState) -> Found:
    """Fetches every trial's history, and writes trials.csv, best.json and the picture. Raises JobError, AwsError."""
    details = run.record().details
    with run.intact():
        space, objective = parse_search_space(details["space"]), METRIC_BY_NAME[details["tune"]["objective"]].name
        carried = dict(details["carried"])
    with failing(run):
        rows = [_row(run, session, number, trial, objective) for number, trial in enumerate(state.trials, 1)]
        if all(row.value is None for row in rows):
            reasons = [row.failure for row in rows if row.failure]
            error = describe_reason(reasons[0] if reasons else state.reason or f"the tuning job {state.status}")
            raise JobError(f"no trial gave a result: {error.message}", error.hint)
        found = write_results(run, rows, objective, space, carried=carried)
    best = {"objective": objective, "value": found.best_value, "trial": found.best_trial}
    run.update(details={**run.record().details, "best": best})
    if state.status == "Completed":
        run.end(Status.COMPLETED, exit_code=0)
    else:
        error = describe_reason(state.reason or f"the tuning job was {state.status.lower()}")
        run.end(Status.STOPPED if state.status == "Stopped" else Status.FAILED, failure=error.message)
        session.view.warn(f"{error.message}; the best of the trials that finished is kept")
    return found


def _row(run: Run, session: Session, number: int, trial: jobs.Trial, objective: str) -> TrialRow:
    """One trial as a row, with its metrics fetched into `trials/NNN`."""
    values = TrainConfig.from_hyperparameters({**run.record().config, **trial.values})
    status = WORDS.get(trial.status, trial.status)
    failure = describe_reason(trial.reason).message if trial.reason else ""
    folder = run.path / TRIALS_FOLDER / f"{number:03}"
    ended = {"Completed": Status.COMPLETED, "Stopped": Status.STOPPED}.get(trial.status, Status.FAILED)
    why = f"{PRUNED} by SageMaker" if ended == Status.STOPPED else failure
    record = Record(kind="train", status=ended, config=values.to_hyperparameters(), data=run.record().data, failure=why)
    made = Run(path=folder) if (folder / JOB.name).is_file() else open_run(folder, record)
    if trial.status in {"Completed", "Stopped"} and not made.result():
        output = f"{remote.place_of(run).output}/{trial.job}/output/{OUTPUT_ARCHIVE}"
        try:
            fetch_output(session, output, made)
        except AwsError as error:
            session.view.warn(f"trial {number}: {error.message}")
    done = trial.status == "Completed" and trial.value is not None
    best = best_epoch(made.history(), objective)
    if best is None and trial.value is not None:  # it left no history: SageMaker's number is all there is
        best = BestEpoch(value=trial.value, epoch=0, loss=math.inf)
    return TrialRow(
        number=number,
        status=status,
        config=values,
        value=best.value if done and best else None,
        best=best,
        seconds=trial.seconds,
        failure=failure,
        path=folder,
        curve=_curve(made, objective),
    )


def _curve(run: Run, objective: str) -> tuple[tuple[int, float], ...]:
    rows = enumerate(run.history(), 1)
    return tuple((epoch, float(row[objective])) for epoch, row in rows if objective in row)


class TrialsView:
    """A line for each trial that ends, and on a terminal the ones that run below them."""

    def __init__(self, live: Live, total: int) -> None:
        self._live = live
        self._total = total
        self._ended: set[str] = set()

    def show(self, state: jobs.TuningState) -> None:
        """Takes in how the tuning job stands."""
        for number, trial in enumerate(state.trials, 1):
            ended = trial.status in jobs.FINISHED
            if ended and trial.job not in self._ended:
                self._ended.add(trial.job)
                self._live.show(f"trial {number}/{self._total}  {_describe(trial)}")
        running = [trial for trial in state.trials if trial.status not in jobs.FINISHED]
        lines = [f"  running  {_describe(trial)}" for trial in running]
        best = next((trial for trial in state.trials if trial.job == state.best), None)
        head = f"{len(self._ended)} of {self._total} trials have ended" + (f", best {_describe(best)}" if best else "")
        self._live.draw(lambda: one_line("\n".join([head, *lines])))


def _describe(trial: jobs.Trial) -> str:
    values = " ".join(f"{name}={_short(value)}" for name, value in trial.values.items())
    number = "" if trial.value is None else f"  {trial.value:.4f}"
    return f"{values}{number}  {WORDS.get(trial.status, trial.status)}"


def _short(value: str) -> str:
    try:
        return f"{float(value.strip(chr(34))):.4g}"
    except ValueError:
        return value.strip('"')
