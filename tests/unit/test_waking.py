"""A device's libraries are loaded while the job reads its files, and nothing of the training depends on it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
import torch

from image_classifier.contract.config import TrainConfig
from image_classifier.training import cuda_kernels, waking
from image_classifier.training.cuda_kernels import compiled
from image_classifier.training.gpu_norms import SOURCE
from image_classifier.training.waking import one_step, wake

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> tuple[list[torch.dtype], list[tuple[Path, str]]]:
    """The number formats in which a step was computed, and what was compiled, of a GPU that is not there."""
    steps: list[torch.dtype] = []
    made: list[tuple[Path, str]] = []
    monkeypatch.setattr(waking, "one_step", lambda _, dtype: steps.append(dtype))
    monkeypatch.setattr(waking, "use_bf16", lambda amp, _: amp != "off")
    monkeypatch.setattr(waking, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(waking, "compiled", lambda *what: made.append(what))
    return steps, made


@pytest.mark.parametrize(
    "config", [TrainConfig(fine_tune="head"), TrainConfig(fused_norms="off")], ids=["head", "norms by torch"]
)
def test_on_a_cpu_nothing_is_begun_that_the_job_will_not_use(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig
) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread was started"))
    wake(config, CPU)()


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(amp="off", cuda_graph="off")], ids=["bf16", "float32"])
def test_on_a_cpu_the_kernels_are_loaded_by_a_thread(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> None:
    steps, made = stand_in(monkeypatch)
    may_go_on, loaded_by = threading.Event(), []

    def load() -> None:
        may_go_on.wait(30)
        loaded_by.append(threading.current_thread().name)

    monkeypatch.setattr(waking.cpu_norms, "load", load)
    awake = wake(config, CPU)  # returns
    may_go_on.set()
    awake()
    assert loaded_by == ["waking the device"]
    assert (steps, made) == ([], [])


@pytest.mark.parametrize(
    ("config", "dtype", "kernels"),
    [
        (TrainConfig(), torch.bfloat16, [(SOURCE, "sm_90")]),
        (TrainConfig(fused_norms="off"), torch.bfloat16, []),
        (TrainConfig(cuda_graph="off"), torch.bfloat16, []),
        (TrainConfig(fine_tune="head"), torch.bfloat16, []),
        (TrainConfig(amp="off"), torch.float32, []),
    ],
    ids=["full", "norms by torch", "no graph", "head", "float32"],
)
def test_what_the_job_will_use_is_loaded_and_compiled_by_a_thread(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, dtype: torch.dtype, kernels: list[tuple[Path, str]]
) -> None:
    steps, made = stand_in(monkeypatch)
    wake(config, GPU)()
    assert (steps, made) == ([dtype], kernels)


def test_the_caller_waits_for_the_thread_only_when_it_asks_to(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _ = stand_in(monkeypatch)
    may_go_on = threading.Event()
    monkeypatch.setattr(waking, "architecture", lambda _: may_go_on.wait(30))
    awake = wake(TrainConfig(), GPU)  # returns
    may_go_on.set()
    awake()
    assert steps == [torch.bfloat16]


@pytest.mark.parametrize("device", [GPU, CPU], ids=str)
def test_what_fails_is_left_to_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: torch.device
) -> None:
    caplog.set_level(logging.DEBUG, waking.__name__)
    stand_in(monkeypatch)

    def broken(*_: object) -> None:
        raise RuntimeError("no driver, no compiler")

    monkeypatch.setattr(waking, "one_step", broken)
    monkeypatch.setattr(waking.cpu_norms, "load", broken)
    wake(TrainConfig(), device)()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", f"the {device.type} was not woken: RuntimeError: no driver, no compiler")
    ]


def test_the_step_changes_no_random_numbers() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one_step(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.rand(3), expected)


def test_a_source_is_compiled_once_also_by_two_threads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, made = threading.Event(), []

    def slowly(source: Path, architecture: str) -> bytes:
        made.append((source, architecture))
        begun.wait(30)
        return b"code"

    monkeypatch.setattr(cuda_kernels, "machine_code", slowly)
    monkeypatch.setattr(cuda_kernels, "_made", {})
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(compiled(SOURCE, "sm_90"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join()
    assert (made, found) == ([(SOURCE, "sm_90")], [b"code", b"code"])
    assert compiled(SOURCE, "sm_80") == b"code"
    assert made[1:] == [(SOURCE, "sm_80")]
