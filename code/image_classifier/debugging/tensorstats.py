"""Statistics of gradients, weights and activations, all layers in a few kernels; the results stay on the device.

Nothing is registered on the network for longer than one extra forward pass, and gradients are read after the backward
pass. So compiled, copied (EMA), half-frozen and distributed networks are observed alike, and what is seen of the
gradients is what the optimiser uses: after the all-reduce, after accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from image_classifier.debugging.host_copy import ScalarCopies

DEAD_BELOW = 0.01  # a unit active in less than this share of images and positions is dead: the managed DeadRelu's 1 %
EPSILON = 1e-9  # the managed WeightUpdateRatio's
PROBE_VECTORS = 64  # the same of a batch without positions: of fewer, a unit that is seldom active looks dead
PROBE_IMAGES = 16  # of a batch go through the extra forward pass
PROBE_POSITIONS = 256  # of each unit's map are looked at; with 16 images, a share of 1 % is still 40 of them
ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
)

Scalars = dict[str, dict[str, torch.Tensor]]  # tensor's name -> statistic -> 0-d float32 on the device


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile's and DistributedDataParallel's wrappers."""
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    return model


class WeightWatch:
    """Gradients and weights of one optimiser step: make it after the backward pass, ask `after` the optimiser.

    Args:
        model: its trained parameters with two dimensions or more are watched.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        named = [
            (name, parameter)
            for name, parameter in unwrap(model).named_parameters()
            if parameter.requires_grad and parameter.ndim > 1
        ]
        self._names = [name for name, _ in named]
        self._parameters = [parameter.detach() for _, parameter in named]
        # a trained parameter that no gradient reaches has one of zero: that is a finding, and no reason to leave it out
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for _, p in named]
        self.gradients = norms(self._names, gradients)
        self._before = [parameter.clone() for parameter in self._parameters]
        self._weights = norms(self._names, self._before)

    @torch.no_grad()
    def look_at_gradients(self, model: nn.Module) -> None:
        """Reads the gradients again, where this was made before the backward pass; none when all have been dropped."""
        found = {name: p.grad for name, p in unwrap(model).named_parameters() if p.grad is not None}
        shown = [found.get(name, torch.zeros_like(p)) for name, p in zip(self._names, self._parameters, strict=True)]
        self.gradients = norms(self._names, [each.detach() for each in shown]) if found else {}

    @torch.no_grad()
    def after(self) -> Scalars:
        """The weights' statistics before the step, and `update_ratio` of the change since."""
        if self._names:
            torch._foreach_sub_(self._before, self._parameters)
            changes = torch._foreach_norm(self._before, 2, dtype=torch.float32)
            for name, change in zip(self._names, changes, strict=True):
                self._weights[name]["update_ratio"] = change / (self._weights[name]["l2"] + EPSILON)
        self._before = []
        return self._weights


@torch.no_grad()
def norms(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Scalars:
    """abs_mean, l2 and abs_max of each tensor."""
    if not tensors:
        return {}
    tensors = list(tensors)
    l1, l2, largest = (torch._foreach_norm(tensors, order, dtype=torch.float32) for order in (1, 2, float("inf")))
    return {
        name: {"abs_mean": l1[i] / tensors[i].numel(), "l2": l2[i], "abs_max": largest[i]}
        for i, name in enumerate(names)
    }


@torch.no_grad()
def activation_statistics(model: nn.Module, images: torch.Tensor, *, bf16: bool = False) -> Scalars:
    """Sends a few images through the network once more and looks at what enters and leaves its activations.

    The network is left as it was: batch norms compute as in training but keep their running statistics, nothing
    stays registered, and the random number generators go on where they were.

    Args:
        model: compiled or wrapped or not; runs uncompiled here.
        images: (n, 3, H, W); the first PROBE_IMAGES are used.

    Returns:
        `LAYER_output_CALL` -> input_std, abs_max, zero_share, dead_share, looks (images x positions that were looked
        at of each unit); in the order of the forward pass. All but abs_max are of a grid of at most PROBE_POSITIONS of
        a large map.
    """
    model = unwrap(model)
    found: Scalars = {}
    inputs: dict[nn.Module, torch.Tensor] = {}
    calls: dict[str, int] = {}
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)
    }

    def before(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs[module] = _mean_std(_sample(arguments[0]))  # before the call: an in-place activation overwrites it

    def after(module: nn.Module, _arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        name = names[module]
        call = calls.get(name, 0)
        calls[name] = call + 1
        deviation = {"input_std": inputs[module]} if output[:, :1].numel() > 1 else {}  # one number has none
        found[f"{name}_output_{call}"] = {**deviation, **_of_output(output)}

    handles = [module.register_forward_pre_hook(before) for module in names]
    handles += [module.register_forward_hook(after) for module in names]
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with (
            _frozen_running_statistics(model),
            torch.random.fork_rng(devices=devices),
            torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16),
        ):
            model(images[: PROBE_IMAGES if images.ndim > 2 else PROBE_VECTORS])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _sample(values: torch.Tensor) -> torch.Tensor:
    """Every so many positions of a (n, units, ...) tensor, in float32."""
    positions = values.shape[2:]
    if not positions:
        return values.float()
    stride = math.ceil((positions.numel() / PROBE_POSITIONS) ** (1 / len(positions)))
    every = slice(None)
    return values[(every, every, *[slice(None, None, stride)] * len(positions))].float()


def _as_numbers(compares: Callable[..., torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """1 where values compare so with 0, else 0: torch's way to bool and on to float32 takes eight times as long."""
    return compares(values, 0, out=torch.empty_like(values))


def _mean_std(values: torch.Tensor) -> torch.Tensor:
    """The standard deviation over images and positions, averaged over units: of the signal, whatever the biases."""
    rest = [dim for dim in range(values.ndim) if dim != 1]
    centred = values - values.mean(dim=rest, keepdim=True)
    return centred.square().mean(dim=rest).sqrt().mean()  # torch.std takes ten times as long on a CPU


def _of_output(output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of what leaves an activation; a unit is what lies along dimension 1."""
    sample = _sample(output)
    rest = [dim for dim in range(output.ndim) if dim != 1]
    active = _as_numbers(torch.gt, sample).mean(dim=rest)
    extremes = torch.aminmax(output.movedim(1, -1))  # as channels_last lies in memory: aminmax copies anything else
    return {
        "abs_max": torch.stack(extremes).float().abs().max(),
        "zero_share": _as_numbers(torch.eq, sample).mean(),
        "dead_share": (active < DEAD_BELOW).float().mean(),
        "looks": sample.new_full((), float(sample[:, 0].numel())),
    }


@contextmanager
def _frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode leave their running statistics alone; those in evaluation mode use them as ever."""
    tracking = [m for m in model.modules() if getattr(m, "track_running_stats", False) and m.training]
    for module in tracking:
        module.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True  # type: ignore[assignment]


@torch.no_grad()
def input_statistics(images: torch.Tensor) -> Scalars:
    """Mean and standard deviation by channel, and the number of images, of a (n, C, ...) batch."""
    rest = [dim for dim in range(images.ndim) if dim != 1]
    stds, means = torch.std_mean(images.float(), dim=rest, correction=0 if images.numel() == images.shape[1] else 1)
    count = means.new_full((), images.shape[0])
    return {str(i): {"mean": means[i], "std": stds[i], "images": count} for i in range(images.shape[1])}


def to_numbers(parts: Mapping[str, Scalars]) -> dict[str, dict[str, dict[str, float]]]:
    """The scalars of all parts as Python numbers, in one transfer from each device."""
    return named_numbers(parts, iter(ScalarCopies(flat_scalars(parts)).read()))


def flat_scalars(parts: Mapping[str, Scalars]) -> list[torch.Tensor]:
    """The scalars of all parts, in the order in which `named_numbers` takes them."""
    return [value for scalars in parts.values() for values in scalars.values() for value in values.values()]


def named_numbers(parts: Mapping[str, Scalars], numbers: Iterator[float]) -> dict[str, dict[str, dict[str, float]]]:
    """Numbers in the places of the scalars that `flat_scalars` took them from."""
    return {
        part: {name: {statistic: next(numbers) for statistic in values} for name, values in scalars.items()}
        for part, scalars in parts.items()
    }
