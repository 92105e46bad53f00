"""What a network is, seen from outside: whether it bends anything, and what of its answers nobody trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

MATRICES = (nn.Linear, nn.modules.conv._ConvNd)
IMAGES = (
    8  # of which each is mixed with the negative of another: so far apart that an activation bends what lies between
)
Seen = list[tuple[nn.Module, torch.Tensor]]


@torch.no_grad()
def bend(network: nn.Module, inputs: torch.Tensor) -> float | None:
    """How far what enters the last filter or matrix is from an affine function of the inputs: 0 for layers without an
    activation between them.

    Of an input, the negative of another and what lies halfway between them: the distance of the answer to the last from
    the middle of the answers to the others, over the distance of these two. In evaluation mode; the modes are then set
    back to what they were.

    Args:
        inputs: (n, ...) float.

    Returns:
        None where there is no filter or matrix before another one, or fewer than two inputs.
    """
    matrices = [module for module in network.modules() if isinstance(module, MATRICES)]
    if len(matrices) < 2 or len(inputs) < 2:
        return None
    some = inputs[:IMAGES]
    far = -some.roll(1, 0)
    seen: Seen = []
    handles = [
        each.register_forward_pre_hook(lambda module, given: seen.append((module, given[0]))) for each in matrices
    ]
    modes = [(module, module.training) for module in network.modules()]
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices=devices), torch.autocast(inputs.device.type, enabled=False):
            network(torch.cat([some, far, (some + far) / 2]))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if len({id(module) for module, _ in seen}) < 2:
        return None
    last = seen[-1][1].detach().float()
    if len(last) % 3:
        return None
    one, other, between = last.chunk(3)
    distance = (one - other).norm()
    return float((between - (one + other) / 2).norm() / distance) if bool(distance > 0) else None


def untrained_leaves(outputs: torch.Tensor, known: Iterable[torch.Tensor]) -> int:
    """How many filters and matrices that outputs were computed with, and that ask for a gradient, are none of these.

    Walks what autograd keeps of the outputs; after the backward pass, too.
    """
    own = {id(each) for each in known}
    nodes, found = [outputs.grad_fn], set()
    visited = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor) and leaf.ndim > 1 and id(leaf) not in own:
            found.add(id(leaf))
        nodes += [before for before, _ in node.next_functions]
    return len(found)
