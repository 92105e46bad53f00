"""A training on the CPU of a machine that has an NVIDIA GPU says why, with the versions that have to fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from image_classifier.training import setup
from image_classifier.training.unused_gpu import UnusedGpu, unused_gpu

MODULE = "NVRM version: NVIDIA UNIX {}  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc version 12.3.0\n"
TORCH = ("2.14.1+cu130", "13.0")


def machine(root: Path, driver: str = "", *, devices: int = 1, kind: str = "x86_64 Kernel Module") -> Path:
    (root / "dev").mkdir(parents=True)
    for number in range(devices):
        (root / "dev" / f"nvidia{number}").touch()
    if driver:
        (root / "proc" / "driver" / "nvidia").mkdir(parents=True)
        (root / "proc" / "driver" / "nvidia" / "version").write_text(MODULE.format(kind, driver))
    return root


def found(root: Path, cuda: tuple[str, str | None] = TORCH, **environ: str) -> UnusedGpu:
    told = unused_gpu(*cuda, root=root, environ={"PATH": ""} | environ)
    assert told is not None
    return told


def test_a_machine_without_a_gpu_is_told_nothing(tmp_path: Path) -> None:
    assert unused_gpu(*TORCH, root=machine(tmp_path, devices=0), environ={"PATH": ""}) is None


def test_a_driver_that_is_too_old_is_named_with_the_version_that_is_needed(tmp_path: Path) -> None:
    told = found(machine(tmp_path, "535.104.05"))
    assert told.sentence == (
        "training on the CPU, although this machine has an NVIDIA GPU: driver 535.104.05, "
        "torch 2.14.1+cu130 is built for CUDA 13.0, which needs driver 580 or newer"
    )
    assert "CUDA 12" in told.hint


@pytest.mark.parametrize("kind", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_a_driver_that_is_new_enough_is_asked_for_more(tmp_path: Path, kind: str) -> None:
    told = found(machine(tmp_path, "580.65.06", kind=kind))
    assert "driver 580.65.06" in told.sentence
    assert "nvidia-smi" in told.hint


def test_a_torch_without_cuda_is_named(tmp_path: Path) -> None:
    told = found(machine(tmp_path, "580.65.06"), ("2.14.1+cpu", None))
    assert told.sentence.endswith("torch 2.14.1+cpu is built without CUDA")


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_gpu_that_was_hidden_is_said_to_be(tmp_path: Path, value: str) -> None:
    told = found(machine(tmp_path, "580.65.06"), CUDA_VISIBLE_DEVICES=value)
    assert f"CUDA_VISIBLE_DEVICES={value!r} hides it" in told.sentence
    assert told.hint == "unset it"


def test_a_container_without_the_device_files_is_told_how_it_gets_them(tmp_path: Path) -> None:
    assert "--gpus all" in found(machine(tmp_path, "580.65.06", devices=0)).hint


def test_a_device_whose_driver_says_nothing_is_a_gpu_all_the_same(tmp_path: Path) -> None:
    assert "a driver that does not answer" in found(machine(tmp_path)).sentence


@pytest.mark.parametrize(("answer", "driver"), [("echo 470.57.02", "driver 470.57.02"), ("exit 9", "")])
def test_nvidia_smi_is_asked_where_the_module_says_nothing(tmp_path: Path, answer: str, driver: str) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    told = unused_gpu(*TORCH, root=machine(tmp_path / "root", devices=0), environ={"PATH": str(program.parent)})
    assert (driver in told.sentence) if told else driver == ""


def test_the_first_line_of_a_job_says_what_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = found(machine(tmp_path, "535.104.05"))
    monkeypatch.setattr(setup, "unused_gpu", lambda *versions: told)
    with caplog.at_level(logging.INFO):
        setup.tell_device("off", torch.device("cpu"))
    first, warning = caplog.messages
    assert first.startswith("device: CPU, ")
    assert first.endswith(", float32")
    assert warning == f"{told.sentence} ({told.hint})"
