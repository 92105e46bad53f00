"""A training uses our kernels where they are right and faster, and none fails for want of them."""

from __future__ import annotations

import copy
import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.counted_norms import CountedNorms
from tests.kernel_stand_in import PROCESSORS, KernelStandIn
from tests.unit.test_fused_norms import network
from tests.unit.test_training_loop import CONFIG, pictures, training
from torch import Tensor, nn

from image_classifier.training import cpu_norms, norm_trial
from image_classifier.training.cpu_norms import CpuNorms
from image_classifier.training.cuda_kernels import Launch
from image_classifier.training.fused_norms import FusedNorms, NormKernels
from image_classifier.training.gpu_norms import KERNELS, GpuNorms
from image_classifier.training.loop import layers_by_torch
from image_classifier.training.norm_trial import SHAPES, Shapes, fuse_norms, tried, wants_fused_norms, wrong_numbers
from image_classifier.training.pointwise import by_products
from image_classifier.training.spatial import CpuConvolutions
from image_classifier.vision.resnet import Bottleneck, ResNet, convolve, end_layer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = Shapes(((3, 64, 5, 7), (2, 128, 3, 3)), {"relu": (2, 64, 4, 4), "add_relu": (2, 64, 4, 4)})


def set_seconds(monkeypatch: pytest.MonkeyPatch, *, ours: float, theirs: float) -> None:
    each = [[0.0, seconds] * (len(SMALL.timed) * norm_trial.TRIES) for seconds in (ours, theirs)]
    clock = itertools.chain.from_iterable(each)
    monkeypatch.setattr(norm_trial, "time", SimpleNamespace(perf_counter=lambda: next(clock)))


def trial(make: Callable[[torch.device], FusedNorms]) -> FusedNorms | None:
    return tried(CPU, make=make, shapes=SMALL)


def stand_in_trial(monkeypatch: pytest.MonkeyPatch, found: FusedNorms | None) -> list[tuple[torch.device, bool]]:
    """What trials are given from now on, which all come to the same."""
    given: list[tuple[torch.device, bool]] = []

    def tried(device: torch.device, *, bf16: bool) -> FusedNorms | None:
        given.append((device, bf16))
        return found

    monkeypatch.setattr(norm_trial, "tried", tried)
    return given


def test_right_and_fast_kernels_are_used(
    fused: FusedNorms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    set_seconds(monkeypatch, ours=0.01, theirs=0.02)
    state = torch.get_rng_state()
    assert trial(lambda _: fused) is fused
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.messages == ["two large layer ends: 8.00 ms by torch, 4.00 ms by our kernels"]


def test_right_kernels_are_used_where_nothing_is_timed(
    fused: FusedNorms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(norm_trial, "seconds", lambda *_: pytest.fail("something was timed"))
    assert tried(CPU, make=lambda _: fused, shapes=replace(SMALL, timed={})) is fused
    assert caplog.messages == ["batch norms are computed by our kernels"]
    assert SHAPES["cpu"].timed == {}


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
    assert caplog.messages == ["two large layer ends: 4.00 ms by torch, 8.00 ms by our kernels"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_may_be_left_out(kernels: KernelStandIn, caplog: pytest.LogCaptureFixture, kernel: str) -> None:
    def run(launches: Sequence[Launch]) -> None:
        kernels([launch for launch in launches if launch.kernel != kernel])

    assert trial(lambda _: FusedNorms(GpuNorms(run, PROCESSORS), CPU)) is None
    assert caplog.messages[0].startswith("batch norms are left to torch: our kernels do not compute what it does (")


@pytest.mark.parametrize("function", ["norm_forward", "norm_backward"])
def test_no_pass_of_a_cpus_may_be_left_out(
    cpu_library: ctypes.CDLL, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    class Without:
        norm_forward, norm_backward = cpu_library.norm_forward, cpu_library.norm_backward

    setattr(Without, function, staticmethod(lambda *_: None))
    assert trial(lambda _: FusedNorms(CpuNorms(Without()), CPU)) is None
    assert caplog.messages[0].startswith("batch norms are left to torch: our kernels do not compute what it does (")


class MissesARow(CountedNorms):
    """Computes everything, then once more what is summed, of all rows but the last."""

    def __init__(self, kernels: NormKernels, missed_in: str) -> None:
        super().__init__(kernels)
        self._missed_in = missed_in

    def forward(self, way: str, x: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, **filled: Any) -> None:
        whole = self._missed_in != "forward"
        super().forward(way, x, shortcut, norm if whole else copy.deepcopy(norm), **filled)
        if not whole:
            fewer = {name: but_the_last(each) if name == "y" else each for name, each in filled.items()}
            super().forward(way, but_the_last(x), shortcut, norm, **fewer)

    def backward(self, way: str, dy: Tensor, x: Tensor, **others: Any) -> None:
        super().backward(way, dy, x, **others)
        if self._missed_in == "backward":
            super().backward(way, but_the_last(dy), but_the_last(x), **others)


def but_the_last(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (1, C, N x H x W - 1, 1), in the same memory."""
    return x.detach().permute(0, 2, 3, 1).flatten(0, 2)[:-1].T[None, :, :, None]


@pytest.mark.parametrize(("missed_in", "shape"), [("forward", (3, 64, 5, 7)), ("backward", (9, 64, 31, 33))])
def test_a_row_that_is_missed_is_found(
    norm_kernels: CountedNorms, missed_in: str, shape: tuple[int, int, int, int]
) -> None:
    for dtype in norm_kernels.dtypes:
        assert wrong_numbers(FusedNorms(MissesARow(norm_kernels, missed_in), CPU), [shape], dtype)
        assert not wrong_numbers(FusedNorms(MissesARow(norm_kernels, "none"), CPU), [shape], dtype)


def test_a_cpus_are_right_in_all_that_its_trial_computes(cpu_library: ctypes.CDLL) -> None:
    for dtype in CpuNorms.dtypes:
        assert wrong_numbers(FusedNorms(CpuNorms(cpu_library), CPU), SHAPES["cpu"].checked, dtype) == ""


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
def test_a_cpus_are_tried_in_what_the_training_computes_in(
    cpu_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    seen: set[torch.dtype] = set()

    class Looked(CpuNorms):
        def forward(self, way: str, x: Tensor, *others: Any, **filled: Any) -> None:
            seen.add(x.dtype)
            super().forward(way, x, *others, **filled)

    monkeypatch.setattr(norm_trial, "load", lambda: cpu_library)
    monkeypatch.setattr(norm_trial, "CpuNorms", Looked)
    set_seconds(monkeypatch, ours=0.01, theirs=0.02)
    found = tried(CPU, bf16=bf16, shapes=SMALL)
    assert found is not None
    assert isinstance(found.kernels, Looked)
    assert seen == {torch.bfloat16 if bf16 else torch.float32}


def without_bindings(_: torch.device) -> FusedNorms:
    raise ModuleNotFoundError("No module named 'cuda'")


def without_code(_: torch.device) -> FusedNorms:
    raise RuntimeError("norm_kernels.cu is not compiled for sm_42\nand much more")


@pytest.mark.parametrize(("device", "level"), [(GPU, "WARNING"), (CPU, "INFO")], ids=["GPU", "CPU"])
def test_kernels_that_cannot_be_had_are_only_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, device: torch.device, level: str
) -> None:
    """A machine without gcc is nothing to warn of."""
    caplog.set_level("INFO")
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    assert tried(device, make=without_bindings) is None
    assert tried(device, make=without_code) is None
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (level, "batch norms are left to torch: ModuleNotFoundError: No module named 'cuda'"),
        (level, "batch norms are left to torch: RuntimeError: norm_kernels.cu is not compiled for sm_42"),
    ]
    assert len(emptied) == (2 if device == GPU else 0)


def test_a_cpu_that_they_are_not_for_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(cpu_norms, "level", lambda: None)
    assert tried(CPU) is None
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "batch norms are left to torch: RuntimeError: the kernels are for x86-64 with AVX2")
    ]


def test_they_are_tried_where_a_whole_network_trains_in_bf16_on_a_gpu(
    tmp_path: Path, fused: FusedNorms, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.model = network()
    job.setup = replace(job.setup, device=GPU, bf16=True)
    assert wants_fused_norms(job)
    given = stand_in_trial(monkeypatch, fused)
    fuse_norms(job)
    assert job.model._end is fused
    assert given == [(GPU, True)]
    job.config = CONFIG.replace(fused_norms="off")
    assert not wants_fused_norms(job)
    job.config = CONFIG.replace(cuda_graph="off")  # launched one by one they take the host longer
    assert not wants_fused_norms(job)
    job.config = CONFIG.replace(fine_tune="head")
    assert not wants_fused_norms(job)
    job.config = CONFIG
    job.setup = replace(job.setup, bf16=False)
    assert not wants_fused_norms(job)
    fuse_norms(job)
    assert len(given) == 1


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
def test_they_are_tried_where_a_whole_network_trains_on_a_cpu(
    tmp_path: Path, fused: FusedNorms, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.setup = replace(job.setup, device=CPU, bf16=bf16)
    given = stand_in_trial(monkeypatch, fused)
    assert not wants_fused_norms(job)  # another network
    fuse_norms(job)
    assert given == []
    job.model = network()
    assert wants_fused_norms(job)
    fuse_norms(job)
    assert job.model._end is fused
    assert given == [(CPU, bf16)]
    job.config = CONFIG.replace(cuda_graph="off")
    assert wants_fused_norms(job)
    job.config = CONFIG.replace(fused_norms="off")
    assert not wants_fused_norms(job)
    job.config = CONFIG.replace(fine_tune="head")
    assert not wants_fused_norms(job)


def test_a_network_ends_its_layers_by_torch_where_ours_are_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.model = network()
    stand_in_trial(monkeypatch, None)
    fuse_norms(job)
    assert job.model._end is end_layer


@pytest.mark.parametrize("norms", [True, False], ids=["with our kernels", "where they cannot be had"])
@pytest.mark.parametrize(
    ("device", "bf16", "setting", "products"),
    [
        (CPU, True, "auto", "always"),
        (CPU, False, "auto", "never"),
        (CPU, True, "off", "never"),
        (GPU, True, "auto", "with our kernels"),
        (GPU, True, "off", "never"),
    ],
    ids=["CPU in bf16", "CPU in float32", "CPU, off", "GPU", "GPU, off"],
)
def test_convolutions_are_products_in_bf16_on_a_gpu_only_with_our_kernels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    bf16: bool,
    setting: str,
    products: str,
    norms: bool,
) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.model, job.config = network(), CONFIG.replace(fused_norms=setting)
    job.setup = replace(job.setup, device=device, bf16=bf16)
    ours: Any = object()
    stand_in_trial(monkeypatch, ours if norms else None)
    fuse_norms(job)
    blocks = [module for module in job.model.modules() if isinstance(module, Bottleneck)]
    (computed_by,) = {block._convolve for block in [job.model, *blocks]}
    if products == "never" or (products == "with our kernels" and not norms):
        assert computed_by is convolve
    elif norms and device == CPU:
        assert isinstance(computed_by, CpuConvolutions)
    else:
        assert computed_by is by_products
    assert {block._end for block in blocks} == {ours if norms and setting == "auto" else end_layer}


def test_where_steps_are_not_replayed_after_all_layers_are_computed_by_torch(tmp_path: Path, fused: FusedNorms) -> None:
    job = training(pictures(tmp_path, 4), tmp_path / "checkpoints")
    job.model = network()
    job.model.end_layers_by(fused)
    job.model.convolve_by(by_products)
    layers_by_torch(job)
    ends = [module._end for module in job.model.modules() if isinstance(module, (ResNet, Bottleneck))]
    assert len(ends) == 17
    assert all(end is end_layer for end in ends)
    assert all(
        module._convolve is convolve for module in job.model.modules() if isinstance(module, (ResNet, Bottleneck))
    )
