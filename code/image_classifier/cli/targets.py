"""Where jobs run: the verbs that every target has, and the choice between the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from image_classifier.cli.settings import Settings
from image_classifier.contract.config import Value
from image_classifier.contract.errors import ConfigError

if TYPE_CHECKING:
    from image_classifier.launch.client import Connection
    from image_classifier.launch.local import Starter
    from image_classifier.launch.runs import Run
    from image_classifier.launch.training_run import Outcome
    from image_classifier.tuning.trials import Found

DOCKER, SAGEMAKER = "docker", "sagemaker"


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A place for jobs. A verb returns None when it only showed what it would do.

    Args:
        yes: spend money without asking.
        dry_run: make nothing, print the requests.
    """

    settings: Settings
    yes: bool = False
    dry_run: bool = False

    @property
    def runs_dir(self) -> Path:
        return Path(self.settings.general.runs_dir)

    @abstractmethod
    def tune(self, name: str) -> Found | None:
        """Searches the best hyperparameters."""

    @abstractmethod
    def resume_tuning(self, run: Run, changes: Mapping[str, Value]) -> Found | None:
        """Goes on with an interrupted search."""

    @abstractmethod
    def train(self, name: str) -> Outcome | None:
        """Trains a model."""

    @abstractmethod
    def resume_training(self, run: Run) -> Outcome | None:
        """Goes on with an interrupted training."""

    @abstractmethod
    def serve(self, model: str) -> None:
        """Serves a model.tar.gz, or the model of a run."""

    @abstractmethod
    def connection(self) -> Connection:
        """A connection to the endpoint."""


class Local(Target):
    """This machine: the containers' own programs as processes."""

    def starter(self) -> Starter:
        """How a job is started here."""
        from image_classifier.launch import local

        return local

    def tune(self, name: str) -> Found | None:
        from image_classifier.tuning import tuner as tune

        starter, data = self.starter(), Path(self.settings.general.data)
        search = tune.create(self.settings, data, self.runs_dir, name=name)
        with search.run.held():
            return tune.run(search, starter=starter)

    def resume_tuning(self, run: Run, changes: Mapping[str, Value]) -> Found | None:
        from image_classifier.tuning import tuner as tune

        _require_here(run)
        starter = self.starter()
        with run.held():
            return tune.run(tune.resume(run, changes), starter=starter)

    def train(self, name: str) -> Outcome | None:
        from image_classifier.launch import training_run as train

        data = Path(self.settings.general.data)
        return train.train(self.settings.train, data, self.runs_dir, name=name, starter=self.starter())

    def resume_training(self, run: Run) -> Outcome | None:
        from image_classifier.launch import training_run as train

        _require_here(run)
        starter = self.starter()
        with run.held():
            return train.resume(run, starter=starter)

    def serve(self, model: str) -> None:
        from image_classifier.cli.show_jobs import ServeView
        from image_classifier.launch import serving_run as serve

        starter = self.starter()
        address, archive = self.settings.serve, serve.find_archive(model, self.runs_dir)
        serve.serve(
            archive,
            self.runs_dir,
            host=address.host,
            port=address.port,
            on_line=ServeView(archive).line,
            starter=starter,
        )

    def connection(self) -> Connection:
        from image_classifier.launch.client import Client

        return Client(self.settings.url)


class Docker(Local):
    """This machine: the two images."""

    def starter(self) -> Starter:
        from image_classifier.launch import docker

        docker.require_images()
        return docker


class SageMaker(Target):
    """Amazon SageMaker."""

    def tune(self, name: str) -> Found | None:
        from image_classifier.sagemaker import tuning_job as tune

        return tune.tune(self.settings, name=name, yes=self.yes, dry_run=self.dry_run)

    def resume_tuning(self, run: Run, changes: Mapping[str, Value]) -> Found | None:
        raise ConfigError(
            f"{run.name} goes on on SageMaker by itself", f"follow it with `deploy.py logs -f {run.name}`"
        )

    def train(self, name: str) -> Outcome | None:
        from image_classifier.sagemaker import training_job as train

        return train.train(self.settings, name=name, yes=self.yes, dry_run=self.dry_run)

    def resume_training(self, run: Run) -> Outcome | None:
        from image_classifier.sagemaker import training_job as train

        return train.resume(run, self.settings, yes=self.yes)

    def serve(self, model: str) -> None:
        from image_classifier.cli.show_remote import served
        from image_classifier.launch import serving_run as local
        from image_classifier.sagemaker import endpoints as serve

        archive = local.find_archive(model, self.runs_dir)
        if serve.serve(self.settings, archive, trained_by(archive), yes=self.yes, dry_run=self.dry_run):
            served(self.settings)

    def connection(self) -> Connection:
        from image_classifier.sagemaker.predict import RemoteClient
        from image_classifier.sagemaker.session import Session

        settings = self.settings.sagemaker
        return RemoteClient(Session(settings), settings.endpoint, is_async=settings.variant == "async")


def target_of(settings: Settings, *, yes: bool = False, dry_run: bool = False) -> Target:
    """The target that the settings name. Raises ConfigError."""
    if settings.general.target == SAGEMAKER:
        return SageMaker(settings=settings, yes=yes, dry_run=dry_run)
    if dry_run:
        raise ConfigError("--dry-run shows requests to AWS, jobs here make none", "give --target sagemaker")
    return (Docker if settings.general.target == DOCKER else Local)(settings=settings, yes=yes)


def _require_here(run: Run) -> None:
    if run.is_remote:
        raise ConfigError(f"{run.name} ran on SageMaker", "go on there: deploy.py --target sagemaker ...")


def trained_by(archive: Path) -> Run | None:
    """The run on SageMaker in whose folder an archive lies, None for any other."""
    from image_classifier.contract.outputs import JOB
    from image_classifier.launch.runs import Run

    run = Run(path=archive.resolve().parent)
    return run if (run.path / JOB.name).is_file() and run.is_remote else None
