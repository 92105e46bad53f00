"""Several processes that train one model: what they tell each other. One process alone is a group of one.

A process is told its place by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as by torchrun. The main
process (rank 0) owns everything that is written: checkpoints, metrics, tensors, the model. The others, the followers,
train their share of each batch and wait while it validates. All of them take the same steps and end together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")
TIMEOUT = timedelta(hours=2)  # followers wait this long for a validation; a process that ended is noticed at once


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes of one training, seen from one of them.

    Args:
        rank: 0 .. size - 1.
        local_rank: place on this host, the number of its GPU.
        control: the gloo process group, for what is not on the device; None in a group of one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def exchange(self, item: Item) -> list[Item]:
        """Everybody's item, by rank."""
        if self.control is None:
            return [item]
        items: list[Item | None] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items  # type: ignore[return-value]  # all are filled

    def from_main(self, make: Callable[[], Item]) -> Item:
        """What the main process makes, or the exception it raises, in every process."""
        if self.control is None:
            return make()
        message: list[Item | Exception | None] = [None]
        if self.is_main:
            try:
                message = [make()]
            except Exception as error:  # any: the others would wait for ever
                message = [error]
        dist.broadcast_object_list(message, src=0, group=self.control)
        (made,) = message
        if isinstance(made, Exception):
            raise made
        return made  # type: ignore[return-value]  # what was sent

    def largest(self, value: int) -> int:
        """The largest of everybody's values."""
        if self.control is None:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return int(values)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of everybody's tensors, on the CPU."""
        total = values.cpu()
        if self.control is not None:
            total = total.clone()
            dist.all_reduce(total, group=self.control)
        return total

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model as the training step calls it: backward averages the gradients of all processes."""
        if self.control is None:
            return model
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def joined() -> Iterator[Group]:
    """The group that the environment describes, until the end of the block."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Group(rank=dist.get_rank(), size=size, local_rank=local_rank, control=control)
    finally:
        dist.destroy_process_group()
