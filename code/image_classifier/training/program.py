"""Which program a training container runs: this project's, or the user's own that a request names.

`Estimator(entry_point="mine.py")` of the SageMaker SDK, and whoever does as it does, sends two hyperparameters,
`sagemaker_program`, and `sagemaker_submit_directory` with the archive that holds it. AWS's framework images run that,
and so does this one: unpacked into `code`, with what its `requirements.txt` or `setup.py` asks for, and the other
hyperparameters as arguments. Fetching and installing is the toolkit's.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagemaker_training import _entry_point_type, entry_point, environment, errors, files, params

import image_classifier
from image_classifier.contract.errors import ConfigError, JobError, describe

OURS = "train.py"
# The program itself is started once for each GPU, and told its place as torchrun does
TORCH_DISTRIBUTED = ("sagemaker_torch_distributed_enabled", "sagemaker_pytorch_ddp_enabled")
UNSUPPORTED = {
    params.MPI_ENABLED: "MPI",
    params.PARAMETER_SERVER_ENABLED: "parameter servers",
    params.MULTI_WORKER_MIRRORED_STRATEGY_ENABLED: "TensorFlow",
    params.PYTORCH_XLA_MULTI_WORKER_ENABLED: "XLA",
    "sagemaker_distributed_dataparallel_enabled": "SageMaker's data parallel library",
}


@dataclass(frozen=True, kw_only=True)
class TrainingProgram:
    """What is run, and how often.

    Args:
        name: the file, or the module of an installed package.
        folder: where it is run.
        is_ours: whether it is this project's.
        is_per_gpu: whether it is started once for each GPU.
    """

    name: str
    folder: Path
    is_ours: bool
    is_per_gpu: bool = True

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The words that start it."""
        kind = _entry_point_type.get(str(self.folder), self.name)
        if kind is _entry_point_type.PYTHON_PACKAGE:
            return [sys.executable, "-m", self.name.removesuffix(".py"), *arguments]
        if kind is _entry_point_type.PYTHON_PROGRAM:
            return [sys.executable, self.name, *arguments]
        return ["/bin/sh", "-c", f"exec {shlex.join([f'./{self.name}', *arguments])}"]


def prepare_program(env: environment.Environment) -> TrainingProgram:
    """Fetches and installs the program that the environment or the hyperparameters name; without any, it is ours.

    Raises:
        ConfigError: what was named is not there, or asks for what the image does not have.
        JobError: it cannot be fetched or installed.
    """
    folder, ours = Path(environment.code_dir), Path(image_classifier.__file__).resolve().parents[1]
    source = _source(env)
    if not env.user_entry_point:
        if source != str(folder):
            raise ConfigError(f"{params.SUBMIT_DIR_PARAM} comes without {params.USER_PROGRAM_PARAM}", "name the file")
        return TrainingProgram(name=OURS, folder=ours, is_ours=True)
    name = str(env.user_entry_point)
    if folder.resolve() == ours or (name == OURS and source == str(folder) and not (folder / name).exists()):
        return TrainingProgram(name=name, folder=ours, is_ours=True)
    per_gpu = _is_distributed(env.additional_framework_parameters)
    _fetch(source, folder)
    kind = _entry_point_type.get(str(folder), name)
    if kind is not _entry_point_type.PYTHON_PACKAGE and not (folder / name).is_file():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise ConfigError(f"{params.USER_PROGRAM_PARAM} names {name!r}, which is not in {source}", f"it holds {held}")
    _install(name, folder)
    return TrainingProgram(name=name, folder=folder, is_ours=False, is_per_gpu=per_gpu)


def _source(env: environment.Environment) -> str:
    """Where the program is to be had: an address of S3, or a folder or archive here."""
    given = str(env.module_dir)
    return given if given != environment.code_dir else os.environ.get(params.SUBMIT_DIR_ENV) or given


def _is_distributed(asked: Mapping[str, object]) -> bool:
    for parameter, name in UNSUPPORTED.items():
        if asked.get(parameter) is True:
            raise ConfigError(f"{parameter} asks for {name}, which this image does not have", "use torch_distributed")
    return any(asked.get(parameter) is True for parameter in TORCH_DISTRIBUTED)


def _fetch(source: str, folder: Path) -> None:
    """Fills `folder` unless there is something in it already."""
    try:
        files.download_and_extract(uri=source, path=str(folder))
    except Exception as error:  # any of boto3's, of an archive's, of a disk's
        hint = "the job's role must be able to read it, and the job must reach S3" if source.startswith("s3:") else ""
        raise JobError(f"the program cannot be fetched from {source}: {describe(error)}", hint) from None


def _install(name: str, folder: Path) -> None:
    try:
        entry_point.install(name=name, path=str(folder))
    except (errors.InstallModuleError, errors.InstallRequirementsError):
        what = "setup.py" if (folder / "setup.py").exists() else "requirements.txt"
        raise JobError(
            f"what {what} beside {name} asks for could not be installed",
            "pip's own messages stand above; without network, build an image FROM this one that has it",
        ) from None
