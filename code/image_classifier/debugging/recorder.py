"""The live observer of a training: told of each step, it measures, keeps what it saw, and hands it to its sinks.

Per step it costs a few appends: losses and statistics stay on the device as scalars and set out for the host together,
after the first step, every FLUSH_STEPS steps or FLUSH_S seconds, and at the end of an epoch. From a GPU they are read
when the next ones set out, and nothing waits; at the end of an evaluation all of them are. A recorder is an observer:
when it fails, it is switched off with a warning and the training goes on.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import describe
from image_classifier.debugging.clock import Phases, StepClock
from image_classifier.debugging.host_copy import HostCopy, ScalarCopies
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.outputstats import mode_statistics, output_statistics
from image_classifier.debugging.pairs import are_classes, class_labels, predicted_classes, true_loss
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import ClassCounts, Mode, StatisticsRecord, StepRecord
from image_classifier.debugging.sinks import Sink
from image_classifier.debugging.tensorstats import (
    Scalars,
    WeightWatch,
    activation_statistics,
    flat_scalars,
    input_statistics,
    named_numbers,
    unwrap,
)

log = logging.getLogger(__name__)

FLUSH_STEPS = 20
FLUSH_S = 60.0  # what a training that is killed loses of its record at most
# A training shows most in its first steps; from `debug_interval` and `activation_interval` on, these count.
FIRST_STEPS = frozenset({0, 1, 2, 5, 10, 20, 50})
FIRST_ACTIVATION_STEPS = frozenset({0, 5, 50})
INPUT_IMAGES = 512  # the inputs' statistics are taken of the first images only: what CheckInputImages needs
SHORT = 100  # steps; the activations of a training with fewer are also looked at in its second half


def late_steps(planned: int) -> frozenset[int]:
    """The steps at the middle and at four fifths of a short training."""
    return frozenset({planned // 2, planned * 4 // 5}) if 0 < planned < SHORT else frozenset()


@dataclass
class _Pending:
    """A step whose numbers are still on the device."""

    step: int
    epoch: int
    mode: Mode
    time: float
    seconds: float
    images: int
    loss: torch.Tensor
    clean_loss: torch.Tensor
    phases: Phases
    tensors: dict[str, Scalars] = field(default_factory=dict)


@dataclass
class _Sent:
    """Steps, or an epoch's counts by class, whose numbers are on their way to the host."""

    steps: list[_Pending]
    copy: ScalarCopies | HostCopy
    mode: Mode
    step: int
    epoch: int


class Recorder(Observer):
    """Observes one process of a training.

    Args:
        run: filled with what is observed; None where nobody judges (all ranks but 0).
        sinks: get it too.
        model: as it is trained: compiled, wrapped or bare.
        num_classes: of the labels.
        debug_interval: steps between statistics of gradients and weights; 0 for none.
        activation_interval: steps between statistics of activations; 0 for none.
        planned_steps: of the whole training, so that a short one is looked at often enough; 0 when nobody knows.
        bf16: autocast the extra forward pass for activations.
    """

    def __init__(
        self,
        run: RunData | None,
        sinks: Sequence[Sink],
        model: nn.Module,
        device: torch.device,
        *,
        num_classes: int,
        debug_interval: int,
        activation_interval: int,
        planned_steps: int = 0,
        bf16: bool = False,
    ) -> None:
        self.run = run
        self._sinks = list(sinks)
        self._model = model
        self._clock = StepClock(device)
        self._counts = torch.zeros((2, num_classes), dtype=torch.int64, device=device)  # labels, hits
        self._debug_interval = debug_interval
        self._activation_interval = activation_interval
        self._bf16 = bf16
        self._activation_steps = FIRST_ACTIVATION_STEPS | late_steps(planned_steps)
        self._pending: list[_Pending] = []
        self._sent: deque[_Sent] = deque()
        self._mode: Mode = "train"
        self._step, self._epoch = 0, 1
        self._tensors: dict[str, Scalars] = {}
        self._batch: Scalars = {}
        self._watch: WeightWatch | None = None
        self._inputs_seen = 0
        self._failed = False
        self._flushed = -math.inf  # by the monotonic clock

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self._mode, self._epoch, self._step = mode, epoch, step
        self._guarded(self._counts.zero_)
        self._guarded(self._clock.begin)

    def mark(self, phase: str) -> None:
        self._guarded(lambda: self._clock.mark(phase))

    def before_forward(self, images: torch.Tensor) -> None:
        self._guarded(lambda: self._before_forward(images))

    def before_head(self, inputs: Callable[[], Scalars], activations: Scalars) -> None:
        self._guarded(lambda: self._before_head(inputs, activations))

    def after_backward(self) -> None:
        if self._due(self._debug_interval, FIRST_STEPS):
            self._guarded(self._after_backward)

    def weights_before(self) -> None:
        """For a training whose optimiser cannot be asked: what the weights are before the next step, if that one is
        recorded; its gradients are read by `gradients_now`, before `after_update`."""
        self.after_backward()

    def gradients_now(self) -> None:
        """The backward pass is over, and the optimiser may have made its step."""
        if self._watch is not None:
            self._guarded(lambda: self._watch and self._watch.look_at_gradients(self._model))

    @property
    def records_this_step(self) -> bool:
        """Whether statistics of the step that is under way are kept."""
        return not self._failed and self._due(self._debug_interval, FIRST_STEPS)

    def add_batch(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        """Something else of the batch of a step that is recorded, see StatisticsRecord.batch; 0-d, on the device."""
        self._batch[name] = dict(values)

    def after_update(self) -> None:
        if self._watch is not None:
            self._guarded(self._after_update)

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._guarded(lambda: self._end_step(loss.detach(), logits.detach(), labels))
        self._step += 1

    def skip_step(self) -> None:
        self._guarded(self._clock.begin)
        self._step += 1

    def whole_split(self, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        num_classes = self._counts.shape[1]
        rows = [np.bincount(each, minlength=num_classes) for each in (labels, labels[predicted == labels])]
        self._guarded(lambda: self._counts.copy_(torch.from_numpy(np.stack(rows))))

    def end_epoch(self) -> None:
        self._guarded(self._end_epoch)

    def flush(self, *, wait: bool = True) -> None:
        """Fetches what is still on the device and makes it safe; without `wait`, as far as it has come by now."""
        self._guarded(lambda: self._flush(wait=wait))

    def close(self) -> None:
        """Flushes, and closes the sinks."""
        self._guarded(self._flush)
        self._each_sink("close")

    def _due(self, interval: int, first: frozenset[int]) -> bool:
        return self._mode == "train" and interval > 0 and (self._step % interval == 0 or self._step in first)

    def _before_forward(self, images: torch.Tensor) -> None:
        if self._mode == "train" and self._inputs_seen < INPUT_IMAGES:
            self._inputs_seen += images.shape[0]
            self._tensors["inputs"] = input_statistics(images)
        if self._due(self._activation_interval, self._activation_steps):
            with torch.no_grad():
                self._tensors["activations"] = activation_statistics(self._model, images, bf16=self._bf16)
        self._clock.mark("hook_s")

    def _before_head(self, inputs: Callable[[], Scalars], activations: Scalars) -> None:
        if self._mode == "train" and self._inputs_seen < INPUT_IMAGES:
            self._tensors["inputs"] = found = inputs()
            self._inputs_seen += int(next(iter(found.values()))["images"]) if found else 0
        if self._due(self._activation_interval, FIRST_ACTIVATION_STEPS):
            self._tensors["activations"] = activations
        self._clock.mark("hook_s")

    def _after_backward(self) -> None:
        self._watch = WeightWatch(self._model)
        self._clock.mark("hook_s")

    def _after_update(self) -> None:
        if self._watch is not None:
            self._tensors |= {"gradients": self._watch.gradients, "weights": self._watch.after()}
            self._watch = None
            self._clock.mark("hook_s")

    def _end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        clean_loss = self._count_classes(loss, logits, labels)
        if self._mode == "train" and "weights" in self._tensors:
            of_mode = mode_statistics(unwrap(self._model), loss.device)
            self._tensors["batch"] = output_statistics(loss, logits, labels) | of_mode | self._batch
        self._clock.mark("hook_s")
        seconds, phases = self._clock.end()
        pending = _Pending(
            step=self._step,
            epoch=self._epoch,
            mode=self._mode,
            time=time.time(),
            seconds=seconds,
            images=len(labels),
            loss=loss,
            clean_loss=clean_loss,
            phases=phases,
            tensors=self._tensors,
        )
        self._pending.append(pending)
        self._tensors, self._batch = {}, {}
        if len(self._pending) >= FLUSH_STEPS or time.monotonic() - self._flushed > FLUSH_S:
            self._flush(wait=False)
            self._clock.mark("hook_s")  # counts for the next step

    def _count_classes(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Counts labels and right answers by class. Returns the loss against the true labels; the loss itself where the
        labels are no classes, or lie outside of them."""
        num_classes = self._counts.shape[1]
        outputs = logits[:, None] if logits.ndim == 1 else logits
        if not num_classes or outputs.ndim != 2 or 1 < outputs.shape[1] < num_classes:
            return loss
        truth = class_labels(labels, num_classes)
        if truth is None:
            return loss
        inside = (truth >= 0) & (truth < num_classes)
        kept = truth.clamp(0, num_classes - 1)
        hits = ((predicted_classes(outputs, num_classes) == truth) & inside).to(self._counts.dtype)
        self._counts[0].index_add_(0, kept, inside.to(self._counts.dtype))
        self._counts[1].index_add_(0, kept, hits)
        if are_classes(labels) and outputs.shape[1] > 1:
            return F.cross_entropy(outputs.float(), kept)
        if outputs.shape[1] == 1 and num_classes > 2:
            return loss
        return true_loss(loss, outputs, kept, inside)

    def _end_epoch(self) -> None:
        """What follows an epoch's training need not wait for its numbers; what follows an evaluation is judged by."""
        self._send()
        if self._counts.shape[1]:  # of a classifier
            self._sent.append(_Sent([], HostCopy(self._counts), self._mode, self._step - 1, self._epoch))
        self._receive(wait=self._mode != "train")

    def _flush(self, *, wait: bool = True) -> None:
        self._send()
        self._receive(wait=wait)

    def _send(self) -> None:
        """Lets the numbers of the steps since the last time set out for the host."""
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        if not pending:
            return
        scalars = [scalar for each in pending for scalar in (each.loss, each.clean_loss, *flat_scalars(each.tensors))]
        self._sent.append(_Sent(pending, ScalarCopies(scalars), self._mode, self._step, self._epoch))

    def _receive(self, *, wait: bool) -> None:
        """Hands out what has come; with `wait`, all that has set out."""
        while self._sent and (wait or self._sent[0].copy.arrived):
            sent = self._sent.popleft()
            if isinstance(sent.copy, HostCopy):
                self._hand_out_classes(sent, sent.copy)
            else:
                self._hand_out_steps(sent.steps, iter(sent.copy.read()))
        self._each_sink("flush")

    def _hand_out_classes(self, sent: _Sent, copy: HostCopy) -> None:
        labels, hits = copy.read().tolist()
        counts = ClassCounts(mode=sent.mode, step=sent.step, epoch=sent.epoch, labels=tuple(labels), hits=tuple(hits))
        if self.run is not None:
            self.run.add_classes(counts)
        self._each_sink("add_classes", counts)

    def _hand_out_steps(self, steps: Sequence[_Pending], numbers: Iterator[float]) -> None:
        for each in steps:
            record = StepRecord(
                step=each.step,
                epoch=each.epoch,
                mode=each.mode,
                time=round(each.time, 4),
                seconds=_digits(each.seconds),
                images=each.images,
                loss=next(numbers),
                clean_loss=next(numbers),
                **{phase: _digits(seconds) for phase, seconds in each.phases.resolve().items()},
            )
            tensors = named_numbers(each.tensors, numbers)
            self._hand_out(record, StatisticsRecord(step=each.step, **tensors) if tensors else None)

    def _hand_out(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        if self.run is not None:
            self.run.add_step(record)
            if statistics is not None:
                self.run.add_statistics(statistics)
        self._each_sink("add", record, statistics)

    def _each_sink(self, method: str, *arguments: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # any: a full disk, a fault of smdebug's; the other sinks go on
                self._sinks.remove(sink)
                log.warning("%s failed and is switched off: %s", sink.name, describe(error))

    def _guarded(self, action: Callable[[], Any]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # any: the recording is worth less than the training
            self._failed = True
            log.warning("the debug recorder failed and is switched off: %s", describe(error))


def _digits(seconds: float) -> float:
    """Six significant digits: more only make the file longer."""
    return float(f"{seconds:.6g}")
