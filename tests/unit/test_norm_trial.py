"""A training uses our kernels where they are right and faster, and none fails for want of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.kernel_stand_in import PROCESSORS, KernelStandIn
from tests.unit.test_fused_norms import network
from tests.unit.test_training_loop import CONFIG, pictures, training

from image_classifier.training import norm_trial
from image_classifier.training.cuda_kernels import Launch
from image_classifier.training.fused_norms import KERNELS, FusedNorms
from image_classifier.training.loop import norms_by_torch
from image_classifier.training.norm_trial import fuse_norms, tried, wants_fused_norms, wrong_numbers
from image_classifier.vision.resnet import Bottleneck, ResNet, end_layer

CPU = torch.device("cpu")
SMALL = ((3, 64, 5, 7), (2, 128, 3, 3))
TIMED = {"relu": (2, 64, 4, 4), "add_relu": (2, 64, 4, 4)}


def set_seconds(monkeypatch: pytest.MonkeyPatch, *, ours: float, theirs: float) -> None:
    each = [[0.0, seconds] * (len(TIMED) * norm_trial.TRIES) for seconds in (ours, theirs)]
    clock = itertools.chain.from_iterable(each)
    monkeypatch.setattr(norm_trial, "time", SimpleNamespace(perf_counter=lambda: next(clock)))


def trial(make: Callable[[torch.device], FusedNorms]) -> FusedNorms | None:
    return tried(CPU, make=make, shapes=SMALL, timed=TIMED, wait=lambda: None)


def test_right_and_fast_kernels_are_used(
    fused: FusedNorms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    set_seconds(monkeypatch, ours=0.01, theirs=0.02)
    state = torch.get_rng_state()
    assert trial(lambda _: fused) is fused
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.messages == ["two large batch norms: 8.00 ms by torch, 4.00 ms by our kernels"]


def test_the_trial_takes_no_time_for_imports() -> None:
    """A gradient that is given to torch.autograd.grad makes it import 500 modules: seconds where storage is slow."""
    script = """
import sys, torch
from image_classifier.training import norm_trial
case = norm_trial.random_case("add_relu", (2, 64, 3, 3), torch.device("cpu"))
before = set(sys.modules)
y, gradients = case.passes(norm_trial.end_layer)
assert [each.shape for each in gradients] == [each.shape for each in case.inputs]
print(len(set(sys.modules) - before))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert int(found.stdout) < 10


def test_slow_kernels_are_not_used(
    fused: FusedNorms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    set_seconds(monkeypatch, ours=0.02, theirs=0.01)
    assert trial(lambda _: fused) is None
    assert caplog.messages == ["two large batch norms: 4.00 ms by torch, 8.00 ms by our kernels"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_may_be_left_out(kernels: KernelStandIn, caplog: pytest.LogCaptureFixture, kernel: str) -> None:
    def run(launches: Sequence[Launch]) -> None:
        kernels([launch for launch in launches if launch.kernel != kernel])

    assert trial(lambda _: FusedNorms(run, CPU, PROCESSORS)) is None
    assert caplog.messages[0].startswith("batch norms are left to torch: our kernels do not compute what it does (")


def test_a_row_that_is_missed_is_found(kernels: KernelStandIn) -> None:
    def run(launches: Sequence[Launch]) -> None:
        for launch in launches:
            *others, number, channels = launch.arguments
            fewer = launch.kernel.startswith(("norm_statistics", "norm_reduce"))
            assert isinstance(number, int)
            kernels([replace(launch, arguments=(*others, number - 1, channels)) if fewer else launch])

    assert wrong_numbers(FusedNorms(run, CPU, PROCESSORS), [(9, 64, 31, 33)])


def test_kernels_that_cannot_be_had_only_warn(caplog: pytest.LogCaptureFixture) -> None:
    def without_bindings(_: torch.device) -> FusedNorms:
        raise ModuleNotFoundError("No module named 'cuda'")

    def without_code(_: torch.device) -> FusedNorms:
        raise RuntimeError("norm_kernels.cu is not compiled for sm_42\nand much more")

    assert trial(without_bindings) is None
    assert trial(without_code) is None
    assert caplog.messages == [
        "batch norms are left to torch: ModuleNotFoundError: No module named 'cuda'",
        "batch norms are left to torch: RuntimeError: norm_kernels.cu is not compiled for sm_42",
    ]


def test_they_are_tried_where_a_whole_network_trains_in_bf16_on_a_gpu(
    tmp_path: Path, fused: FusedNorms, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.model = network()
    job.setup = replace(job.setup, device=torch.device("cuda"), bf16=True)
    assert wants_fused_norms(job)
    monkeypatch.setattr(norm_trial, "tried", lambda _: fused)
    fuse_norms(job)
    assert job.model._end is fused
    job.config = CONFIG.replace(fused_norms="off")
    assert not wants_fused_norms(job)
    job.config = CONFIG.replace(cuda_graph="off")  # launched one by one they take the host longer
    assert not wants_fused_norms(job)
    job.config = CONFIG.replace(fine_tune="head")
    assert not wants_fused_norms(job)
    job.config = CONFIG
    job.setup = replace(job.setup, bf16=False)
    assert not wants_fused_norms(job)
    job.setup = replace(job.setup, device=CPU, bf16=True)
    assert not wants_fused_norms(job)
    fuse_norms(job)


def test_where_steps_are_not_replayed_after_all_layers_end_by_torch(tmp_path: Path, fused: FusedNorms) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.model = network()
    job.model.end_layers_by(fused)
    norms_by_torch(job)
    ends = [module._end for module in job.model.modules() if isinstance(module, (ResNet, Bottleneck))]
    assert len(ends) == 17
    assert all(end is end_layer for end in ends)
