"""Run folders: one a job, with everything that went in and came out.

    RUNS/train-20261122-155611-name/
        job.json        what runs, since when, how it ended
        code/           snapshot of the source the job ran
        input/          hyperparameters, channels (links to the data), hosts
        checkpoints/    kept across restarts
        model/          the model; packed into model.tar.gz at the end
        output/         metrics, predictions, failure
        logs/job.log    all the job printed; beside it an endpoint's access.log

The layout below the folder is MlPaths'. A job whose processes are gone without having reported an end is seen as
failed: the truth is in the files and the process table, not in job.json alone.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import psutil

import image_classifier
from image_classifier.contract.errors import ConfigError, PlatformError
from image_classifier.contract.files import open_plain
from image_classifier.contract.outputs import ARCHIVE, HISTORY, JOB, LOG, Failure, read_failure, read_result
from image_classifier.contract.paths import MlPaths, path_here
from image_classifier.launch.nearby import where_to_look
from image_classifier.launch.revision import git_revision

DEFAULT_RUNS_DIR = "runs"  # in the working directory
LOCK_NAME = ".lock"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
PRIVATE = 0o700  # of a run's folder: what lies there, pictures and answers, is its user's alone
MAX_PID = 2**22  # Linux's PID_MAX_LIMIT
SAME_START_S = 2.0  # the kernel's start times, read back, differ by rounding only


class Status(StrEnum):
    """How a job stands; SageMaker's own words."""

    STARTING = "Starting"
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"


REMOTE = "aws"  # in a record's details: the job runs elsewhere, and how it stands is asked there
ACTIVE = (Status.STARTING, Status.IN_PROGRESS)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The contents of job.json.

    `started` and `ended` are ISO 8601 in UTC; `processes` are (pid, start time in seconds since the epoch) of the
    launcher and of the job's supervisor; `details` belongs to the kind of job.
    """

    kind: str
    status: Status = Status.STARTING
    started: str = ""
    ended: str = ""
    processes: tuple[tuple[int, float], ...] = ()
    attempts: int = 0
    exit_code: int | None = None
    failure: str = ""
    data: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    git: str = ""

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the last attempt to its end, or to now."""
        if not self.started:
            return 0.0
        end = _moment(self.ended) if self.ended else datetime.now(UTC)
        return max(0.0, (end - _moment(self.started)).total_seconds())  # a clock may have been set back

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The record that job.json holds. What a newer version added to it is passed over.

        Raises:
            ValueError: it is not one.
        """
        texts = ("kind", "started", "ended", "failure", "data", "version", "git")
        row = dict(document) if isinstance(document, dict) else {}
        known = {each.name for each in dataclasses.fields(cls)}
        record = cls(
            **{name: value for name, value in row.items() if name in known - {"status", "processes"}},
            status=Status(str(row.get("status"))),
            processes=tuple(_process(each) for each in row.get("processes", ())),
        )
        if not (
            all(isinstance(getattr(record, name), str) for name in texts)
            and type(record.attempts) is int
            and type(record.exit_code) in (int, type(None))
            and isinstance(record.details, dict)
            and isinstance(record.config, dict)
            and all(isinstance(value, str) for value in record.config.values())
            and "\0" not in record.data  # no path has it
        ):
            raise ValueError("a value of another type")
        for moment in (record.started, record.ended):
            if moment:
                _moment(moment)
        return record


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def typed(self) -> str:
        """What a person in the working directory types for it: its name, or its path if that is not in ./runs."""
        if not self.path.is_relative_to(Path.cwd()):
            return str(self.path)
        below = self.path.relative_to(Path.cwd())
        return self.name if below.parent == Path(DEFAULT_RUNS_DIR) else str(below)

    @property
    def paths(self) -> MlPaths:
        return MlPaths(base=self.path)

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def archive(self) -> Path:
        return self.path / ARCHIVE

    @property
    def is_remote(self) -> bool:
        """Whether it runs on AWS, and not on this machine."""
        return REMOTE in self._read().details

    @property
    def is_active_remotely(self) -> bool:
        """Whether it was under way on AWS when it was last looked at; not when job.json is damaged."""
        try:
            record = self._read()
        except PlatformError:
            return False
        return REMOTE in record.details and record.status in ACTIVE

    def record(self) -> Record:
        """How the job stands in truth. Raises PlatformError when job.json cannot be read."""
        record = self._read()
        if (
            record.status not in ACTIVE
            or REMOTE in record.details
            or any(_is_alive(pid, start) for pid, start in record.processes)
        ):
            return record
        cause = self.failure()
        return dataclasses.replace(
            record,
            status=Status.STOPPED if cause.is_stop else Status.FAILED,
            failure=cause.message or "the job was killed before it could report an end",
            ended=self._last_sign() or record.started,
        )

    def _last_sign(self) -> str:
        """When the job logged last; empty when that cannot be told."""
        try:
            return _iso(self.log.stat().st_mtime)
        except (OSError, ValueError, OverflowError):  # the last two of a time that no calendar has
            return ""

    def _read(self) -> Record:
        if not _is_run(self.path):
            raise PlatformError(f"{self.path} is no run folder: there is no {JOB.name} in it")
        try:
            return Record.parse(JOB.read(self.path))
        except (ValueError, TypeError, OverflowError):  # the last of a date that no calendar has
            raise self._damaged() from None

    def _damaged(self) -> PlatformError:
        return PlatformError(f"{self.path / JOB.name} is damaged", f"remove {self.path}, or mend the file")

    @contextmanager
    def intact(self) -> Iterator[None]:
        """Within the block, a detail that is missing or of another kind means that job.json is damaged.

        Raises:
            PlatformError: it is.
        """
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise self._damaged() from None

    def write(self, record: Record) -> None:
        """Writes job.json, whole or not at all."""
        JOB.write(self.path, dataclasses.asdict(record))

    def update(self, **changes: Any) -> Record:
        """Writes job.json with `changes`."""
        record = dataclasses.replace(self._read(), **changes)
        self.write(record)
        return record

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block no other command can go on with this run, not even one started in the same moment.

        Raises:
            ConfigError: another command has it.
        """
        with open_plain(self.path / LOCK_NAME, "ab") as file:  # the lock ends with this process, however that ends
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise still_running(self) from None
            except OSError as error:
                if error.errno not in {errno.ENOLCK, errno.ENOTSUP}:  # a network disk without locks: go on without
                    raise
            yield

    def begin(self, *pids: int) -> None:
        """Notes a new attempt, run by this process and by `pids`."""
        processes = tuple((pid, start) for pid in (os.getpid(), *pids) if (start := _start_time(pid)) is not None)
        self.update(
            status=Status.IN_PROGRESS,
            started=_iso(time.time()),
            ended="",
            processes=processes,
            attempts=self._read().attempts + 1,
            exit_code=None,
            failure="",
        )

    def end(self, status: Status, *, exit_code: int | None = None, failure: str = "") -> None:
        """Notes the end of the attempt."""
        self.update(status=status, ended=_iso(time.time()), exit_code=exit_code, failure=failure)

    def failure(self) -> Failure:
        """The first cause and the hint as the job wrote them."""
        return read_failure(self.paths.failure)

    def history(self) -> list[dict[str, Any]]:
        """The job's epochs, metric name -> value; empty when it left none."""
        return HISTORY.read(self.paths.output_data)

    def result(self) -> dict[str, Any]:
        """What the job wrote of its end, see `read_result`; empty when it left nothing."""
        return read_result(self.paths.output_data)

    def metrics(self) -> dict[str, float]:
        """Metric name -> value, of the best epoch and of the test; empty when the job left none."""
        return self.result().get("metrics", {})  # type: ignore[no-any-return]  # its type is checked there


def _moment(text: str) -> datetime:
    """ISO 8601 with its zone. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} names no zone")
    return moment.astimezone(UTC)


def _process(pair: Any) -> tuple[int, float]:
    """Process id and start time. Raises ValueError or TypeError for anything else."""
    pid, start = pair
    if type(pid) is not int or not 0 < pid <= MAX_PID or not math.isfinite(start):
        raise ValueError(f"{pair} is no process")
    return pid, float(start)


def still_running(run: Run) -> ConfigError:
    """The refusal to start a run's job twice."""
    return ConfigError(f"{run.name} is still running", f"follow it with `deploy.py logs -f {run.typed}`")


def create_run(runs_dir: Path, kind: str, name: str = "", **record: Any) -> Run:
    """Makes a new run folder, also when another is made in the same second.

    Raises:
        ConfigError: the name holds something else than letters, digits, `.`, `_` and `-`.
        PlatformError: the folder cannot be made.
    """
    if name and not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a run", "use up to 40 letters, digits and . _ -")
    stem = "-".join(part for part in (kind, datetime.now().strftime("%Y%m%d-%H%M%S"), name) if part)
    path = _make_folder(runs_dir, stem)
    return open_run(path, Record(kind=kind, **record))


def open_run(path: Path, record: Record) -> Run:
    """Puts a job.json into the folder `path` (made if missing) and returns the run."""
    try:
        path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(f"cannot make {path}: {error.strerror}") from None
    run = Run(path=path)
    run.write(dataclasses.replace(record, version=image_classifier.__version__, git=git_revision()))
    return run


def _make_folder(runs_dir: Path, stem: str) -> Path:
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = runs_dir / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(mode=PRIVATE)
            except FileExistsError:
                continue
            return path.resolve()
    except OSError as error:
        raise PlatformError(
            f"cannot make a run folder in {runs_dir}: {error.strerror}", "choose another place with --runs-dir"
        ) from None
    raise PlatformError(f"{runs_dir} holds too many runs named {stem}")


def list_runs(runs_dir: Path) -> list[Run]:
    """All runs below `runs_dir`, oldest first."""
    found = [Run(path=path.resolve()) for path in runs_dir.iterdir() if _is_run(path)] if runs_dir.is_dir() else []
    return sorted(found, key=lambda run: run.name.partition("-")[2])  # by the time in the name, whatever the kind


def find_run(runs_dir: Path, text: str = "", *, kind: str = "", status: Status | None = None) -> Run:
    """The run that `text` means: a folder, or a name below `runs_dir`; without it, the newest.

    Args:
        kind: only runs of this kind.
        status: only runs that stand like this; for the newest one only.

    Raises:
        ConfigError: there is none.
    """
    if text:
        for path in (path_here(text), runs_dir / text):
            if _is_run(path):
                run = Run(path=path.resolve())
                if kind and run.record().kind != kind:
                    raise ConfigError(f"{text} is a {run.record().kind} run, not a {kind} run")
                return run
        raise ConfigError(f"there is no run {text!r} in {runs_dir}", where_to_look(runs_dir))
    for run in reversed(list_runs(runs_dir)):
        with suppress(PlatformError):  # a damaged record: `status` names it
            record = run.record()
            if (not kind or record.kind == kind) and (status is None or record.status == status):
                return run
    wanted = " ".join(word for word in ("finished" if status else "", kind, "run") if word)
    raise ConfigError(f"there is no {wanted} in {runs_dir}", where_to_look(runs_dir))


def _is_run(path: Path) -> bool:
    """Whether it is a run's folder, whatever lies there under the name of job.json: a link to nowhere is a damage."""
    try:
        return os.path.lexists(path / JOB.name)
    except ValueError:  # a name that no file can have
        return False


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _start_time(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_alive(pid: int, start: float) -> bool:
    """Whether the process of that id is still the one that started then, and no zombie."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - start) < SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
