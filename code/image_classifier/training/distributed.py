"""Several processes that train one model: what they tell each other. One process alone is a group of one.

A process is told its place by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as by torchrun. The main
process (rank 0) owns everything that is written: checkpoints, metrics, tensors, the model. The others, the followers,
train and validate their share of each batch. All of them take the same steps and end together.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch names no exports
from torch.nn.parallel import DistributedDataParallel

from image_classifier.contract.errors import JobError
from image_classifier.contract.paths import RESTARTS_VARIABLE
from image_classifier.training.stop import StopFlag

Item = TypeVar("Item")
log = logging.getLogger(__name__)
TIMEOUT = timedelta(
    hours=2
)  # followers wait this long for features and checkpoints; a process that ended is noticed at once
MEETING_TIMEOUT_S = 1800.0  # hosts start at different times: each copies its images first
MEETING_AGAIN_TIMEOUT_S = 120.0  # of processes that were there before and start again together
_TURN_S = 0.2
_ARRIVED = "arrived"  # the store's count of processes


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

    def from_each(self, make: Callable[[], Item]) -> list[Item]:
        """What each process makes, by rank; or the first exception that one of them raises, in every process."""
        if self.control is None:
            return [make()]
        try:
            made: Item | Exception = make()
        except Exception as error:  # any: the others would wait for ever
            made = error
        everybodys = self.exchange(made)
        for each in everybodys:
            if isinstance(each, Exception):
                raise each
        return everybodys  # type: ignore[return-value]  # none is an exception

    def share_buffers(self, model: nn.Module) -> None:
        """The main process's buffers for everybody: the running statistics that its batch norms have."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.control is None or not buffers:
            return
        with torch.no_grad():
            flat = torch.cat([buffer.flatten() for buffer in buffers])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [buffer.numel() for buffer in buffers])
            for buffer, values in zip(buffers, parts, strict=True):
                buffer.copy_(values.view_as(buffer))

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Everybody's whole numbers, by rank; all give the same count of them. One exchange, and nothing is pickled."""
        if self.control is None:
            return [list(numbers)]
        gathered = torch.empty(self.size * len(numbers), dtype=torch.int64)
        dist.all_gather_into_tensor(gathered, torch.tensor(list(numbers)), group=self.control)
        return gathered.reshape(self.size, -1).tolist()

    def largest(self, value: int) -> int:
        """The largest of everybody's values."""
        if self.control is None:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return int(values)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of everybody's tensors, on the CPU."""
        total = values.cpu()  # no copy of one that lies there
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
def joined(stop: StopFlag) -> Iterator[Group]:
    """The group that the environment describes, until the end of the block. Errors as of `meet`."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield Group()
        return
    store = meet(rank, size, stop)
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Group(rank=rank, size=size, local_rank=local_rank, control=control)
    finally:
        dist.destroy_process_group()


def meet(rank: int, size: int, stop: StopFlag) -> Any:
    """The c10d store through which the processes find each other, once all of them are there.

    torch would wait inside one call, where a signal is not seen. Here it is asked in turns. A store that goes away in
    the meantime was that of a main process which is about to start again: the next one is waited for.

    Raises:
        JobStopped: a signal came first.
        JobError: some are missing after MEETING_TIMEOUT_S, or MEETING_AGAIN_TIMEOUT_S after a restart.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    restarted = int(os.environ.get(RESTARTS_VARIABLE, "0")) > 0
    deadline = time.monotonic() + (MEETING_AGAIN_TIMEOUT_S if restarted else MEETING_TIMEOUT_S)
    store: Any = None
    arrived = 0
    while True:
        before = arrived
        try:
            if store is not None:
                arrived = store.add(_ARRIVED, 0)
            elif rank == 0 or _answers(host, port):
                store = TCPStore(host, port, size, is_master=rank == 0, timeout=TIMEOUT, wait_for_workers=False)
                arrived = store.add(_ARRIVED, 1)
        except RuntimeError:  # of torch's network
            if rank == 0:
                raise
            store, arrived = None, 0
        if arrived != before:
            log.info("processes: %d of %d are here", arrived, size)
        if arrived == size:  # before a stop is looked for: the others see the same number and go on
            return store
        waiting = (
            f"waiting for the other processes ({arrived} of {size} are here)" if arrived else f"waiting for {host}"
        )
        if stop:
            if store is not None:
                store.add(_ARRIVED, -1)
            raise stop.error(f"while {waiting}", "start the job again")
        if time.monotonic() > deadline:
            hint = f"every host must reach {host}:{port}; the log of one that did not come says why"
            raise JobError(f"gave up {waiting}", hint)
        time.sleep(_TURN_S)


def _answers(host: str, port: int) -> bool:
    """Whether something listens there: torch's own attempts are long and fill the log with stack traces."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
