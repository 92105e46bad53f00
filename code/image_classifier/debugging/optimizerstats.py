"""What an optimiser is about to do: its rates, the parameters that it has and has not, and what is in the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def optimizer_statistics(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """Of a torch.optim.Optimizer.

    Returns:
        lr_min, lr_max over its groups; strangers: trained parameters with two dimensions or more that it has not got;
        trained: all of these; without_gradient: those of them that no gradient reaches; decayed: biases and parameters
        of norms that it decays; decay_max, the largest weight decay of a filter or matrix; updates, of the weights in
        one step (LBFGS makes several).
    """
    groups = optimizer.param_groups
    rates = [float(group.get("lr", 0.0)) for group in groups]
    own = {id(parameter) for group in groups for parameter in group["params"]}
    trained = [each for each in model.parameters() if each.requires_grad and each.ndim > 1]
    decaying = {id(p) for group in groups if group.get("weight_decay", 0) for p in group["params"]}
    of_norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    thin = {id(p) for p in model.parameters() if p.ndim < 2} | of_norms
    decays = [float(group.get("weight_decay", 0.0)) for group in groups if any(p.ndim > 1 for p in group["params"])]
    return {
        "lr_min": min(rates, default=0.0),
        "lr_max": max(rates, default=0.0),
        "trained": float(len(trained)),
        "strangers": float(sum(id(each) not in own for each in trained)),
        "without_gradient": float(sum(each.grad is None for each in trained)),
        "decayed": float(len(thin & decaying)),
        "decay_max": max(decays, default=0.0),
        "updates": max((float(group.get("max_iter", 1)) for group in groups), default=1.0),
    }


class FreshGradient:
    """How much of a gradient was there before this step's backward passes: what a missing zero_grad leaves.

    A hook on one parameter, the last matrix or filter that the optimiser has, sums what the backward passes give. What
    the optimiser then gets may be a multiple of that sum (a scaled loss, clipping); what points elsewhere is stale.

    Args:
        wanted: whether the step that is under way is looked at.
    """

    def __init__(self, model: nn.Module, optimizer: Any, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._sum: torch.Tensor | None = None
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1 and id(p) in own]
        self._parameter = matrices[-1] if matrices else None
        self.handles = [] if self._parameter is None else [self._parameter.register_hook(self._add)]  # type: ignore[no-untyped-call]

    def stale(self) -> torch.Tensor | None:
        """The share of the gradient, 0..1 of its norm, that the step's backward passes do not explain; None when they
        were not seen, or several processes share their gradients."""
        fresh, self._sum = self._sum, None
        gradient = None if self._parameter is None else self._parameter.grad
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if fresh is None or gradient is None or several:
            return None
        given, seen = gradient.detach().flatten().float(), fresh.flatten().float()
        along = (given @ seen) / (seen @ seen).clamp(min=1e-30)
        share: torch.Tensor = (given - along * seen).norm() / given.norm().clamp(min=1e-30)
        return share

    def _add(self, gradient: torch.Tensor) -> None:
        if self._wanted():
            fresh, before = gradient.detach(), None if self._parameter is None else self._parameter.grad
            if self._sum is None or before is None:  # what an earlier pass gave has been dropped
                self._sum = fresh.clone()
            else:
                self._sum = fresh + self._sum * (before.abs().amax() > 0)  # has been set to zero
