"""The folder layout SageMaker gives a container, anywhere on disk.

    BASE/code/                          the source the toolkit runs
    BASE/input/config/*.json            hyperparameters, channels, hosts
    BASE/input/data/CHANNEL/            the data, one folder a channel: train, valid, test; with split, all images are
                                        in train, and split/split.csv says which is which
    BASE/checkpoints/                   kept across restarts of the same job
    BASE/model/                         becomes model.tar.gz
    BASE/output/failure                 the first cause of a failed job
    BASE/output/data/                   metrics and reports, becomes output.tar.gz
    BASE/output/tensors/                what the debug hook records

BASE is /opt/ml in a container and the run's folder on this machine; both toolkits read it from SAGEMAKER_BASE_DIR.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.errors import ConfigError

BASE_DIR_VARIABLE = "SAGEMAKER_BASE_DIR"
DEFAULT_BASE_DIR = Path("/opt/ml")
SHARED_CHECKPOINTS_VARIABLE = "CLASSIFIER_SHARED_CHECKPOINTS"  # set for the trials of a tuning job, see MlPaths
JOB_NAME_VARIABLE = "TRAINING_JOB_NAME"  # set by SageMaker
RESTARTS_VARIABLE = "TORCHELASTIC_RESTART_COUNT"  # torchrun's: how often a training of several processes began again
FEATURES_VARIABLE = "CLASSIFIER_FEATURES"  # the folder in which the jobs of a machine keep what frozen bodies computed
FAILURE = "failure"  # below output, where both toolkits and SageMaker look for it
FAILURE_MAX_CHARS = 1024  # DescribeTrainingJob's FailureReason shows this many characters


@dataclass(frozen=True, kw_only=True)
class MlPaths:
    """Where a job finds its input and leaves its output, below one base folder.

    Args:
        checkpoint_folder: below `checkpoints`. All trials of a SageMaker tuning job are given the same S3 folder for
            their checkpoints, so each keeps to the folder of its own name in there.
    """

    base: Path
    checkpoint_folder: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> MlPaths:
        """The layout below $SAGEMAKER_BASE_DIR, or /opt/ml without it."""
        environ = os.environ if environ is None else environ
        return cls(
            base=Path(environ.get(BASE_DIR_VARIABLE) or DEFAULT_BASE_DIR),
            checkpoint_folder=environ.get(JOB_NAME_VARIABLE, "") if environ.get(SHARED_CHECKPOINTS_VARIABLE) else "",
        )

    @property
    def code(self) -> Path:
        return self.base / "code"

    @property
    def config(self) -> Path:
        return self.base / "input" / "config"

    @property
    def hyperparameters(self) -> Path:
        return self.config / "hyperparameters.json"

    @property
    def input_data_config(self) -> Path:
        return self.config / "inputdataconfig.json"

    @property
    def resource_config(self) -> Path:
        return self.config / "resourceconfig.json"

    @property
    def debug_hook_config(self) -> Path:
        return self.config / "debughookconfig.json"

    @property
    def data(self) -> Path:
        return self.base / "input" / "data"

    def channel(self, name: str) -> Path:
        """The folder of one channel, e.g. `train`, `valid`, `test` or `weights`; it may not exist."""
        return self.data / name

    @property
    def checkpoints(self) -> Path:
        return self.base / "checkpoints" / self.checkpoint_folder

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def output_data(self) -> Path:
        return self.output / "data"

    @property
    def tensors(self) -> Path:
        return self.output / "tensors"

    @property
    def failure(self) -> Path:
        return self.output / FAILURE


def path_here(text: str | Path) -> Path:
    """The path as it was typed. Raises ConfigError for an address of S3, which is no path of this machine."""
    if found := re.match(r"s3:/+(.*)", str(text), re.IGNORECASE):  # a Path keeps one of its slashes
        raise ConfigError(
            f"s3://{found[1]} is not on this machine", "copy it here first: aws s3 cp --recursive s3://... FOLDER"
        )
    return Path(text)
