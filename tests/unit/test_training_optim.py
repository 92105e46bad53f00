"""The learning rate of every step, and what weight decay touches."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.debugging.uncompiled import uncompiled
from image_classifier.training.optim import learning_rate, make_optimizer, resume_optimizer, set_learning_rate

CONFIG = TrainConfig(weights="none", epochs=10, warmup_epochs=2.0, lr=0.4)


def test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero() -> None:
    rates = [learning_rate(CONFIG, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[30] == pytest.approx(0.2)
    assert 0 < rates[49] < 0.002
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[10:]))


def test_learning_rate_without_warmup_or_with_nothing_else() -> None:
    assert learning_rate(CONFIG.replace(warmup_epochs=0.0), 0, 5) == pytest.approx(0.4)
    assert learning_rate(CONFIG.replace(warmup_epochs=10.0), 49, 5) == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_batch_norms_and_frozen_parameters_are_left_out(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model, CONFIG.replace(optimizer=name, weight_decay=0.1))
    decayed, spared = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [torch.Size([4, 3, 3, 3])]
    assert len(spared["params"]) == 3
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_job_goes_on_with_fused_updates_whatever_its_checkpoint_asks_for(name: str) -> None:
    """One of before they were fused on a CPU asks for others. The state is the same, and so are the next steps."""
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, CONFIG.replace(optimizer=name))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group |= {"fused": None, "lr": 0.125}
    resumed = make_optimizer(model, CONFIG.replace(optimizer=name))
    resume_optimizer(resumed, state)
    assert [(group["fused"], group["lr"]) for group in resumed.param_groups] == [(True, 0.125)] * 2
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            torch.testing.assert_close(resumed.state[parameter][key], value)
    set_learning_rate(optimizer, 0.125)
    weights = []
    before = [each.detach().clone() for each in model.parameters()]
    for each in (optimizer, resumed):
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
        each.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.cat([each.flatten() for each in before]))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_parameter_is_updated_in_one_pass_on_a_cpu_too(name: str) -> None:
    """As torch's other updates do it, but for rounding."""
    config = CONFIG.replace(optimizer=name, weight_decay=0.1)
    found = []
    for fused in (True, False):
        torch.manual_seed(5)
        model = nn.Linear(6, 3)
        optimizer = make_optimizer(model, config)
        assert [group["fused"] for group in optimizer.param_groups] == [True, True]
        if not fused:
            kind, momentum = torch.optim.AdamW, {}
            if name == "sgd":
                kind, momentum = torch.optim.SGD, {"momentum": config.momentum, "nesterov": True}
            groups = [{name: group[name] for name in ("params", "weight_decay")} for group in optimizer.param_groups]
            optimizer = kind(groups, lr=config.lr, foreach=False, **momentum)
        set_learning_rate(optimizer, 0.01)
        for step in range(4):
            optimizer.zero_grad(set_to_none=True)
            model(torch.full((2, 6), float(step + 1))).square().sum().backward()
            optimizer.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_and_state_are_torchs_own_bit_for_bit(name: str) -> None:
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    config = CONFIG.replace(optimizer=name, weight_decay=0.1)
    models = []
    for plain in (False, True):
        torch.manual_seed(5)
        model = nn.Linear(6, 3)
        optimizer = make_optimizer(model, config)
        if plain:
            momentum = {} if name == "adamw" else {"momentum": config.momentum, "nesterov": True}
            optimizer = kind(optimizer.param_groups, lr=config.lr, **momentum)
        for step in range(6):
            if step == 3:
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad(set_to_none=True)
            model(torch.full((2, 6), float(step))).square().sum().backward()
            optimizer.step()
        models.append((model.weight.detach(), model.bias.detach()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*models, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_what_one_kernel_updates_as_on_a_gpu_is_torchs_own_bit_for_bit(kind: type[torch.optim.Optimizer]) -> None:
    models = []
    for made in (kind, uncompiled(kind)):
        torch.manual_seed(5)
        model = nn.Linear(6, 3)
        settings = {"momentum": 0.9, "nesterov": True} if kind is torch.optim.SGD else {}
        optimizer = made(model.parameters(), lr=0.01, weight_decay=0.1, fused=True, **settings)
        for step in range(4):
            optimizer.zero_grad(set_to_none=True)
            model(torch.full((2, 6), float(step))).square().sum().backward()
            optimizer.step()
        models.append((model.weight.detach(), model.bias.detach()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*models, strict=True))


def test_a_training_and_the_look_before_it_import_neither_torchs_compiler_nor_torchvision(
    tmp_path: Path,
) -> None:
    program = """
import sys, torch
import image_classifier.training.job
from pathlib import Path
from image_classifier.debugging.preflight import look_ahead
from image_classifier.debugging.trace import TraceWindow
from image_classifier.debugging.uncompiled import uncompiled
from image_classifier.contract.config import TrainConfig
from image_classifier.training.crops import random_view
from image_classifier.training.optim import make_optimizer
from image_classifier.vision.model import build_model, head
assert random_view(torch.zeros((8, 8, 3), dtype=torch.uint8), 4, "standard", 0).shape == (4, 4, 3)
layer = head(build_model(3))
optimizer = make_optimizer(layer, TrainConfig(weights="none"))
as_on_a_gpu = uncompiled(torch.optim.AdamW)(layer.parameters(), lr=0.0, fused=True)
window = TraceWindow(Path(sys.argv[1]), 1)
window.begin("train", 1, 0)
for step in range(8):
    window.mark("data_wait_s")
    loss = layer(torch.ones(2, 2048)).sum()
    loss.backward()
    optimizer.step()
    as_on_a_gpu.step()
    window.end_step(loss, loss, loss)
assert list(Path(sys.argv[1]).iterdir())
optimizer.load_state_dict(optimizer.state_dict())
assert look_ahead(layer, torch.randn(8, 2048), torch.arange(8) % 3)["one_batch"]["steps"] > 0
print([name for name in ("torch._dynamo", "torchvision", "sympy", "scipy", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
