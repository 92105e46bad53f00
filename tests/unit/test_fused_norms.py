"""Our kernels compute what torch's layers do. There is no GPU here: their source is compiled as C++, and launched with
the very grids and arguments that a GPU gets."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import itertools
import mmap
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.kernel_stand_in import KernelStandIn
from tests.unit.test_training_loop import CONFIG, pictures, training
from torch import Tensor, nn

from image_classifier.training import norm_trial
from image_classifier.training.cuda_kernels import Launch, compiled
from image_classifier.training.fused_norms import (
    FINISHED,
    FINISHING,
    KERNELS,
    SOURCE,
    THREADS,
    WAYS,
    FusedNorms,
    backward_launches,
    forward_launches,
    grid,
    partials_size,
)
from image_classifier.training.loop import norms_by_torch
from image_classifier.training.norm_trial import errors, fuse_norms, tried, wants_fused_norms, wrong_numbers
from image_classifier.vision.model import build_model
from image_classifier.vision.resnet import Bottleneck, ResNet, end_layer

CPU = torch.device("cpu")
PROCESSORS = 3  # few: several blocks of several rows each, of small tensors
LAST = torch.channels_last
SHAPES = (
    (2, 64, 1, 1),  # as few rows as there can be: most threads have none
    (3, 64, 5, 7),  # fewer rows than a block sees at a time would take four of
    (9, 64, 31, 33),  # rows for all blocks, the last ones not for all threads
    (5, 128, 15, 15),
    (3, 256, 19, 23),
    (4, 2048, 7, 7),  # eight blocks along the channels
    (1, 2048, 1, 3),
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelStandIn:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the kernels with")
    return KernelStandIn(SOURCE, KERNELS, tmp_path_factory.mktemp("kernels"), compiler)


@pytest.fixture
def fused(kernels: KernelStandIn) -> FusedNorms:
    kernels.launched.clear()
    return FusedNorms(kernels, CPU, PROCESSORS)


def rows(*shape: int, seed: int = 0, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + mean
    return values.bfloat16().contiguous(memory_format=LAST)


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="there is no cuda.bindings to compile with")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_the_source_for_a_gpu(architecture: str) -> None:
    code = compiled(SOURCE, architecture)
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in KERNELS)


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="there is no cuda.bindings to compile with")
def test_an_error_in_the_source_is_told_in_a_line(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("nonsense;\n")
    with pytest.raises(RuntimeError, match=r"^wrong\.cu is not compiled for sm_90: wrong\.cu\(1\): error: .*$"):
        compiled(source, "sm_90")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_answers_statistics_and_gradients_are_right_to_the_last_bit_of_bf16(
    fused: FusedNorms, way: str, shape: tuple[int, int, int, int]
) -> None:
    found = errors(fused, way, shape)
    assert {name: error for name, error in found.items() if not error <= 1} == {}
    assert ("gradient of the shortcut" in found) == (way == "add_relu")


@pytest.mark.parametrize("way", WAYS)
def test_autograd_through_torchs_own_modules_comes_to_the_same(fused: FusedNorms, way: str) -> None:
    """Not our formulas but torch's, in float64. A ReLU's edge is met by none of these numbers."""
    shape = (4, 64, 9, 11)
    relu = None if way == "plain" else nn.ReLU()
    shortcut = rows(*shape, seed=1) if way == "add_relu" else None
    x, dy = rows(*shape, scale=2.0, mean=3.0), rows(*shape, seed=2)
    mine, theirs = nn.BatchNorm2d(64), nn.BatchNorm2d(64).double()
    for norm in (mine, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-2, 2, 64))
            norm.bias.copy_(torch.linspace(1, -1, 64))
    results = []
    for end, norm, dtype in ((fused, mine, torch.bfloat16), (end_layer, theirs, torch.float64)):
        given = [None if each is None else each.to(dtype).requires_grad_() for each in (x, shortcut)]
        y = end(norm, given[0], relu=relu, shortcut=given[1])
        sources = [each for each in (*given, norm.weight, norm.bias) if each is not None]
        results.append([y, *torch.autograd.grad(y, sources, dy.to(dtype)), *norm.buffers()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=2**-7, atol=1e-4)
    assert mine.num_batches_tracked == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_mean_of_many_deviations_costs_no_digits(fused: FusedNorms, way: str) -> None:
    """Of float32 sums of x and of its square, none would be left of the variance: 1e-7 of the mean's square."""
    x = torch.full((8, 64, 16, 16), 1000.0)
    x[:, :, ::4] += 4 * torch.randint(0, 2, (8, 64, 4, 16), generator=torch.Generator().manual_seed(0))
    x = x.bfloat16().contiguous(memory_format=LAST)
    norm = nn.BatchNorm2d(64, eps=1e-5)
    shortcut = torch.zeros_like(x) if way == "add_relu" else None
    y = fused(norm, x, relu=None if way == "plain" else nn.ReLU(), shortcut=shortcut)
    expected = nn.functional.batch_norm(x.double(), None, None, training=True)
    expected = expected if way == "plain" else expected.relu()
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=1e-3)
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * x.double().var((0, 2, 3)), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_comes_out_every_time_and_in_whatever_order_threads_run(
    fused: FusedNorms, kernels: KernelStandIn, way: str
) -> None:
    """A thread that read what another has not yet written would get something else in one of the orders."""
    x, dy = rows(3, 256, 9, 9).requires_grad_(), rows(3, 256, 9, 9, seed=1)
    shortcut = rows(3, 256, 9, 9, seed=2).requires_grad_() if way == "add_relu" else None
    relu = None if way == "plain" else nn.ReLU()
    found = []
    try:
        for backwards in (False, False, True):
            kernels.run_backwards(backwards)
            norm = nn.BatchNorm2d(256)
            y = fused(norm, x, relu=relu, shortcut=shortcut)
            sources = [each for each in (x, norm.weight, norm.bias, shortcut) if each is not None]
            found.append([y, *torch.autograd.grad(y, sources, dy), *norm.buffers()])
    finally:
        kernels.run_backwards(False)
    for first, *others in zip(*found, strict=True):
        assert all(torch.equal(first, other) for other in others)


class Fenced:
    """Tensors right before or right behind a page of memory that nobody may touch: the process ends where one does."""

    def __init__(self, *, behind: bool) -> None:
        self._behind = behind
        self._maps: list[tuple[mmap.mmap, int]] = []
        self._protect = ctypes.CDLL(None).mprotect
        self._protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def __call__(self, values: Tensor) -> Tensor:
        inside = values.permute(0, 2, 3, 1).contiguous() if values.ndim == 4 else values
        size = inside.numel() * inside.element_size()
        pages = -(-size // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        fence = whole.data_ptr() + (pages * mmap.PAGESIZE if self._behind else 0)
        assert self._protect(fence, mmap.PAGESIZE, 0) == 0
        self._maps.append((memory, fence))
        start = pages * mmap.PAGESIZE - size if self._behind else mmap.PAGESIZE
        placed = whole[start : start + size].view(inside.dtype).view(inside.shape)
        placed.copy_(inside)
        return placed.permute(0, 3, 1, 2) if values.ndim == 4 else placed


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_beside_the_tensors_is_read_or_written(
    kernels: KernelStandIn, way: str, shape: tuple[int, int, int, int], behind: bool
) -> None:
    """A GPU would end the training there, or write into what is another's."""
    fenced, channels = Fenced(behind=behind), shape[1]
    x, dy, y, dx = (fenced(rows(*shape, seed=seed)) for seed in range(4))
    shortcut, dshortcut = (fenced(rows(*shape)) if way == "add_relu" else None for _ in range(2))
    mask = fenced(torch.zeros(x.numel() // 8, dtype=torch.uint8)) if way == "add_relu" else None
    norm = nn.BatchNorm2d(channels)
    norm.weight, norm.bias = (nn.Parameter(fenced(each.detach())) for each in (norm.weight, norm.bias))
    norm.running_mean, norm.running_var = (fenced(each) for each in (norm.running_mean, norm.running_var))
    sizes = (4, channels), (partials_size(x, PROCESSORS),), (channels,), (channels,), (3, channels)
    stats, partials, dweight, dbias, coefficients = (fenced(torch.full(size, torch.nan)) for size in sizes)
    kernels(
        forward_launches(way, x, shortcut, norm, y=y, mask=mask, stats=stats, partials=partials, processors=PROCESSORS)
    )
    kernels(
        backward_launches(
            way,
            dy,
            x,
            mask=mask,
            stats=stats,
            weight=norm.weight,
            dx=dx,
            dshortcut=dshortcut,
            dweight=dweight,
            dbias=dbias,
            coefficients=coefficients,
            partials=partials,
            processors=PROCESSORS,
        )
    )
    assert all(each.isfinite().all() for each in (stats, partials, dweight, dbias, coefficients))


def test_halves_are_rounded_to_the_even_one(kernels: KernelStandIn) -> None:
    """As torch rounds: always up would be a drift."""
    x = torch.linspace(1, 2, 129)[:128].repeat(64, 1).T.reshape(1, 128, 1, 64).permute(0, 3, 1, 2)
    x = torch.cat([x, -x]).bfloat16().contiguous(memory_format=LAST)
    norm, y, partials = nn.BatchNorm2d(64), torch.empty_like(x), torch.empty(partials_size(x, PROCESSORS))
    stats = torch.zeros(4, 64)
    stats[2] = 1.0  # scale
    stats[3] = torch.tensor([2**-8, -(2**-8), 2**-9, 3 * 2**-9]).repeat(16)  # shift: half a step and less, and more
    launches = forward_launches(
        "plain", x, None, norm, y=y, mask=None, stats=stats, partials=partials, processors=PROCESSORS
    )
    kernels(launches[-1:])
    expected = (x.float() + stats[3][:, None, None]).bfloat16()
    assert torch.equal(y, expected)


def test_what_is_no_number_stays_none(fused: FusedNorms) -> None:
    """A training that diverges must be seen to."""
    for bad in (float("nan"), float("inf")):
        x = rows(2, 64, 4, 4)
        x[1, 5, 2, 3] = bad
        x.requires_grad_()
        y = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU())
        expected = nn.functional.batch_norm(x.detach().float(), None, None, training=True).relu()
        assert torch.equal(y.isnan(), expected.isnan())
        assert y[:, 5].isnan().all()
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx[:, 5].isnan().all()
        assert dx[:, 6].isfinite().all()


@pytest.mark.parametrize("processors", [1, 3, 108, 132, 148])
def test_blocks_fit_the_gpu_and_the_work(processors: int) -> None:
    sizes = itertools.product((2, 49, 147, 6272, 401_408, 1_605_632, 2**31), (64, 128, 256, 512, 1024, 2048))
    for number, channels in sizes:
        along, across = grid(number, channels, 2 * processors)
        lanes = THREADS if channels // 8 > THREADS else min(32, channels // 8)
        assert across * lanes * 8 == channels
        assert 1 <= along <= max(1, number)
        assert along == 1 or along * across <= 2 * processors
        assert channels % FINISHED == 0
        assert across <= 65_535
    assert FINISHING == FINISHED * 32


def bits(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(each.grad for each in model.parameters()), *(each.clone() for each in model.buffers())]


def network() -> ResNet:
    torch.manual_seed(1)
    model = build_model(5).to(memory_format=LAST).train()
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.2)  # so that there is something to see of a block's path
    return model


def test_a_network_learns_with_them_as_without(fused: FusedNorms, kernels: KernelStandIn) -> None:
    plain = network()
    mine, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)
    mine.end_layers_by(fused)
    assert list(mine.state_dict()) == list(plain.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = bits(plain, images), bits(mine, images)
    expected = bits(exact, images)
    assert len(kernels.launched) == 53 * 6
    assert kernels.launched.count("norm_apply_add_relu") == kernels.launched.count("norm_gradient_add_relu") == 16
    assert kernels.launched.count("norm_apply_plain") == 4

    def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
        ours, theirs = (torch.cat([each.double().flatten() for each in them]) for them in (some, others))
        return float((ours - theirs).norm() / theirs.norm())

    count = 1 + len(list(plain.parameters()))
    # Logits, gradients, what the norms keep: rounding to bf16 comes to a quarter of the gradients' length.
    for part in (slice(0, 1), slice(1, count), slice(count, None)):
        assert distance(found[part], expected[part]) < 1.2 * distance(rounded[part], expected[part]) + 1e-3


def test_another_end_is_given_the_layers_that_the_network_has() -> None:
    """Bit for bit, gradients too, in float32: shortcuts and ReLUs are where they were."""
    plain = network()
    mine = copy.deepcopy(plain)
    mine.end_layers_by(partial(end_layer))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)
    for found, expected in zip(bits(mine, images), bits(plain, images), strict=True):
        assert torch.equal(found, expected)


def test_a_copy_of_the_network_computes_with_the_same_kernels(fused: FusedNorms) -> None:
    model = network()
    model.end_layers_by(fused)
    assert copy.deepcopy(model)._end is fused
    assert copy.deepcopy(model).layer1[0]._end is fused


def test_nothing_in_the_network_is_other_than_before_without_them() -> None:
    images = torch.randn(4, 3, 32, 32)
    model = network()
    as_called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: as_called.append(name))
    model(images)
    assert sorted(set(as_called)) == sorted(name for name, _ in model.named_modules())
    assert as_called.count("layer1.0.relu") == 3


def test_hooks_are_called_with_them_too(fused: FusedNorms, kernels: KernelStandIn) -> None:
    model = network()
    model.end_layers_by(fused)
    called: list[str] = []
    for name in ("layer1.0.bn1", "layer1.0.downsample", "layer2.0.relu", "layer3.0.downsample.1"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model(torch.randn(4, 3, 32, 32).contiguous(memory_format=LAST))
    assert called.count("layer2.0.relu") == 3
    assert set(called) == {"layer1.0.bn1", "layer1.0.downsample", "layer2.0.relu", "layer3.0.downsample.1"}
    assert 0 < len(kernels.launched) < 53 * 3


def half_a_norm(change: Callable[[nn.BatchNorm2d], object], channels: int = 64) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    change(norm)
    return norm


UNSERVED = {
    "in evaluation mode": lambda: (nn.BatchNorm2d(64).eval(), rows(2, 64, 4, 4), nn.ReLU(), None),
    "float32": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4).float(), nn.ReLU(), None),
    "not channels_last": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4).contiguous(), nn.ReLU(), None),
    "few channels": lambda: (nn.BatchNorm2d(32), rows(2, 32, 4, 4), nn.ReLU(), None),
    "odd channels": lambda: (nn.BatchNorm2d(96), rows(2, 96, 4, 4), nn.ReLU(), None),
    "too many channels": lambda: (nn.BatchNorm2d(4096), rows(2, 4096, 2, 2), nn.ReLU(), None),
    "hook on the norm": lambda: (
        half_a_norm(lambda norm: norm.register_forward_hook(lambda *_: None)),
        rows(2, 64, 4, 4),
        nn.ReLU(),
        None,
    ),
    "pre-hook on the norm": lambda: (
        half_a_norm(lambda norm: norm.register_forward_pre_hook(lambda *_: None)),
        rows(2, 64, 4, 4),
        nn.ReLU(),
        None,
    ),
    "backward hook on the norm": lambda: (
        half_a_norm(lambda norm: norm.register_full_backward_hook(lambda *_: None)),
        rows(2, 64, 4, 4).requires_grad_(),
        nn.ReLU(),
        None,
    ),
    "no momentum": lambda: (nn.BatchNorm2d(64, momentum=None), rows(2, 64, 4, 4), nn.ReLU(), None),
    "no weight": lambda: (nn.BatchNorm2d(64, affine=False), rows(2, 64, 4, 4), nn.ReLU(), None),
    "no running statistics": lambda: (
        nn.BatchNorm2d(64, track_running_stats=False),
        rows(2, 64, 4, 4),
        nn.ReLU(),
        None,
    ),
    "shortcut without a ReLU": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4), None, rows(2, 64, 4, 4)),
    "shortcut in float32": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4), nn.ReLU(), rows(2, 64, 4, 4).float()),
    "shortcut not channels_last": lambda: (
        nn.BatchNorm2d(64),
        rows(2, 64, 4, 4),
        nn.ReLU(),
        rows(2, 64, 4, 4).contiguous(),
    ),
    "shortcut of one image": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4), nn.ReLU(), rows(1, 64, 4, 4)),
}


@pytest.mark.parametrize("what", UNSERVED)
def test_what_they_do_not_serve_is_left_to_torch(fused: FusedNorms, kernels: KernelStandIn, what: str) -> None:
    norm, x, relu, shortcut = UNSERVED[what]()
    other = copy.deepcopy(norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused(norm, x.clone(), relu=relu, shortcut=shortcut)
        expected = end_layer(other, x.clone(), relu=relu, shortcut=shortcut)
    assert torch.equal(found, expected)
    assert kernels.launched == []


def test_one_value_a_channel_is_refused_as_ever(fused: FusedNorms) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(nn.BatchNorm2d(64), rows(1, 64, 1, 1), relu=nn.ReLU())


def test_gradients_of_another_layout_or_type_are_taken(fused: FusedNorms) -> None:
    x = rows(2, 64, 4, 4).requires_grad_()
    y = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU())
    dy = rows(2, 64, 4, 4, seed=1)
    found = [
        torch.autograd.grad(y, x, given, retain_graph=True)[0]
        for given in (dy, dy.contiguous(), torch.cat([dy, dy])[:2])
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    (dx,) = torch.autograd.grad(y.mean((2, 3)).sum(), x)  # a gradient that lies in memory once for all pixels
    assert dx.shape == x.shape


def test_a_tensor_that_was_changed_meanwhile_is_noticed(fused: FusedNorms) -> None:
    norm, x = nn.BatchNorm2d(64), rows(2, 64, 4, 4)
    y = fused(norm, x, relu=nn.ReLU())
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


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
