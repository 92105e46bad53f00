"""Where jobs run: the verbs that every target has, and the choice between the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from image_classifier.cli.render import Console
from image_classifier.cli.settings import Settings
from image_classifier.contract.config import Value
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.paths import path_here
from image_classifier.launch.view import View

if TYPE_CHECKING:
    from image_classifier.launch.client import Connection
    from image_classifier.launch.local import Starter
    from image_classifier.launch.runs import Run
    from image_classifier.launch.training_run import Outcome
    from image_classifier.tuning.trials import Found

Program = Literal["train", "serve"]


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A place for jobs. A verb returns None when it only showed what it would do.

    Args:
        yes: spend money without asking.
        dry_run: make nothing, print the requests.
    """

    settings: Settings
    view: View = field(default_factory=Console)
    yes: bool = False
    dry_run: bool = False

    @property
    def data(self) -> Path:
        return path_here(self.settings.general.data)

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

    def starter(self, program: Program) -> Starter:
        """How a job is started here. Raises PlatformError when what it needs is not installed."""
        from image_classifier.launch import local

        local.require_importable(self.runs_dir)
        (local.require_trainer if program == "train" else local.require_server)()
        return local

    def fetch_weights(self) -> None:
        """Has ImageNet's weights here before a job is made that starts from them. Raises WeightsError."""
        from image_classifier.launch.imagenet_weights import fetch_imagenet

        if self.settings.train.weights == "imagenet" and self.data.exists():
            fetch_imagenet(self.view)

    def tune(self, name: str) -> Found | None:
        from image_classifier.tuning import tuner

        starter, chosen = self.starter("train"), self.settings
        self.fetch_weights()
        search = tuner.create(
            chosen.train,
            chosen.search,
            chosen.tune,
            self.data,
            self.runs_dir,
            name=name,
            given=chosen.given_flags(),
            view=self.view,
        )
        with search.run.held():
            return tuner.run(search, starter=starter, view=self.view)

    def resume_tuning(self, run: Run, changes: Mapping[str, Value]) -> Found | None:
        from image_classifier.tuning import tuner

        _require_here(run)
        starter = self.starter("train")
        with run.held():
            return tuner.run(tuner.resume(run, changes, self.view), starter=starter, view=self.view)

    def train(self, name: str) -> Outcome | None:
        from image_classifier.launch import training_run

        config, starter = self.settings.train, self.starter("train")
        self.fetch_weights()
        return training_run.train(config, self.data, self.runs_dir, name=name, starter=starter, view=self.view)

    def resume_training(self, run: Run) -> Outcome | None:
        from image_classifier.launch import training_run

        _require_here(run)
        starter = self.starter("train")
        with run.held():
            return training_run.resume(run, starter=starter, view=self.view)

    def serve(self, model: str) -> None:
        from image_classifier.cli.show_jobs import ServeView
        from image_classifier.launch import serving_run

        starter = self.starter("serve")
        address, archive = self.settings.serve, serving_run.find_archive(model, self.runs_dir)
        serving_run.serve(
            archive,
            self.runs_dir,
            host=address.host,
            port=address.port,
            precision=address.precision,
            on_line=ServeView(archive).line,
            starter=starter,
            view=self.view,
        )

    def connection(self) -> Connection:
        from image_classifier.launch.client import Client

        return Client(self.settings.url)


class Docker(Local):
    """This machine: the two images."""

    def starter(self, program: Program) -> Starter:
        from image_classifier.launch import docker

        docker.require_images()
        return docker

    def fetch_weights(self) -> None:
        """A container looks for them in its image, and fetches them itself."""


class SageMaker(Target):
    """Amazon SageMaker."""

    def tune(self, name: str) -> Found | None:
        from image_classifier.sagemaker import tuning_job

        chosen = self.settings
        return tuning_job.tune(
            chosen.train,
            chosen.search,
            chosen.tune,
            chosen.sagemaker,
            data=self.data,
            runs_dir=self.runs_dir,
            name=name,
            given=chosen.given_flags(),
            yes=self.yes,
            dry_run=self.dry_run,
            view=self.view,
        )

    def resume_tuning(self, run: Run, changes: Mapping[str, Value]) -> Found | None:
        raise ConfigError(
            f"{run.name} goes on on SageMaker by itself", f"follow it with `deploy.py logs -f {run.name}`"
        )

    def train(self, name: str) -> Outcome | None:
        from image_classifier.sagemaker import training_job

        return training_job.train(
            self.settings.train,
            self.settings.sagemaker,
            self.data,
            self.runs_dir,
            name=name,
            yes=self.yes,
            dry_run=self.dry_run,
            view=self.view,
        )

    def resume_training(self, run: Run) -> Outcome | None:
        from image_classifier.sagemaker import training_job

        return training_job.resume(run, self.settings.sagemaker, yes=self.yes, view=self.view)

    def serve(self, model: str) -> None:
        from image_classifier.cli.show_remote import served
        from image_classifier.sagemaker import endpoints

        aws = self.settings.sagemaker
        if endpoints.serve(
            aws,
            model,
            self.runs_dir,
            precision=self.settings.serve.precision,
            yes=self.yes,
            dry_run=self.dry_run,
            view=self.view,
        ):
            served(aws.endpoint)

    def connection(self) -> Connection:
        from image_classifier.sagemaker.predict import RemoteClient
        from image_classifier.sagemaker.session import Session

        settings = self.settings.sagemaker
        return RemoteClient(Session(settings, self.view), settings.endpoint, is_async=settings.variant == "async")


TARGET_BY_NAME: Mapping[str, type[Target]] = {"local": Local, "docker": Docker, "sagemaker": SageMaker}


def target_of(settings: Settings, *, yes: bool = False, dry_run: bool = False) -> Target:
    """The target that the settings name. Raises ConfigError."""
    target = TARGET_BY_NAME[settings.general.target]
    if dry_run and not issubclass(target, SageMaker):
        raise ConfigError("--dry-run shows requests to AWS, jobs here make none", "give --target sagemaker")
    return target(settings=settings, yes=yes, dry_run=dry_run)


def _require_here(run: Run) -> None:
    if run.is_remote:
        raise ConfigError(f"{run.name} ran on SageMaker", "go on there: deploy.py --target sagemaker ...")
