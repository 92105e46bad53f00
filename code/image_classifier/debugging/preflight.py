"""What can be known of a training before its first step: a few steps on a copy of the network, which is thrown away.

Nothing of the training changes: neither weights, statistics of batch norms, gradients nor random states. What is found
goes to `setup.json` (JobFacts.preflight), where the rules of `rules/before_start.py` read it, live and afterwards.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.contract.errors import describe
from image_classifier.debugging.fresh_weights import fresh_layers
from image_classifier.debugging.optimizerstats import NORMS
from image_classifier.debugging.outputstats import Norm
from image_classifier.debugging.pairs import are_classes
from image_classifier.debugging.tensorstats import unwrap
from image_classifier.debugging.uncompiled import uncompiled

IMAGES = 8  # that the copy is trained on; of the others only the inputs' statistics are taken
COMPARED = 4  # images that both modes are asked of
FEWEST, MOST = 3, 12  # steps at each rate; by the third, what starts behind a zero has got a gradient
MOST_WITHOUT_NORMS = 60  # such networks begin more slowly
LONGEST_S = 60.0  # of all steps; what took longer is not judged
RATES = (1e-3, 1e-2)  # of Adam, one after the other from the same weights: what small and what large networks need
HALF = 0.5  # of the first loss: the copy has plainly learned the batch
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Found = dict[str, Any]  # of finite numbers, texts and lists: what JSON has
DROPS = (nn.modules.dropout._DropoutNd,)


def look_ahead(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    criterion: Criterion = F.cross_entropy,
    *,
    plain: torch.Tensor | None = None,
    whole: nn.Module | None = None,
    bf16: bool = False,
) -> Found:
    """Looks at a network and a batch. Raises what cannot be copied; what fails in a part is told there.

    Args:
        model: compiled, wrapped or bare, in the modes it trains in.
        inputs: (n, ...) float on the model's device, n of two or more; best of several classes.
        labels: (n,) int64 of classes, or what the criterion takes.
        criterion: outputs and labels -> scalar.
        plain: the same inputs without augmentation.
        whole: the network, where `model` is only the part of it that trains.
        bf16: autocast, as the training does.

    Returns:
        images: n; and part -> what was found, or {"failed": why}:
        initial: loss, of the copy's first step; cross_entropy, of the same outputs, where the labels are classes;
            columns, of the outputs.
        one_batch: first and best loss, None where not finite; steps and rate at which the best came; distinct labels;
            cut, where the time was up.
        gradients: trained filters and matrices, and the names of those that no step gave a gradient other than 0.
        modes: difference of the outputs in training and in evaluation mode, over their deviation; norms, batch norms
            used more than once (several).
        inputs: how far the first batch norm's inputs lie from its running statistics, as given and with the channels
            reversed.
        augmentation: shift and stretch of the inputs' channels, of those that differ most.
        frozen: filters and matrices that do not train, and the names of those that look untrained.
    """
    bare = unwrap(model)
    images, targets = inputs[:IMAGES], labels[:IMAGES]
    parts: Mapping[str, Callable[[nn.Module], Found]] = {
        "batch": lambda copied: _overfit(copied, images, targets, criterion, bf16=bf16),
        "modes": lambda copied: {"modes": _modes(copied, inputs[:COMPARED])},
        "inputs": lambda copied: {"inputs": _first_norm(copied, inputs)},
        "augmentation": lambda _: {"augmentation": {} if plain is None else _change(plain, inputs)},
        "frozen": lambda _: {"frozen": fresh_layers(unwrap(whole or model))},
    }
    found: Found = {"images": len(inputs)}
    with _undisturbed(inputs.device):
        copied = copy.deepcopy(bare)
        for module in copied.modules():
            if isinstance(module, DROPS):
                module.eval()  # noise is no part of the question
        for name, look in parts.items():
            try:
                found |= look(copied)
            except Exception as error:  # any: a network may want other inputs than these
                found |= {key: {"failed": describe(error)} for key in PARTS_OF.get(name, (name,))}
            copied.load_state_dict(bare.state_dict())
    return found


PARTS_OF = {"batch": ("initial", "one_batch", "gradients")}


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Every random state is afterwards what it was, and gradients are computed whatever goes on around."""
    plain, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(of_numpy)


def _overfit(
    network: nn.Module, images: torch.Tensor, targets: torch.Tensor, criterion: Criterion, *, bf16: bool
) -> Found:
    """Trains the copy on one batch, at each of RATES until that has plainly worked."""
    start = {name: value.clone() for name, value in network.state_dict().items()}
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    unreached = {name for name, p in trained.items() if p.ndim > 1}
    found: Found = {"gradients": {"trained": len(unreached)}}
    first, best = math.nan, {"best": math.inf, "steps": 0, "rate": 0.0}
    most = MOST if any(isinstance(module, NORMS) for module in network.modules()) else MOST_WITHOUT_NORMS
    begun = time.monotonic()
    for rate in RATES:
        network.load_state_dict(start)
        optimizer = uncompiled(torch.optim.Adam)(trained.values(), lr=rate)
        for step in range(most):
            if time.monotonic() - begun > LONGEST_S:
                best["cut"] = True
                break
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
                outputs = network(images)
            loss = criterion(outputs.float(), targets)
            value = float(loss.detach())
            if "initial" not in found:
                first, found["initial"] = value, _initial(value, outputs.detach().float(), targets)
            if value < best["best"]:
                best = {"best": value, "steps": step, "rate": rate}
            if step >= FEWEST and value < HALF * first and not unreached:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            unreached -= {n for n in unreached if (g := trained[n].grad) is not None and bool(g.count_nonzero())}
            optimizer.step()
        if best["best"] < HALF * first and not unreached:
            break
    kinds = len(torch.unique(targets)) if are_classes(targets) else len(targets)
    found["one_batch"] = {"first": _finite(first), **best, "best": _finite(best["best"]), "distinct": kinds}
    found["gradients"]["unreached"] = [name for name in trained if name in unreached]
    return found


def _initial(loss: float, outputs: torch.Tensor, targets: torch.Tensor) -> Found:
    found: Found = {"loss": _finite(loss)}
    if outputs.ndim == 2 and are_classes(targets) and 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]:
        found |= {"cross_entropy": _finite(float(F.cross_entropy(outputs, targets))), "columns": outputs.shape[1]}
    return found


@torch.no_grad()
def _modes(network: nn.Module, images: torch.Tensor) -> Found:
    """How far the outputs of the two modes lie apart, once the batch norms' statistics are those of this very batch."""
    norms = [m for m in network.modules() if isinstance(m, Norm) and m.training and m.track_running_stats]
    calls = dict.fromkeys(norms, 0)

    def take(norm: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        values = arguments[0].float()
        rest = [dim for dim in range(values.ndim) if dim != 1]
        var, mean = torch.var_mean(values, dim=rest, correction=0)
        norm.running_mean.copy_(mean)  # type: ignore[operator]
        norm.running_var.copy_(var)  # type: ignore[operator]
        calls[norm] += 1  # type: ignore[index]

    momenta = [norm.momentum for norm in norms]
    handles = [norm.register_forward_pre_hook(take) for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
    try:
        for norm in norms:
            norm.momentum = 0.0  # the hook has set what counts
        trained = network(images).float()
        for handle in handles:
            handle.remove()
        evaluated = network.eval()(images).float()
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    spread = float(trained.std(dim=0, correction=0).mean())
    difference = float((trained - evaluated).abs().max()) / max(spread, 1e-6 * float(trained.abs().max()), 1e-12)
    several = sum(count > 1 for count in calls.values())
    return {"difference": _finite(difference), "norms": len(norms), "several": several}


class _Seen(Exception):  # no error: the forward pass has shown what was asked for
    """The first batch norm has been reached."""


@torch.no_grad()
def _first_norm(network: nn.Module, inputs: torch.Tensor) -> Found:
    """How far a batch is from what the weights' first batch norm has seen before; empty where that knows nothing."""
    seen: dict[str, float] = {}

    def look(norm: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        mean, var = norm.running_mean, norm.running_var
        if mean is not None and bool(mean.count_nonzero()):  # type: ignore[operator]
            values = arguments[0].float()
            own_var, own = torch.var_mean(values, dim=[d for d in range(values.ndim) if d != 1], correction=0)
            far = (own - mean).abs() / (var + 1e-5).sqrt() + ((own_var + 1e-5) / (var + 1e-5)).log().abs()  # type: ignore[operator,union-attr]
            seen["far"] = float(far.median())
        raise _Seen

    norms = [module for module in network.modules() if isinstance(module, Norm)]
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    found: Found = {}
    try:
        for name, shown in {"as_given": inputs, "reversed": inputs.flip(1)}.items():
            if not norms or (name == "reversed" and (inputs.ndim != 4 or inputs.shape[1] != 3)):
                continue
            seen.clear()
            try:
                network(shown)
            except _Seen:
                found |= {name: _finite(seen["far"])} if seen else {}
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def _change(plain: torch.Tensor, augmented: torch.Tensor) -> Found:
    """How far augmentation moves the mean of a channel, in its deviations, and stretches its deviation."""
    rest = [dim for dim in range(plain.ndim) if dim != 1]
    std, mean = torch.std_mean(plain.float(), dim=rest)
    new_std, new_mean = torch.std_mean(augmented.float(), dim=rest)
    shift = (new_mean - mean) / std.clamp(min=1e-6)
    stretch = (new_std.clamp(min=1e-6) / std.clamp(min=1e-6)).log()
    farthest, widest = shift[shift.abs().argmax()], stretch[stretch.abs().argmax()]
    return {"shift": _finite(float(farthest)), "stretch": _finite(float(widest.exp()))}


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None
