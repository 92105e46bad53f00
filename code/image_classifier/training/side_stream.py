"""Copies of batches to a GPU, beside what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class SideStream:
    """Copies on a stream of their own: a batch sets out while the GPU still computes the step before.

    On the stream that computes it would wait for that step first. The memory of the copies takes turns: the allocator
    gives it to a later batch once the GPU has come past the step that used it.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def copy(self, tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        """The tensors on the device; what is computed of them there waits for them, the host does not.

        Args:
            tensors: for a GPU, in pinned memory.
        """
        if device.type != "cuda":
            return [tensor.to(device, non_blocking=True) for tensor in tensors]
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(device, non_blocking=True) for tensor in tensors]
        computing.wait_stream(self._stream)
        for tensor in copies:
            tensor.record_stream(computing)
        return copies
