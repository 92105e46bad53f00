"""What SageMaker tells a training container in `input/config`, looked through before the toolkit reads it.

The toolkit answers a file that is missing or damaged with a traceback; where it cannot write its failure file either,
with nothing at all and exit code 0.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sagemaker_training import mapping, params

from image_classifier.contract.errors import ConfigError, describe
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import visible

MOUNTS = "SageMaker writes it; `docker run` needs the job's input, model and output below /opt/ml, see docs/images.md"
_TEXTS = (  # hyperparameters of the toolkit's that become paths and environment variables
    *(params.USER_PROGRAM_PARAM, params.SUBMIT_DIR_PARAM, params.JOB_NAME_PARAM, params.REGION_NAME_PARAM),
    params.S3_OUTPUT_LOCATION_PARAM,
)
_SHOWN = 60  # characters of a name


def check_input(paths: MlPaths) -> None:
    """Raises ConfigError unless all that the toolkit reads of `input/config` is there and of the types it expects."""
    if not re.fullmatch(r"\d{1,3}", level := os.environ.get(params.LOG_LEVEL_ENV, "20"), re.ASCII):
        raise ConfigError(f"{params.LOG_LEVEL_ENV} must be a whole number such as 20, not {_shown(level)}")
    _check_hyperparameters(paths.hyperparameters)
    _check_hosts(paths.resource_config)
    for name, channel in _object(paths.input_data_config).items():
        _check_variable(name, f"{paths.input_data_config}: the channel")
        if not isinstance(channel, dict):
            raise _wrong(paths.input_data_config, f"the channel {_shown(name)} must be an object")


def _check_hyperparameters(path: Path) -> None:
    for name, text in _object(path).items():
        _check_variable(name, f"{path}: the hyperparameter")
        value = _decoded(path, name, text)
        if name in _TEXTS and not isinstance(value, str):
            raise _wrong(path, f"{name} must be text")
        if name == params.S3_OUTPUT_LOCATION_PARAM and not str(value).startswith(("s3://", "file://")):
            raise _wrong(path, f"{name} must be an address such as s3://bucket/folder")
        if name == params.LOG_LEVEL_PARAM and type(value) is not int:
            raise _wrong(path, f"{name} must be a whole number such as 20")
        try:
            _check_plain(mapping.to_cmd_args({name: value}))
        except ValueError as error:
            raise _wrong(path, f"the value of {_shown(name)} {error}") from None


def _decoded(path: Path, name: str, text: object) -> object:
    """A hyperparameter's value as the toolkit understands it: text that is JSON is what it says."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except RecursionError:
        raise _wrong(path, f"the value of {_shown(name)} is nested too deeply") from None
    except ValueError:
        return text


def _check_hosts(path: Path) -> None:
    config = _object(path)
    hosts, current = config.get("hosts"), config.get("current_host")
    if not (isinstance(hosts, list) and hosts and all(isinstance(host, str) and host for host in hosts)):
        raise _wrong(path, "hosts must be a list of one name or more")
    if len(set(hosts)) != len(hosts):
        raise _wrong(path, "hosts names one of them twice")
    if current not in hosts:
        raise _wrong(path, "current_host must be one of hosts")
    for host in hosts:
        _check_variable(host, f"{path}: the host")
    for member in ("network_interface_name", "current_instance_type", "current_group_name"):
        if not isinstance(config.get(member, "-"), str):
            raise _wrong(path, f"{member} must be text")
    groups = config.get("instance_groups", [])
    if not (isinstance(groups, list) and all(_is_group(group) for group in groups)):
        raise _wrong(path, "instance_groups must be a list of objects with instance_group_name and hosts")


def _is_group(group: object) -> bool:
    return (
        isinstance(group, dict)
        and isinstance(group.get("instance_group_name"), str)
        and isinstance(group.get("hosts"), list)
    )


def _object(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ConfigError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", MOUNTS) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {describe(error)}", MOUNTS) from None
    except (ValueError, RecursionError):
        raise _wrong(path, "it is damaged: this is no JSON") from None
    if not isinstance(value, dict):
        raise _wrong(path, "it must hold an object of JSON")
    return value


def _check_variable(name: str, what: str) -> None:
    """Names end as those of environment variables."""
    try:
        _check_plain([name])
        if not name or "=" in name:
            raise ValueError("is empty" if not name else "holds a =")
    except ValueError as error:
        raise ConfigError(f"{what} {_shown(name)} {error}") from None


def _check_plain(words: Iterable[str]) -> None:
    """Raises ValueError for what cannot be an argument of a program."""
    for word in words:
        if "\0" in word:
            raise ValueError("holds a NUL character")
        if not word.isascii() and any("\ud800" <= char <= "\udfff" for char in word):
            raise ValueError("is no Unicode text")


def _shown(name: str) -> str:
    return repr(visible(name)[:_SHOWN])


def _wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path}: {what}")
