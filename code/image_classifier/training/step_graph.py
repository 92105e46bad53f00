"""Forward and backward pass of a training step as a CUDA graph: their thousand launches are recorded once, and then
sent as one.

For small batches a fast GPU is done before Python has launched the next layer. The optimiser's step is not recorded: it
is one kernel, and takes another learning rate each time. Batches of another shape, such as an epoch's last, are
launched piece by piece as ever. A recording that cannot be made, that does not give the same gradients, or that is no
faster is not used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from image_classifier.vision.resnet import has_hooks

if TYPE_CHECKING:
    from image_classifier.training.setup import Setup

T = TypeVar("T")
Answer = tuple[torch.Tensor, torch.Tensor]  # mean loss, 0-d; (n, classes) logits
Passes = Callable[[], Answer]  # leaves gradients
Recorder = Callable[[Passes], tuple[Callable[[], None], Answer]]  # -> what replays it, and what a replay fills

SAME_SHAPE = 10  # steps one after the other, before one is recorded: the first of a training are watched most
TRIES = 3  # of each way, after one that warms up; the fastest counts
GRADIENTS_DIFFER = 0.05  # of their length, between two ways: bf16 has 8 bits, and a GPU adds up in any order
ANSWERS_DIFFER = 0.01  # loss and logits, of their length

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """Passes that can be replayed: what they read, and what they fill."""

    inputs: torch.Tensor
    labels: torch.Tensor
    replay: Callable[[], None]
    filled: Answer
    gradients: list[torch.Tensor | None]


class StepGraph:
    """Forward and backward pass of one network, recorded when a shape of batches has proved usual.

    Args:
        model: in the mode it trains in, alone: no other process averages its gradients.
        criterion: logits (float32) and labels -> mean loss.
        setup: the device, and whether it autocasts to bf16.
        record: makes a recording, and raises RuntimeError where it cannot; that of a CUDA graph without it.
        wait: until the device has computed all it was given.
        given_up: called when it is known that steps are not replayed.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        setup: Setup,
        *,
        record: Recorder | None = None,
        wait: Callable[[], None] | None = None,
        given_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._tell_given_up = given_up
        self._model, self._criterion, self._setup = model, criterion, setup
        self._record = record or recorded
        self._wait = wait or torch.cuda.synchronize
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._recording: _Recording | None = None
        self._shape: torch.Size | None = None  # of the batches that came last
        self._same = 0  # of that shape, one after the other
        self._given_up = False

    def serves(self, inputs: torch.Tensor, labels: torch.Tensor) -> bool:
        """Whether the passes of this batch are replayed; it is recorded when its shape is now known to be usual.

        Args:
            inputs, labels: on the device.
        """
        self._same = self._same + 1 if inputs.shape == self._shape else 1
        self._shape = inputs.shape
        if self._recording is not None and inputs.shape == self._recording.inputs.shape:
            return True
        if self._given_up or self._same <= SAME_SHAPE or _has_hooks(self._model):
            return False
        self._recording = None  # that of another shape
        self._recording = self._made(inputs.clone(), labels.clone())
        self._given_up = self._recording is None
        if self._given_up:
            self._tell_given_up()
        return not self._given_up

    def replay(self, inputs: torch.Tensor, labels: torch.Tensor) -> Answer:
        """Loss and logits of a batch that is served, as tensors of their own; the parameters have its gradients."""
        assert self._recording is not None
        self._recording.inputs.copy_(inputs, non_blocking=True)
        self._recording.labels.copy_(labels, non_blocking=True)
        for parameter, gradient in zip(self._parameters, self._recording.gradients, strict=True):
            parameter.grad = gradient  # what the recording fills; a step in between may have put another there
        self._recording.replay()
        loss, logits = self._recording.filled
        return loss.clone(), logits.clone()

    def _made(self, inputs: torch.Tensor, labels: torch.Tensor) -> _Recording | None:
        """A recording that reads these tensors, where it is worth it. Nothing of the training changes."""
        if inputs.is_cuda:
            torch.cuda.empty_cache()  # the recording has memory of its own
        statistics = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        try:
            return self._worthwhile(inputs, labels)
        except RuntimeError as error:
            log.warning("steps are not replayed from a CUDA graph: %s", str(error).partition("\n")[0])
            return None
        finally:
            for buffer, value in statistics:
                buffer.copy_(value)
            self._forget_gradients()

    def _worthwhile(self, inputs: torch.Tensor, labels: torch.Tensor) -> _Recording | None:
        """A recording that computes the same in less time. Raises RuntimeError where none can be made."""

        def passes() -> Answer:
            self._forget_gradients()
            with self._setup.autocast(keep_casts=False):
                logits = self._model(inputs)
            loss: torch.Tensor = self._criterion(logits.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), logits.detach()

        launched, expected = self._seconds(passes)
        gradients = [parameter.grad for parameter in self._parameters]
        replay, filled = self._record(passes)
        found = [parameter.grad for parameter in self._parameters]
        replayed, _ = self._seconds(replay)
        if not _close(filled, expected, ANSWERS_DIFFER) or not _close(found, gradients, GRADIENTS_DIFFER):
            log.warning("steps are not replayed from a CUDA graph: it does not compute what they do")
            return None
        log.info(
            "forward and backward pass: %.1f ms launched piece by piece, %.1f ms as a CUDA graph",
            1000 * launched,
            1000 * replayed,
        )
        if replayed >= launched:
            return None
        return _Recording(inputs=inputs, labels=labels, replay=replay, filled=filled, gradients=found)

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _seconds(self, action: Callable[[], T]) -> tuple[float, T]:
        """The least of TRIES, and what came out of the last."""
        found, least = action(), float("inf")
        for _ in range(TRIES):
            self._wait()
            started = time.perf_counter()
            found = action()
            self._wait()
            least = min(least, time.perf_counter() - started)
        return least, found


def recorded(passes: Passes) -> tuple[Callable[[], None], Answer]:
    """A CUDA graph of the passes: what replays it, and the tensors that a replay fills.

    Raises:
        RuntimeError: they do something that no graph can hold, or the GPU has no memory left for it.
    """
    side, computing = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    side.wait_stream(computing)
    with torch.cuda.stream(side):  # what is made once for a stream must not be made in the recording
        for _ in range(TRIES):
            passes()
    computing.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads copy batches meanwhile
        filled = passes()
    return graph.replay, filled


def _has_hooks(model: nn.Module) -> bool:
    """Whether Python is to be called within the passes: a replay would not do it."""
    return any(map(has_hooks, model.modules()))


def _close(found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None], share: float) -> bool:
    """Whether the numbers of two lists of tensors, as one vector, differ by no more than this share of its length."""
    if [each is None for each in found] != [each is None for each in expected]:
        return False
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    difference = sum((a - b).double().square().sum() for a, b in pairs)
    length = sum(b.double().square().sum() for _, b in pairs)
    return bool(difference <= share**2 * length)  # false of numbers that are none
