"""What ends a layer in evaluation mode: a CPU's kernels compute it by the running statistics, where nothing has a
gradient."""

from __future__ import annotations

import copy
import ctypes
from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from tests.counted_norms import CountedNorms
from tests.kernel_stand_in import rows
from tests.unit.test_fused_norms import ENDS, LAST, distance, network
from tests.unit.test_norm_kernels import SHAPES, Fenced
from torch import Tensor, nn

from image_classifier.training.cpu_norms import CpuNorms
from image_classifier.training.fused_norms import WAYS, FusedNorms
from image_classifier.training.norm_library import LEVELS
from image_classifier.vision.resnet import end_layer

of_every_level = pytest.mark.parametrize("norm_kernels", LEVELS, indirect=True)


def trained_norm(channels: int) -> nn.BatchNorm2d:
    """In evaluation mode, with statistics as a training leaves them, and weights of both signs, one of them 0."""
    generator = torch.Generator().manual_seed(7)
    norm = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-2, 2, channels))[3] = 0.0
        norm.bias.copy_(torch.randn(channels, generator=generator))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.copy_(3 + torch.randn(channels, generator=generator))
        norm.running_var.copy_(4 * torch.rand(channels, generator=generator) + 0.1)
        norm.num_batches_tracked.fill_(17)
    return norm


def given(way: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, nn.ReLU | None, Tensor | None]:
    """x, and what follows the norm."""
    relu = None if way == "plain" else nn.ReLU()
    shortcut = rows(*shape, seed=1, dtype=dtype) if way == "add_relu" else None
    return rows(*shape, scale=2.0, mean=3.0, dtype=dtype), relu, shortcut


@of_every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_right_to_the_last_bit_and_the_norm_keeps_what_it_kept(
    fused: FusedNorms, norm_kernels: CountedNorms, way: str, shape: tuple[int, int, int, int]
) -> None:
    for dtype in norm_kernels.dtypes:
        norm = trained_norm(shape[1])
        x, relu, shortcut = given(way, *shape, dtype=dtype)
        before = [each.clone() for each in (*norm.state_dict().values(), x, x if shortcut is None else shortcut)]
        with torch.no_grad():
            y = fused(norm, x, relu=relu, shortcut=shortcut)
            wide = None if shortcut is None else shortcut.double()
            expected = end_layer(copy.deepcopy(norm).double(), x.double(), relu=relu, shortcut=wide)
        share = 1.01 * 2**-8 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(y.double(), expected, rtol=share, atol=2e-5)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=LAST)
        after = [*norm.state_dict().values(), x, x if shortcut is None else shortcut]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert norm_kernels.computed == [f"evaluate {way}"] * len(norm_kernels.dtypes)


@of_every_level
@pytest.mark.parametrize("behind", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_beside_the_tensors_is_read_or_written(
    norm_kernels: CountedNorms, monkeypatch: pytest.MonkeyPatch, way: str, behind: bool
) -> None:
    fenced = Fenced(behind=behind)
    for dtype in norm_kernels.dtypes:
        for shape in SHAPES:
            x, shortcut = (fenced(rows(*shape, seed=seed, dtype=dtype)) for seed in range(2))
            y = fenced(torch.full_like(x, torch.nan))
            norm = trained_norm(shape[1])
            norm.weight, norm.bias = (nn.Parameter(fenced(each.detach())) for each in (norm.weight, norm.bias))
            norm.running_mean, norm.running_var = (fenced(each) for each in (norm.running_mean, norm.running_var))
            made: list[Tensor] = []

            def fenced_stats(_: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
                made.append(fenced(torch.full(size, torch.nan, dtype=dtype)))  # noqa: B023  # within this round
                return made[-1]  # noqa: B023

            with monkeypatch.context() as patched:
                patched.setattr(Tensor, "new_empty", fenced_stats)
                norm_kernels.evaluate(way, x, shortcut if way == "add_relu" else None, norm, y=y)
            assert [each.shape for each in made] == [(4, shape[1])]
            assert y.isfinite().all()


@of_every_level
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_number_stays_none_and_stays_alone(fused: FusedNorms, norm_kernels: CountedNorms, way: str) -> None:
    for dtype in norm_kernels.dtypes:
        norm = trained_norm(64)
        assert norm.running_mean is not None
        norm.running_mean[9] = torch.nan
        x, relu, shortcut = given(way, 2, 64, 4, 4, dtype=dtype)
        x[1, 5, 2, 3] = torch.nan
        with torch.no_grad():
            y = fused(norm, x, relu=relu, shortcut=shortcut)
        none = torch.zeros(x.shape, dtype=torch.bool)
        none[1, 5, 2, 3] = none[:, 9] = True
        assert torch.equal(y.isnan(), none)
    assert norm_kernels.computed == [f"evaluate {way}"] * len(norm_kernels.dtypes)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS)
def test_where_gradients_are_off_a_cpus_compute_and_a_gpus_leave_it_to_torch(
    fused: FusedNorms, norm_kernels: CountedNorms, way: str, mode: type[AbstractContextManager[None]]
) -> None:
    norm = trained_norm(64)
    x, relu, shortcut = given(way, 2, 64, 4, 4)
    with mode():
        y = fused(norm, x.requires_grad_(), relu=relu, shortcut=shortcut)
        by_torch = end_layer(norm, x, relu=relu, shortcut=shortcut)
    assert norm_kernels.computed == ([f"evaluate {way}"] if norm_kernels.evaluates else [])
    if not norm_kernels.evaluates:
        assert torch.equal(y, by_torch)
    assert not y.requires_grad


@pytest.mark.parametrize("norm_kernels", ["CPU"], indirect=True)
def test_where_gradients_are_on_it_counts_whether_something_has_one(
    fused: FusedNorms, norm_kernels: CountedNorms
) -> None:
    norm = trained_norm(64).requires_grad_(False)
    x, relu, shortcut = given("add_relu", 2, 64, 4, 4)
    assert shortcut is not None
    fused(norm, x, relu=relu, shortcut=shortcut)
    assert norm_kernels.computed == ["evaluate add_relu"]
    for one in (x, shortcut, norm.weight, norm.bias):
        one.requires_grad_()
        y = fused(norm, x, relu=relu, shortcut=shortcut)
        (found,) = torch.autograd.grad(y.sum(), one)
        theirs = end_layer(norm, x, relu=relu, shortcut=shortcut)
        (expected,) = torch.autograd.grad(theirs.sum(), one)
        assert torch.equal(y, theirs)
        assert torch.equal(found, expected)
        one.requires_grad_(False)
    assert norm_kernels.computed == ["evaluate add_relu"]


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
def test_a_network_answers_with_them_as_without(cpu_library: ctypes.CDLL, bf16: bool) -> None:
    plain = network()
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)
    with torch.no_grad():
        for _ in range(20):
            plain(images)  # so that the norms keep what is near to these images' statistics
    plain.eval()
    mine, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    kernels = CountedNorms(CpuNorms(cpu_library))
    mine.end_layers_by(FusedNorms(kernels, torch.device("cpu")))
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            rounded, found = plain(images), mine(images)
        expected = exact(images.double())
    assert Counter(kernels.computed) == {f"evaluate {way}": count for way, count in ENDS.items()}
    # How a few logits are rounded is chance.
    assert distance([found], [expected]) < 2 * distance([rounded], [expected]) + (1e-3 if bf16 else 1e-6)
    assert distance([found], [expected]) < (0.05 if bf16 else 1e-5)
