"""Jobs on this machine: the containers' own entry programs as processes, in a run folder laid out like /opt/ml."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.endpoint import (
    ACCESS_LOG_VARIABLE,
    HOST_VARIABLE,
    PORT_VARIABLE,
    PRECISION_VARIABLE,
    PRECISIONS,
)
from image_classifier.contract.errors import ConfigError, PlatformError
from image_classifier.contract.files import write_text
from image_classifier.contract.installation import (
    COMMAND_VARIABLE,
    SOURCE,
    command,
    program_folders,
    require_extra,
    shipped,
)
from image_classifier.contract.machine import may_have_gpu, require_free_port, usable_cores
from image_classifier.contract.outputs import ACCESS_LOG, TRIALS_FOLDER
from image_classifier.contract.paths import BASE_DIR_VARIABLE, FEATURES_VARIABLE
from image_classifier.launch.forks import Forks
from image_classifier.launch.process import Job
from image_classifier.launch.runs import Run
from image_classifier.launch.view import SILENT, View

TRAIN_PACKAGES = ("contract", "vision", "debugging", "report", "training")  # what the training image ships
TRAIN_SCRIPTS = ("train.py",)
SERVE_PACKAGES = ("contract", "vision", "serving")  # what the serving image ships
FEATURES_FOLDER = ".features"  # beside the runs, for every job and trial
HOST = "localhost"  # resolves on every machine
# What would end a job (a warning of a library as an error), make it wait for input, or fill its log
INTERPRETER_VARIABLES = frozenset(
    f"PYTHON{name}"
    for name in (
        *("DEBUG", "DEVMODE", "INSPECT", "OPTIMIZE", "PROFILEIMPORTTIME", "SAFEPATH", "STARTUP", "TRACEMALLOC"),
        *("VERBOSE", "WARNINGS"),
    )
)
FREE_BYTES_FOR_TRAINING = 1_500_000_000  # two checkpoints of weights, momentum and best weights (0.28 GB each), one
# more while it is being written, the model and its archive (0.1 GB each), and room for metrics and logs
_forks: ContextVar[Forks | None] = ContextVar("forks", default=None)  # see `forked_trainings`


class Starter(Protocol):
    """A way to start jobs on a run folder of this machine: this module, and `docker`."""

    def start_training(self, run: Run, *, share: int = 1, view: View = SILENT) -> Job:
        """Starts a training on a prepared run folder, and again on one that was interrupted."""

    def start_server(
        self, run: Run, *, host: str, port: int, precision: str = PRECISIONS[0], view: View = SILENT
    ) -> Job:
        """Starts the model server on the run folder's model."""


def prepare_training(run: Run, config: TrainConfig, channels: Mapping[str, Path]) -> None:
    """Fills a run folder with what SageMaker gives a training container: hyperparameters, channels, hosts.

    Args:
        channels: channel name -> folder, linked and never copied.
    """
    paths = run.paths
    for folder in (paths.config, paths.data, paths.checkpoints, paths.model, paths.output_data):
        folder.mkdir(parents=True, exist_ok=True)
    for name, folder in channels.items():
        paths.channel(name).unlink(missing_ok=True)
        paths.channel(name).symlink_to(folder.resolve(), target_is_directory=True)
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    write_text(paths.hyperparameters, json.dumps(config.to_hyperparameters(), indent=1))
    write_text(paths.input_data_config, json.dumps(dict.fromkeys(channels, channel), indent=1))
    write_text(paths.resource_config, json.dumps({"current_host": HOST, "hosts": [HOST]}, indent=1))


def start_training(run: Run, *, share: int = 1, view: View = SILENT) -> Job:
    """Starts `train` of sagemaker-training on a prepared run folder, and again on one that was interrupted.

    Args:
        share: how many jobs share the machine's cores.

    Raises:
        PlatformError: the program is not installed, or cannot be started.
    """
    program = _train_program()
    clear_attempt(run)
    forks = _forks.get()
    _snapshot(run, TRAIN_PACKAGES, TRAIN_SCRIPTS, source=SOURCE if forks is None else forks.source)
    env = _environment(run) | {
        "SAGEMAKER_PROGRAM": "train.py",
        "SAGEMAKER_TRAINING_MODULE": "image_classifier.training.toolkit_module:main",
        FEATURES_VARIABLE: os.environ.get(FEATURES_VARIABLE) or str(features_folder(run)),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // share)),
    }
    job = None if forks is None else forks.start(env, base=run.path, log=run.log)
    if job is None:
        job = Job.start([str(program)], env=env, cwd=run.path, log=run.log)
    run.begin(job.pid)
    return job


@contextmanager
def forked_trainings(search: Run) -> Iterator[None]:
    """Within the block, trainings on this machine are forked from one process that has imported what they need.

    Each is still a job of its own, as `start_training` says. On a machine with a GPU nothing changes: a process for
    each GPU is the toolkit's to start. None of the jobs may outlast the block.

    Args:
        search: the run in whose folder the process finds the source that all of them run, as it is now.
    """
    if may_have_gpu():
        yield
        return
    with Forks(search.paths.code, lambda: _snapshot(search, TRAIN_PACKAGES, TRAIN_SCRIPTS)) as forks:
        before = _forks.set(forks)
        try:
            yield
        finally:
            _forks.reset(before)


def require_trainer() -> None:
    """Raises PlatformError when what trains is not installed: known before data are read and a run is made."""
    require_extra("train", "training on this machine")
    _train_program()


def require_server() -> None:
    """The same for what serves."""
    require_extra("serve", "serving on this machine", "mms", "sagemaker_inference", "aiohttp")


def _train_program() -> Path:
    for folder in program_folders():
        if (folder / "train").is_file():
            return folder / "train"
    raise PlatformError(
        f"the program `train` of sagemaker-training is missing beside {sys.executable}",
        "run deploy.py with the project's environment: .venv/bin/python deploy.py",
    )


def features_folder(run: Run) -> Path:
    """Where the runs of a folder keep what frozen bodies computed; of a trial, the folder that its search lies in."""
    is_trial = run.path.parent.name == TRIALS_FOLDER
    return run.path.parents[2 if is_trial else 0] / FEATURES_FOLDER


def clear_attempt(run: Run) -> None:
    """Removes what an interrupted attempt may have left: its failure, half a model."""
    for leftover in (run.paths.failure, run.paths.output / "success"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(run.paths.model)
    run.paths.model.mkdir()


def start_server(run: Run, *, host: str, port: int, precision: str = PRECISIONS[0], view: View = SILENT) -> Job:
    """Starts the model server on `<run>/model`. Raises PlatformError when the port is taken."""
    require_free_port(host, port)
    _snapshot(run, SERVE_PACKAGES)
    env = _environment(run) | {PORT_VARIABLE: str(port), HOST_VARIABLE: host, PRECISION_VARIABLE: precision}
    env.setdefault(ACCESS_LOG_VARIABLE, str(run.path / ACCESS_LOG))
    job = Job.start([sys.executable, "-m", "image_classifier.serving.entry"], env=env, cwd=run.path, log=run.log)
    run.begin(job.pid)
    return job


def require_importable(runs_dir: Path) -> None:
    """Raises ConfigError when jobs in `runs_dir` would not find their source: PYTHONPATH is split at colons."""
    place = runs_dir.resolve()  # a job sees its folder by the name that no link has
    if os.pathsep in str(place):
        raise ConfigError(
            f"the path of the runs, {place}, holds a colon: no program can be run from there",
            "choose another place with --runs-dir",
        )


def require_free_disk(folder: Path, jobs: int = 1) -> None:
    """Raises PlatformError when the disk below `folder` has no room for the outputs of `jobs` trainings."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free, needed = shutil.disk_usage(place).free, FREE_BYTES_FOR_TRAINING * jobs
    if free < needed:
        raise PlatformError(
            f"only {free / 1e9:.1f} GB are free in {place}, the job needs about {needed / 1e9:.1f} GB",
            "free some space, or choose another place with --runs-dir",
        )


def _environment(run: Run) -> dict[str, str]:
    """This environment without another job's settings and what is meant for `deploy.py`'s own interpreter, plus what
    every program in a run folder needs."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SM_") and name not in INTERPRETER_VARIABLES
    }
    return ours | {
        BASE_DIR_VARIABLE: str(run.path),
        COMMAND_VARIABLE: command(),
        "PYTHONPATH": str(run.paths.code),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # as the log is read, whatever the locale
        "PATH": os.pathsep.join((*map(str, program_folders()), os.environ.get("PATH", os.defpath))),
    }


def _snapshot(run: Run, packages: tuple[str, ...], scripts: tuple[str, ...] = (), source: Path = SOURCE) -> None:
    """Copies the source that the job's image would ship, so that editing it does not touch a running job.

    With its bytecode, which is made beside the source where it is missing or old and there may be any: so the next job
    need not compile it again, either.
    """
    package = run.paths.code / "image_classifier"
    shutil.rmtree(run.paths.code, ignore_errors=True)
    package.mkdir(parents=True)
    for script in scripts:
        shutil.copy2(shipped(f"code/{script}") if source == SOURCE else source / script, run.paths.code)
    shutil.copy2(source / "image_classifier" / "__init__.py", package)
    for name in packages:
        folder = source / "image_classifier" / name
        if folder.is_dir():
            if not sys.dont_write_bytecode:
                compileall.compile_dir(folder, quiet=2)  # what cannot be written is compiled by the job
            shutil.copytree(folder, package / name, ignore=_not_copied)


def _not_copied(_: str, names: list[str]) -> list[str]:
    """What belongs to other interpreters, or is being written."""
    ours = f".{sys.implementation.cache_tag}.pyc"
    return [name for name in names if name.startswith(".") or (".pyc" in name and not name.endswith(ours))]
