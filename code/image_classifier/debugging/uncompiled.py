"""Optimisers of torch without its compiler, which they import for nothing where nothing is compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

_WRAPPED = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")


def uncompiled(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """An optimiser's class without what torch wraps around its methods for the sake of its compiler.

    The wrappers change nothing where nothing is compiled, but they import the compiler: a second for which a short job
    would wait in vain. A method that torch no longer wraps is taken as it is.
    """
    plain: Callable[..., Any] = inspect.unwrap(kind.step)

    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        with torch.no_grad():
            return plain(self, closure)  # type: ignore[no-any-return]

    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    return type(kind.__name__, (kind,), {**methods, "step": step})
