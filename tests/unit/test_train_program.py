"""What the training container is given in `input/config`: looked at before the toolkit sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sagemaker_training import environment, mapping

from image_classifier.contract.errors import ConfigError
from image_classifier.contract.paths import MlPaths
from image_classifier.training.input_config import check_input
from image_classifier.training.train_program import main

HOSTS = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
FILES = ("hyperparameters.json", "resourceconfig.json", "inputdataconfig.json")
GROUP = {"instance_group_name": "homogeneousCluster", "instance_type": "ml.g5.xlarge", "hosts": ["algo-1"]}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlPaths:
    """A job as SageMaker prepares it."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    made = MlPaths(base=tmp_path)
    for folder in (made.config, made.output):
        folder.mkdir(parents=True)
    write(made.hyperparameters, {"lr": "0.1"})
    write(made.resource_config, HOSTS)
    write(made.input_data_config, {"train": {"TrainingInputMode": "File"}})
    return made


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_nothing_mounted_is_a_sentence_and_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert main([]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {tmp_path}/input/config/hyperparameters.json is missing"
    assert hint.startswith("hint: SageMaker writes it; `docker run` needs the job's input")
    assert not (tmp_path / "output").exists()


def test_the_program_itself_says_it_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "image_classifier.training.train_program"]
    done = subprocess.run(
        command, env=os.environ | {"SAGEMAKER_BASE_DIR": str(tmp_path)}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing"),
        (b"", "this is no JSON"),
        (b"{", "this is no JSON"),
        (b"\xff\xfe", "this is no JSON"),
        (b"\xef\xbb\xbf{}", "this is no JSON"),
        (b"[" * 100_000, "this is no JSON"),
        (b"[]", "must hold an object"),
        (b"null", "must hold an object"),
        (b'"text"', "must hold an object"),
        (b"0", "must hold an object"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    paths: MlPaths, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, sentence: str
) -> None:
    path = paths.config / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert main([]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert name in error
    assert sentence in error
    assert paths.failure.read_text().splitlines()[0] == error.removeprefix("error: ")


def test_a_folder_in_place_of_a_file_is_named(paths: MlPaths) -> None:
    paths.resource_config.unlink()
    paths.resource_config.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        check_input(paths)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "hosts must be a list"),
        ({"hosts": [], "current_host": "algo-1"}, "hosts must be a list"),
        ({"hosts": "algo-1", "current_host": "algo-1"}, "hosts must be a list"),
        ({"hosts": [1], "current_host": 1}, "hosts must be a list"),
        ({"hosts": ["algo-1"]}, "current_host must be one of hosts"),
        ({"hosts": ["algo-1"], "current_host": None}, "current_host must be one of hosts"),
        ({"hosts": ["algo-1"], "current_host": ["algo-1"]}, "current_host must be one of hosts"),
        ({"hosts": ["algo-1"], "current_host": "algo-2"}, "current_host must be one of hosts"),
        ({"hosts": ["algo-1", "algo-1"], "current_host": "algo-1"}, "names one of them twice"),
        ({"hosts": ["a\0b"], "current_host": "a\0b"}, "holds a NUL character"),
        (HOSTS | {"network_interface_name": None}, "network_interface_name must be text"),
        (HOSTS | {"current_instance_type": 5}, "current_instance_type must be text"),
        (HOSTS | {"current_group_name": []}, "current_group_name must be text"),
        (HOSTS | {"instance_groups": {}}, "instance_groups must be a list"),
        (HOSTS | {"instance_groups": [{}]}, "instance_groups must be a list"),
        (HOSTS | {"instance_groups": [GROUP | {"hosts": "algo-1"}]}, "instance_groups must be a list"),
    ],
)
def test_hosts_of_the_wrong_type_are_a_sentence(paths: MlPaths, config: dict[str, Any], sentence: str) -> None:
    write(paths.resource_config, config)
    with pytest.raises(ConfigError, match=sentence):
        check_input(paths)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("", "1", "is empty"),
        ("a=b", "1", "holds a ="),
        ("a\0", "1", "holds a NUL character"),
        ("\ud800", "1", "is no Unicode text"),
        ("lr", "a\0b", "the value of 'lr' holds a NUL character"),
        ("lr", '"a\\u0000b"', "the value of 'lr' holds a NUL character"),
        ("lr", {"a": "b\0"}, "the value of 'lr' holds a NUL character"),
        ("lr", "\udcff", "the value of 'lr' is no Unicode text"),
        ("lr", "[" * 100_000, "nested too deeply"),
        ("sagemaker_program", "5", "sagemaker_program must be text"),
        ("sagemaker_submit_directory", ["s3://bucket"], "sagemaker_submit_directory must be text"),
        ("sagemaker_job_name", "20261126", "sagemaker_job_name must be text"),
        ("sagemaker_region", None, "sagemaker_region must be text"),
        ("sagemaker_s3_output", "http://bucket", "must be an address such as s3:"),
        ("sagemaker_container_log_level", "loud", "must be a whole number"),
    ],
)
def test_hyperparameters_that_cannot_reach_a_program_are_a_sentence(
    paths: MlPaths, name: str, value: object, sentence: str
) -> None:
    write(paths.hyperparameters, {name: value})
    with pytest.raises(ConfigError, match=sentence):
        check_input(paths)


@pytest.mark.parametrize("channels", [{"train": None}, {"train": []}, {"a=b": {}}, {"": {}}])
def test_channels_of_the_wrong_type_are_a_sentence(paths: MlPaths, channels: dict[str, Any]) -> None:
    write(paths.input_data_config, channels)
    with pytest.raises(ConfigError, match="channel"):
        check_input(paths)


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {},
        {"lr": "0.1", "batch_size": "64", "amp": "true"},
        {"lr": 0.1, "sizes": [1, 2], "deep": {"a": None}, "nothing": None},  # of a client that does not make them text
        {"lr": '"0.1"', "sagemaker_program": '"mine.py"', "sagemaker_container_log_level": "20"},  # as the SDK does
        {"sagemaker_program": "mine.py", "sagemaker_submit_directory": "s3://bucket/key", "ä": "ö", "big": "9" * 5000},
    ],
)
def test_what_passes_is_what_the_toolkit_can_read(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch, hyperparameters: dict[str, Any]
) -> None:
    config = HOSTS | {"instance_groups": [GROUP], "current_group_name": "homogeneousCluster"}
    write(paths.hyperparameters, hyperparameters)
    write(paths.resource_config, config)
    check_input(paths)
    for variable in ("CURRENT_HOST", "SAGEMAKER_JOB_NAME", "SAGEMAKER_REGION"):  # which it sets
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(environment, "hyperparameters_file_dir", str(paths.hyperparameters))
    channels: dict[str, Any] = {"train": {}}
    env = environment.Environment(config, channels)
    words = [*env.to_cmd_args(), *(f"{name}={value}" for name, value in mapping.to_env_vars(env.to_env_vars()).items())]
    assert not [word for word in words if "\0" in word.encode().decode()]


def test_no_folder_for_code_is_a_sentence(paths: MlPaths, capsys: pytest.CaptureFixture[str]) -> None:
    paths.code.write_text("in its place")
    assert main([]) == 4
    assert capsys.readouterr().err.startswith("error: the folder for code cannot be made: File exists: ")


def test_a_wrong_log_level_of_the_environment_is_a_sentence(paths: MlPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_CONTAINER_LOG_LEVEL", "loud")
    with pytest.raises(ConfigError, match="SAGEMAKER_CONTAINER_LOG_LEVEL must be a whole number"):
        check_input(paths)


def test_arguments_are_no_hyperparameters(paths: MlPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lr", "0.1"]) == 2
    assert capsys.readouterr().err.startswith("error: train takes no arguments: '--lr 0.1'")
