"""Which layers of a network our kernels compute, and that it learns with them as with torch's modules."""

from __future__ import annotations

import copy
import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from tests.counted_norms import CountedNorms
from tests.kernel_stand_in import rows
from torch import Tensor, nn

from image_classifier.training.cpu_norms import CpuNorms
from image_classifier.training.fused_norms import POOLED, FusedNorms
from image_classifier.vision.model import build_model
from image_classifier.vision.resnet import Bottleneck, ResNet, end_layer

LAST = torch.channels_last
ENDS = {"plain": 4, "relu": 33, "add_relu": 16}  # of the layers of a ResNet50
POOLED_ENDS = ENDS | {"relu": 32, POOLED: 1}  # in training
LAYERS = {f"{step} {way}": count for way, count in POOLED_ENDS.items() for step in ("forward", "backward")}


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


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    ours, theirs = (torch.cat([each.double().flatten() for each in them]) for them in (some, others))
    return float((ours - theirs).norm() / theirs.norm())


def test_a_network_learns_with_them_as_without(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    plain = network()
    mine, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)
    mine.end_layers_by(fused)
    assert list(mine.state_dict()) == list(plain.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = bits(plain, images), bits(mine, images)
    expected = bits(exact, images)
    assert Counter(norm_kernels.computed) == LAYERS
    count = 1 + len(list(plain.parameters()))
    # Logits, gradients, what the norms keep: rounding to bf16 comes to a quarter of the gradients' length. The logits
    # are few, and how they are rounded is chance: with AMX's convolutions ours were off by 1.3 times as much.
    for part, times in ((slice(0, 1), 2.0), (slice(1, count), 1.2), (slice(count, None), 1.2)):
        assert distance(found[part], expected[part]) < times * distance(rounded[part], expected[part]) + 1e-3


def test_a_network_learns_in_float32_with_a_cpus_as_without(cpu_library: ctypes.CDLL) -> None:
    plain = network()
    mine, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAST)
    kernels = CountedNorms(CpuNorms(cpu_library))
    mine.end_layers_by(FusedNorms(kernels, torch.device("cpu")))
    rounded, found, expected = bits(plain, images), bits(mine, images), bits(exact, images.double())
    assert Counter(kernels.computed) == LAYERS
    # A value that is rounded to the other side of a ReLU's edge moves all gradients before it.
    assert distance(found, expected) < 2 * distance(rounded, expected) + 1e-3


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


def test_hooks_are_called_with_them_too(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    model = network()
    model.end_layers_by(fused)
    called: list[str] = []
    for name in ("layer1.0.bn1", "layer1.0.downsample", "layer2.0.relu", "layer3.0.downsample.1"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model(torch.randn(4, 3, 32, 32).contiguous(memory_format=LAST))
    assert called.count("layer2.0.relu") == 3
    assert set(called) == {"layer1.0.bn1", "layer1.0.downsample", "layer2.0.relu", "layer3.0.downsample.1"}
    assert 0 < len(norm_kernels.computed) < 53


def half_a_norm(change: Callable[[nn.BatchNorm2d], object], channels: int = 64) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    change(norm)
    return norm


UNSERVED = {
    "in evaluation mode, of what has a gradient": lambda: (
        nn.BatchNorm2d(64).eval(),
        rows(2, 64, 4, 4),
        nn.ReLU(),
        None,
    ),
    "another type": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4).half(), nn.ReLU(), None),
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
    "shortcut in bf16": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4).float(), nn.ReLU(), rows(2, 64, 4, 4)),
    "shortcut not channels_last": lambda: (
        nn.BatchNorm2d(64),
        rows(2, 64, 4, 4),
        nn.ReLU(),
        rows(2, 64, 4, 4).contiguous(),
    ),
    "shortcut of one image": lambda: (nn.BatchNorm2d(64), rows(2, 64, 4, 4), nn.ReLU(), rows(1, 64, 4, 4)),
}


@pytest.mark.parametrize("what", UNSERVED)
def test_what_they_do_not_serve_is_left_to_torch(fused: FusedNorms, norm_kernels: CountedNorms, what: str) -> None:
    norm, x, relu, shortcut = UNSERVED[what]()
    other = copy.deepcopy(norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused(norm, x.clone(), relu=relu, shortcut=shortcut)
        expected = end_layer(other, x.clone(), relu=relu, shortcut=shortcut)
    assert torch.equal(found, expected)
    assert norm_kernels.computed == []


def test_one_value_a_channel_is_refused_as_ever(fused: FusedNorms) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(nn.BatchNorm2d(64), rows(1, 64, 1, 1), relu=nn.ReLU())


def test_only_a_cpus_serve_float32(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    y = fused(nn.BatchNorm2d(64), rows(2, 64, 4, 4, dtype=torch.float32), relu=nn.ReLU())
    assert y.dtype == torch.float32
    assert norm_kernels.computed == ["forward relu"] * (torch.float32 in norm_kernels.dtypes)


def test_gradients_of_another_layout_or_type_are_taken(fused: FusedNorms, norm_kernels: CountedNorms) -> None:
    for dtype in norm_kernels.dtypes:
        x = rows(2, 64, 4, 4, dtype=dtype).requires_grad_()
        y = fused(nn.BatchNorm2d(64), x, relu=nn.ReLU())
        dy = rows(2, 64, 4, 4, seed=1, dtype=dtype)
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
