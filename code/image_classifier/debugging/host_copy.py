"""Numbers on their way from the device to the host. The host goes on meanwhile, and reads them when they have come."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class HostCopy:
    """A copy on the host of what a device is about to have computed.

    From a GPU it is begun behind what the GPU has been given to do, into pinned memory, and nobody waits until `read`.
    From anywhere else it is there at once.
    """

    def __init__(self, values: torch.Tensor) -> None:
        values = values.detach()
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values.to("cpu", copy=True)
            return
        self._values = torch.empty_like(values, device="cpu", pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether `read` returns at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def read(self) -> torch.Tensor:
        """The values, on the CPU. Waits for a GPU that has not come that far."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


class ScalarCopies:
    """The same of many scalars: one copy for each device they lie on.

    Args:
        scalars: 0-d tensors; read as float32.
    """

    def __init__(self, scalars: Sequence[torch.Tensor]) -> None:
        self._count = len(scalars)
        by_device: dict[torch.device, list[int]] = {}
        for place, scalar in enumerate(scalars):
            by_device.setdefault(scalar.device, []).append(place)
        self._parts = [
            (places, HostCopy(torch.stack([scalars[place].float() for place in places])))
            for places in by_device.values()
        ]

    @property
    def arrived(self) -> bool:
        """Whether `read` returns at once."""
        return all(copy.arrived for _, copy in self._parts)

    def read(self) -> list[float]:
        """The numbers, in their order. Waits for a GPU that has not come that far."""
        numbers = [0.0] * self._count
        for places, copy in self._parts:
            for place, number in zip(places, copy.read().tolist(), strict=True):
                numbers[place] = number
        return numbers
