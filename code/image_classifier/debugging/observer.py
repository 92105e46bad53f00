"""What a training tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from image_classifier.debugging.schema import Mode

if TYPE_CHECKING:  # an observer of numbers needs no torch
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from image_classifier.debugging.tensorstats import Scalars


class Observer:
    """Is told of every step; this one does nothing. In the order in which a training step calls:

    begin (once an epoch), mark("data_wait_s"), mark("h2d_s"), before_forward, mark("forward_s"), mark("backward_s"),
    after_backward, mark("optimizer_s"), after_update, end_step; at last end_epoch. With several processes, also
    mark("sync_s") wherever they have waited for each other, and whole_split. An evaluation leaves out what it does not
    do. With gradient accumulation, a phase is marked as often as it comes; the rest is once an optimiser step.
    """

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        """An epoch's training, or an evaluation, begins; the next step that ends is number `step` of this mode."""

    def mark(self, phase: str) -> None:
        """A phase of the step (one of schema.PHASES) ends here."""

    def phase(self, name: str) -> Phase:
        """A block that is a phase of the step: `with hook.phase("forward"):` ends in `mark("forward_s")`."""
        return Phase(self, name)

    def before_forward(self, images: torch.Tensor) -> None:
        """The batch, (n, 3, H, W), is on the device."""

    def before_head(self, inputs: Callable[[], Scalars], activations: Scalars) -> None:
        """Instead of `before_forward`, where a frozen body saw the images before the training.

        Args:
            inputs: gives what `tensorstats.input_statistics` would give of the batch.
            activations: those of the whole network on a few images.
        """

    def preparing(self, seconds: float) -> None:
        """So many seconds more went into what is computed before the first step."""

    def preflight(self, found: Mapping[str, Any]) -> None:
        """What a copy of the network has shown before the first step, see debugging/preflight.py."""

    def replicas(self, differing: int) -> None:
        """An epoch's training is over, after which so many processes have other weights than the first."""

    def after_backward(self) -> None:
        """The gradients are what the optimiser will use."""

    def after_update(self) -> None:
        """The optimiser has made its step."""

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """The step ends.

        Args:
            loss: scalar, the one that is minimised.
            logits: (n, classes).
            labels: (n,) int64.
        """

    def skip_step(self) -> None:
        """A step had no readable image."""

    def whole_split(self, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        """An evaluation that several processes shared: what all of them were answered, before `end_epoch`."""

    def end_epoch(self) -> None:
        """The epoch's training, or the evaluation, is over."""

    def close(self) -> None:
        """The job is over, well or not."""


class Phase:
    """A block of code that ends a phase; one that an exception leaves has not ended.

    0.4 microseconds a block; a generator of contextlib takes 1.1.
    """

    __slots__ = ("_name", "_observer")

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._observer.mark(f"{self._name}_s")


class Observers(Observer):
    """Tells each of several, in their order."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self._members = tuple(members)

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        for member in self._members:
            member.begin(mode, epoch, step)

    def mark(self, phase: str) -> None:
        for member in self._members:
            member.mark(phase)

    def before_forward(self, images: torch.Tensor) -> None:
        for member in self._members:
            member.before_forward(images)

    def before_head(self, inputs: Callable[[], Scalars], activations: Scalars) -> None:
        for member in self._members:
            member.before_head(inputs, activations)

    def preparing(self, seconds: float) -> None:
        for member in self._members:
            member.preparing(seconds)

    def preflight(self, found: Mapping[str, Any]) -> None:
        for member in self._members:
            member.preflight(found)

    def replicas(self, differing: int) -> None:
        for member in self._members:
            member.replicas(differing)

    def after_backward(self) -> None:
        for member in self._members:
            member.after_backward()

    def after_update(self) -> None:
        for member in self._members:
            member.after_update()

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        for member in self._members:
            member.end_step(loss, logits, labels)

    def skip_step(self) -> None:
        for member in self._members:
            member.skip_step()

    def whole_split(self, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        for member in self._members:
            member.whole_split(labels, predicted)

    def end_epoch(self) -> None:
        for member in reversed(self._members):  # the recorder first, so that the rules see the whole epoch
            member.end_epoch()

    def close(self) -> None:
        for member in self._members:
            member.close()
