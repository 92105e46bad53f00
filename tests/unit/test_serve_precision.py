"""The setting `precision` under [serve] reaches the server wherever it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_classifier.cli import settings
from image_classifier.contract.endpoint import PRECISION_VARIABLE, PRECISIONS, precision_of, ready_engine, ready_line
from image_classifier.contract.errors import ConfigError
from image_classifier.launch import docker
from image_classifier.launch.process import Interrupts, follow
from image_classifier.launch.runs import create_run
from image_classifier.serving import entry


def test_it_comes_from_flag_file_or_environment(tmp_path: Path) -> None:
    file = tmp_path / "deploy.toml"
    file.write_text('[serve]\nprecision = "bfloat16"\n')
    assert settings.load({}, environ={}).serve.precision == "auto"
    assert settings.load({}, file=file, environ={}).serve.precision == "bfloat16"
    assert settings.load({}, file=file, environ={PRECISION_VARIABLE: "int8"}).serve.precision == "int8"
    flag = {"serve.precision": "float32"}
    assert settings.load(flag, file=file, environ={PRECISION_VARIABLE: "int8"}).serve.precision == "float32"
    file.write_text('[serve]\nprecision = "int4"\n')
    with pytest.raises(ConfigError, match=r"deploy.toml line 2: .*int4"):
        settings.load({}, file=file, environ={})
    assert settings.variable("serve.precision") == PRECISION_VARIABLE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_container_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A program in the place of Docker's client that shows what it is called with."""
    program, images = tmp_path / "bin" / "docker", tmp_path / "images.json"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nif [ "$1" = run ]; then echo "$@"; fi\n')
    program.chmod(0o755)
    images.write_text('{"serve": {"image": "ours:1"}}')
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(docker, "IMAGES_FILE", images)
    run = create_run(tmp_path / "runs", "serve", data="")
    started = docker.start_server(run, host="127.0.0.1", port=28_123, precision=precision)
    with started as job, Interrupts() as interrupts:
        follow(job, lambda line: None, interrupts)
    assert f"--env={PRECISION_VARIABLE}={precision} " in run.log.read_text()


def test_a_wrong_one_is_an_error_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PRECISION_VARIABLE, "int4")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert entry.main([]) == 2
    assert capsys.readouterr().err.startswith(f"error: {PRECISION_VARIABLE} must be one of auto, float32")


def test_the_ready_line_names_engine_and_format() -> None:
    line = ready_line(url="http://127.0.0.1:8080", model="3f2a", engine="openvino/int8", workers=2, startup_s=1.0)
    assert ready_engine(line) == "openvino/int8"
    assert precision_of(ready_engine(line)) == "int8"
    assert ready_engine("ready for anything") == ""
