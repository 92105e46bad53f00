"""The tune command: Optuna proposes hyperparameters, each trial is a real training job in its own run folder.

The study is kept in `study.journal` and every trial in `trials/NNN`: an interrupted search goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classifier.contract.config import TrainConfig, Value, check, parameters_of
from image_classifier.contract.crop_sizes import work_by_epoch
from image_classifier.contract.errors import EXIT_PLATFORM, ConfigError, JobError, JobStopped, PlatformError, RuleFired
from image_classifier.contract.metrics import metric_line, parse_metric_line
from image_classifier.contract.outputs import BEST, JOB, TRIALS_FOLDER, best_epoch
from image_classifier.contract.search import Range, parse_search_space, with_values
from image_classifier.launch import local
from image_classifier.launch.job_data import channels_for, check_data, data_of, keep_split
from image_classifier.launch.process import POLL_S, Interrupts, Job
from image_classifier.launch.progress import JobProgress
from image_classifier.launch.runs import ACTIVE, Record, Run, Status, create_run, find_run, open_run, still_running
from image_classifier.launch.training_run import check_weights, resolve_weights, silent_end
from image_classifier.launch.view import SILENT, View
from image_classifier.tuning.best_trial import ask_for_metrics_alone, finish, is_settled, make_room
from image_classifier.tuning.plan import Plan, fit_trials, make_plan, with_earlier
from image_classifier.tuning.search_view import SearchView
from image_classifier.tuning.study import open_study, propose, values_of
from image_classifier.tuning.trials import Found, TrialRow, pick_best, write_results
from image_classifier.tuning.tune_settings import KIND, TuneSettings
from image_classifier.tuning.warm_start import WarmStart

if TYPE_CHECKING:
    import optuna

RESUME_MAY_CHANGE = frozenset({"tune.trials", "tune.parallel"})
SAME_FAILURES = 3  # as many first trials failing in the same way mean that the next will too


@dataclass(frozen=True, kw_only=True)
class Search(Plan):
    """A tuning run on this machine."""

    run: Run
    data: Path


def find_best(text: str, runs_dir: Path) -> Path:
    """The best.json that `text` means: the file, or that of a tuning run. Raises ConfigError when there is none."""
    if Path(text).is_file():
        return Path(text)
    run = find_run(runs_dir, text, kind=KIND)
    if not (run.path / BEST.name).is_file():
        raise ConfigError(f"{run.name} has found nothing yet ({run.record().status})")
    return run.path / BEST.name


def create(
    config: TrainConfig,
    space: Mapping[str, Range],
    tune: TuneSettings,
    data: Path,
    runs_dir: Path,
    *,
    name: str = "",
    given: Collection[str] = (),
    view: View = SILENT,
) -> Search:
    """Checks everything and makes the run's folder. Arguments as of `make_plan`.

    Raises:
        ConfigError, DataError, PlatformError: it cannot be run.
    """
    base = resolve_weights(config, runs_dir)
    folders = check_data(data, base, view)
    check_weights(base, folders)
    plan = with_earlier(make_plan(base, space, tune, folders, given=given, view=view), runs_dir, view)
    local.require_free_disk(runs_dir, plan.tune.parallel)
    values = plan.base.to_hyperparameters()
    data = data_of(data, folders)
    run = create_run(runs_dir, KIND, name, data=str(data), config=values, details=plan.to_json())
    keep_split(run, folders)
    return Search(run=run, data=data, **vars(plan))


def resume(run: Run, changes: Mapping[str, Value], view: View = SILENT) -> Search:
    """A search that goes on, with another number of trials or parallel jobs if `changes` says so."""
    record = run.record()
    if record.status in ACTIVE:
        raise still_running(run)
    changed: dict[str, Any] = {key.removeprefix("tune."): value for key, value in changes.items()}
    for folder in sorted((run.path / TRIALS_FOLDER).glob("*")):  # a killed search's trials save their state first
        if (folder / JOB.name).is_file() and Run(path=folder).record().status in ACTIVE:
            raise still_running(run)
    with run.intact():
        space = parse_search_space(record.details["space"])
        carried = {str(name): str(value) for name, value in record.details["carried"].items()}
        tune = dataclasses.replace(TuneSettings(**record.details["tune"]), **changed)
        for known in parameters_of(TuneSettings):
            check(known, getattr(tune, known.name))
        earlier, images = WarmStart.parse(record.details.get("warm_start")), str(record.details.get("images", ""))
        tune = fit_trials(tune, space, view, tried=len(earlier.points_tried()))
    run.update(details={**record.details, "tune": dataclasses.asdict(tune)})
    data, base = Path(record.data), TrainConfig.from_hyperparameters(record.config)
    check_data(data, base, view, run=run)
    local.require_free_disk(run.path, tune.parallel)
    plan = Plan(base=base, space=space, tune=tune, carried=carried, images=images, earlier=earlier)
    return Search(run=run, data=data, **vars(plan))


def run(search: Search, *, starter: local.Starter = local, view: View = SILENT) -> Found:
    """Runs the trials that are still to run.

    Raises:
        JobStopped: interrupted; the trials that ran save their state first.
        JobError: no trial gave a result.
    """
    started = time.monotonic()
    view.note(f"run {search.run.path}, {search.tune.trials} trials")
    with Interrupts() as interrupts, local.forked_trainings(search.run):
        search.run.begin()
        try:
            with (
                view.live() as live,
                Tuner(search, SearchView(live, search.run.log, search.tune), interrupts, starter, view) as tuner,
            ):
                tuner.work()
                tuner.finish_best()
                rows = tuner.rows()
            objective, learned = search.tune.objective, search.earlier
            found = write_results(search.run, rows, objective, search.space, carried=search.carried, earlier=learned)
        except JobStopped as stopped:
            stopped.exit_code = interrupts.exit_code
            search.run.end(Status.STOPPED, failure=stopped.message)
            raise
        except BaseException as error:
            with suppress(PlatformError):  # of a full disk: the first cause is what is told
                search.run.end(Status.FAILED, failure=str(error))
            raise
        best = {"objective": found.objective, "value": found.best_value, "trial": found.best_trial}
        search.run.update(details={**search.run.record().details, "best": best})
        search.run.end(Status.COMPLETED, exit_code=0)
    return dataclasses.replace(found, seconds=time.monotonic() - started)


@dataclass
class Active:
    """A trial whose job runs."""

    trial: optuna.Trial
    number: int
    run: Run
    job: Job
    config: TrainConfig
    progress: JobProgress
    reported: set[int]
    pruned_at: int = 0


class Tuner:
    """The search loop: start trials, report their epochs, stop the hopeless, note the ends."""

    def __init__(
        self,
        search: Search,
        shown: SearchView,
        interrupts: Interrupts,
        starter: local.Starter = local,
        view: View = SILENT,
    ) -> None:
        self._search = search
        self._shown = shown
        self._interrupts = interrupts
        self._starter = starter
        self._view = view
        self._study = open_study(search.run, search)
        self._running: dict[int, Active] = {}
        self._jobs = ExitStack()
        self._obeyed = 0

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is left running, whatever happened."""
        self._jobs.close()

    def work(self) -> None:
        """Runs trials until there are enough.

        Raises:
            JobStopped: interrupted.
            PlatformError: the machine refuses a trial's job, which no other trial would mend.
            JobError: all fail.
        """
        tune = self._search.tune
        make_room(self.rows(), tune.objective, keep_models=tune.keep_models)  # what a killed search did not get to
        self._shown.finished(self.rows())
        while True:
            self._obey()
            while not self._obeyed and len(self._running) < self._search.tune.parallel and self._start_next():
                pass
            if not self._running:
                break
            for active in list(self._running.values()):
                self._look_after(active)
            self._shown.draw({active.number: active.progress for active in self._running.values()})
            time.sleep(POLL_S)
        if self._obeyed:
            done = sum(row.finished for row in self.rows())
            raise JobStopped(
                f"stopped after {done} of {self._search.tune.trials} trials",
                f"go on with: deploy.py tune --resume {self._search.run.typed}",
            )
        if all(row.value is None for row in self.rows()):
            failures = [row.failure for row in self.rows() if row.failure]
            raise JobError(f"no trial finished; the first one failed with: {failures[0] if failures else 'no reason'}")

    def finish_best(self) -> None:
        """Has the best trial tested and its model written. Raises as `finish`."""
        tune = self._search.tune
        best = pick_best(self.rows(), tune.objective)
        if best is None or is_settled(Run(path=best.path)):
            return
        self._shown.draw({})
        self._shown.say(f"trial {best.number}/{tune.trials}  is the best: tested, its model written")
        channels = channels_for(self._search.data, self._search.run)
        again = f"deploy.py tune --resume {self._search.run.typed}"
        finish(best, channels, self._starter, self._interrupts, self._view, how_to_resume=again)
        make_room(self.rows(), tune.objective, keep_models=tune.keep_models)

    def rows(self) -> list[TrialRow]:
        """All trials so far, in the order of their numbers."""
        made = [TrialRow.of(trial, self._search.run, self._search.tune.objective) for trial in self._trials()]
        return sorted(made, key=lambda row: row.number)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if "number" in trial.user_attrs]

    def _obey(self) -> None:
        if self._interrupts.count == self._obeyed:
            return
        if self._obeyed == 0:
            self._shown.say("stopping: the trials that run save their state first (Ctrl-C again kills them)")
        for active in self._running.values():
            (active.job.kill if self._interrupts.count > 1 else active.job.stop)()
        self._obeyed = self._interrupts.count

    def _start_next(self) -> bool:
        """Starts a trial and answers True, or False when there are enough."""
        trial = self._interrupted_trial() or self._new_trial()
        if trial is None:
            return False
        number = int(trial.user_attrs["number"])
        config = with_values(self._search.base, trial.params)
        folder = self._search.run.path / TRIALS_FOLDER / f"{number:03}"
        if (folder / JOB.name).is_file():
            run, again = Run(path=folder), True
        else:
            record = Record(kind="train", data=str(self._search.data), config=config.to_hyperparameters())
            run, again = open_run(folder, record), False
        reported = set(self._catch_up(trial, run)) if again else set()
        if epoch := self._pruned_at(trial, max(reported, default=config.epochs), config.epochs):
            self._prune(trial, number, run, epoch)
            return True
        local.prepare_training(run, config, channels_for(self._search.data, self._search.run))
        if not self._search.tune.keep_models:
            ask_for_metrics_alone(run)
        job = self._jobs.enter_context(
            self._starter.start_training(run, share=self._search.tune.parallel, view=self._view)
        )
        progress = JobProgress(epochs=config.epochs, work=work_by_epoch(config))
        self._running[number] = Active(trial, number, run, job, config, progress, reported)
        self._shown.started(number, self._values(trial), again=again)
        return True

    def _values(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, Value]:
        return dict(zip(self._search.space, values_of(trial, self._search), strict=True))

    def _interrupted_trial(self) -> optuna.Trial | None:
        from optuna.trial import Trial, TrialState

        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = Trial(self._study, frozen._trial_id)
            if "number" not in frozen.user_attrs:  # killed between being proposed and being numbered
                self._study.tell(trial, state=TrialState.FAIL)
            elif int(frozen.user_attrs["number"]) not in self._running:
                return trial
        return None

    def _new_trial(self) -> optuna.Trial | None:
        """A trial with values that no other has, numbered; None when there are enough."""
        known = self._trials()
        if len(known) >= self._search.tune.trials:
            return None
        self._give_up_early()
        return propose(self._study, self._search, known)

    def _give_up_early(self) -> None:
        rows = [row for row in self.rows() if row.finished]
        first = rows[0].failure if rows else ""
        if len(rows) >= SAME_FAILURES and first and all(row.failure == first for row in rows):
            raise JobError(f"the first {len(rows)} trials failed in the same way: {first}", "mend that first")

    def _look_after(self, active: Active) -> None:
        status = active.job.poll()
        for line in active.job.lines():
            if active.progress.feed(line) == "epoch":
                self._epoch_done(active)
        if status is not None:
            del self._running[active.number]
            self._finish(active, status)

    def _epoch_done(self, active: Active) -> None:
        self._shown.epoch(active.number, active.progress)
        value, epoch = active.progress.metrics.get(self._search.tune.objective), active.progress.epoch
        if value is None or active.pruned_at or epoch in active.reported:
            return
        active.trial.report(value, epoch)
        active.reported.add(epoch)
        active.pruned_at = self._pruned_at(active.trial, epoch, active.config.epochs)
        if active.pruned_at:
            active.job.stop()

    def _catch_up(self, trial: optuna.Trial, run: Run) -> list[int]:
        """Reports what a killed search did not hear of an interrupted trial; returns the epochs that are known now."""
        objective = self._search.tune.objective
        known = next(each for each in self._trials() if each.number == trial.number).intermediate_values
        missing = {
            row["epoch"]: row[objective]
            for row in run.history()
            if row["epoch"] not in known and isinstance(row.get(objective), (int, float))
        }
        for epoch, value in missing.items():
            line = parse_metric_line(metric_line(epoch, {objective: value}))  # with the digits that a log has
            trial.report(line[1][objective] if line else value, epoch)
        return sorted({*known, *missing})

    def _pruned_at(self, trial: optuna.Trial, epoch: int, epochs: int) -> int:
        """`epoch` when a trial of so many epochs is to end after it, else 0."""
        prune = self._search.tune.prune and not self._obeyed and epoch < epochs and trial.should_prune()
        return epoch if prune else 0

    def _prune(self, trial: optuna.Trial, number: int, run: Run, epoch: int) -> None:
        """Ends a trial that a killed search had found hopeless, or would have."""
        from optuna.trial import TrialState

        run.end(Status.STOPPED, failure=f"pruned after epoch {epoch}")
        self._study.tell(trial, state=TrialState.PRUNED)
        self._over(number)

    def _finish(self, active: Active, status: int) -> None:
        from optuna.trial import TrialState

        message = active.run.failure().message
        trial = active.trial
        best = best_epoch(active.run.history(), self._search.tune.objective)
        if status == 0 and best is not None:
            active.run.end(Status.COMPLETED, exit_code=0)
            self._study.tell(trial, best.value)
        elif active.pruned_at and status == JobStopped.exit_code:
            active.run.end(Status.STOPPED, exit_code=status, failure=f"pruned after epoch {active.pruned_at}")
            self._study.tell(trial, state=TrialState.PRUNED)
        elif status == RuleFired.exit_code:  # a rule of the debugger (stop_on) found the trial hopeless
            active.run.end(Status.STOPPED, exit_code=status, failure=message)
            trial.set_user_attr("failure", message)
            self._study.tell(trial, state=TrialState.PRUNED)
        elif status == EXIT_PLATFORM:  # a full disk: the trial goes on when the search does
            message = message or silent_end(status)
            with suppress(PlatformError):
                active.run.end(Status.FAILED, exit_code=status, failure=message)
            raise PlatformError(message, f"then go on with: deploy.py tune --resume {self._search.run.typed}")
        elif self._obeyed:
            active.run.end(Status.STOPPED, exit_code=status, failure=message or "killed before it saved its state")
            return
        else:
            message = message or silent_end(status)
            active.run.end(Status.FAILED, exit_code=status, failure=message)
            trial.set_user_attr("failure", message)
            self._study.tell(trial, state=TrialState.FAIL)
        self._over(active.number)

    def _over(self, number: int) -> None:
        make_room(rows := self.rows(), self._search.tune.objective, keep_models=self._search.tune.keep_models)
        self._shown.finished(rows, number)
