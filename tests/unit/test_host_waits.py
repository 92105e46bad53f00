"""The host never waits for the device between two steps: shown on a device that has no numbers to wait for.

On torch's `meta` device everything is computed but the numbers. `item`, `bool`, `tolist`, `cpu` of a tensor there, and
shapes that depend on numbers, are errors: each of them would make the host wait for a GPU. What the training reads it
reads through HostCopy, whose stand-in here arrives when the next copy sets out, as late as a GPU's.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from image_classifier.contract.config import TrainConfig
from image_classifier.debugging import host_copy
from image_classifier.debugging.clock import Phases, StepClock
from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import ClassCounts, JobFacts, StatisticsRecord, StepRecord
from image_classifier.training import step_graph, steps
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoints, Progress, identity
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.loop import train_epoch
from image_classifier.training.optim import make_optimizer
from image_classifier.training.setup import Setup
from image_classifier.training.state import Training
from image_classifier.training.step_graph import Answer, Passes, StepGraph
from image_classifier.training.stop import StopFlag
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

DEVICE = torch.device("meta")
CONFIG = TrainConfig(
    weights="none", image_size=32, batch_size=2, log_interval=5, workers=0, debug_interval=10, activation_interval=25
)
STEPS = 60


class LateCopy:
    """A HostCopy whose numbers, all zero, arrive when the next copy sets out. Counts who waited for one."""

    newest: LateCopy | None = None
    waited = 0

    def __init__(self, values: torch.Tensor) -> None:
        self._values = torch.zeros(values.shape, dtype=values.dtype)
        LateCopy.newest = self

    @property
    def arrived(self) -> bool:
        return LateCopy.newest is not self

    def read(self) -> torch.Tensor:
        LateCopy.waited += not self.arrived
        return self._values


class FromHost(TorchDispatchMode):
    """Takes down copies from the host for which it would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        first = arguments[0] if arguments else None
        from_host = function is torch.ops.aten._to_copy.default and first.device.type == "cpu"
        if from_host and options.get("device") == DEVICE and not options.get("non_blocking"):
            self.found.append(str(function))
        if function is torch.ops.aten.lift_fresh.default and first.device == DEVICE:  # torch.tensor(..., device=...)
            self.found.append(str(function))
        return function(*arguments, **options)


class Watching(Recorder):
    """A recorder that knows how often the host had waited when each step ended."""

    def __init__(self, copies: FromHost, model: nn.Module, sink: Sink) -> None:
        super().__init__(
            RunData(JobFacts(config={})),
            (sink,),
            model,
            DEVICE,
            num_classes=2,
            debug_interval=CONFIG.debug_interval,
            activation_interval=CONFIG.activation_interval,
        )
        self._copies = copies
        self.waits: list[int] = []
        self.copied: list[int] = []

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        super().end_step(loss, logits, labels)
        self.waits.append(LateCopy.waited)
        self.copied.append(len(self._copies.found))


class Sink:
    """Takes down what was handed out."""

    name = "Sink"

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.launching: list[float | None] = []
        self.statistics: list[int] = []
        self.epochs: list[int] = []

    def add(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        self.steps.append(record.step)
        self.launching.append(record.thread_s)
        if statistics is not None and statistics.weights:
            self.statistics.append(statistics.step)

    def add_classes(self, counts: ClassCounts) -> None:
        assert self.steps[-1] == counts.step
        self.epochs.append(counts.epoch)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def training(folder: Path) -> Training:
    picture = folder / "picture.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(picture)
    labels = tuple(i % 2 for i in range(STEPS * CONFIG.batch_size))
    split = Split("train", folder, (picture,) * len(labels), labels)
    preprocessing = Preprocessing.for_image_size(CONFIG.image_size)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=8),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).to(DEVICE)
    return Training(
        config=CONFIG,
        model=model,
        optimizer=make_optimizer(model, CONFIG),
        setup=Setup(device=DEVICE),
        train=Loader(ImageDataset(split, preprocessing, augment="light"), CONFIG.batch_size, workers=0, shuffle_seed=0),
        valid=Loader(ImageDataset(split, preprocessing), CONFIG.batch_size, workers=0),
        bad=BadImages(0),
        checkpoints=Checkpoints(folder / "checkpoints", identity(CONFIG, "data")),
        stop=StopFlag(),
        progress=Progress(),
        on_epoch=lambda _: None,
    )


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "HostCopy", LateCopy)
    monkeypatch.setattr(host_copy, "HostCopy", LateCopy)
    monkeypatch.setattr("image_classifier.debugging.recorder.HostCopy", LateCopy)
    monkeypatch.setattr(LateCopy, "waited", 0)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device


@pytest.mark.usefixtures("_late")
def test_between_two_steps_the_host_waits_for_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job, sink = training(tmp_path), Sink()
    with FromHost() as copies:
        watching = Watching(copies, job.model, sink)
        train_epoch(job, watching)
    assert caplog.messages == []  # an observer that had waited would have failed, and said so
    assert job.progress.step == STEPS
    assert len(watching.waits) == STEPS
    assert watching.waits[: CONFIG.log_interval] == [0] * CONFIG.log_interval
    steady = watching.waits[CONFIG.log_interval :]
    assert set(steady) == {1}  # for the epoch's first progress line
    assert LateCopy.waited == 2  # and for its sums, at its end
    assert set(watching.copied[1:]) == {watching.copied[0]}


@pytest.mark.usefixtures("_late")
def test_in_later_epochs_the_host_waits_for_no_line_and_the_first_shows_the_loss_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = training(tmp_path)
    job.progress = Progress(epoch=2, history=[{"epoch": 1, "train:loss": 0.625}])
    with FromHost() as copies, caplog.at_level(logging.INFO):
        watching = Watching(copies, job.model, Sink())
        train_epoch(job, watching)
    assert set(watching.waits) == {0}
    assert LateCopy.waited == 1  # for the epoch's sums, at its end
    lines = [message for message in caplog.messages if " step=" in message]
    assert len(lines) == STEPS // CONFIG.log_interval
    assert "loss=0.6250" in lines[0]
    assert "loss=0.0000" in lines[1]  # the device has no numbers


@pytest.mark.usefixtures("_late")
def test_steps_that_are_replayed_wait_for_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, replays = training(tmp_path), []

    def record(passes: Passes) -> tuple[Callable[[], None], Answer]:
        return lambda: replays.append(1), passes()

    monkeypatch.setattr(step_graph, "_close", lambda *_: True)  # once, before the first replay: it reads numbers
    ever_faster = (-number * number for number in itertools.count())
    monkeypatch.setattr(step_graph, "time", SimpleNamespace(perf_counter=lambda: next(ever_faster)))
    job.step_graph = StepGraph(job.model, nn.CrossEntropyLoss(), job.setup, record=record, wait=lambda: None)
    with FromHost() as copies:
        watching = Watching(copies, job.model, Sink())
        train_epoch(job, watching)
    assert len(replays) == STEPS - step_graph.SAME_SHAPE + step_graph.TRIES + 1
    assert set(watching.waits[CONFIG.log_interval :]) == {1}
    assert set(watching.copied[1:]) == {watching.copied[0]}


@pytest.mark.usefixtures("_late")
def test_what_arrives_late_is_recorded_whole_and_in_order(tmp_path: Path) -> None:
    job, sink = training(tmp_path), Sink()
    recorder = Watching(FromHost(), job.model, sink)
    train_epoch(job, recorder)
    assert sink.epochs == []  # the counts by class are still on their way
    recorder.close()
    assert sink.steps == list(range(STEPS))
    assert sink.statistics == [0, 1, 2, 5, *range(10, STEPS, 10)]
    assert sink.epochs == [1]
    assert all(seconds is not None and seconds > 0 for seconds in sink.launching)


class TickingEvent:
    """A torch.cuda.Event of a GPU that takes a millisecond from one to the next."""

    made = 0
    ticks = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        TickingEvent.made += 1

    def record(self) -> None:
        TickingEvent.ticks += 1
        self.tick = TickingEvent.ticks

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: TickingEvent) -> float:
        return float(later.tick - self.tick)


def test_events_of_a_gpu_are_used_again_once_they_have_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", TickingEvent)
    clock = StepClock(torch.device("cuda"))
    clock.begin()
    waiting: list[Phases] = []
    for step in range(400):
        for phase in ("data_wait_s", "h2d_s", "forward_s", "hook_s", "forward_s", "hook_s"):
            clock.mark(phase)
        waiting.append(clock.end()[1])
        if step % 20 == 19:  # two windows are under way
            for phases in waiting[:-20]:
                found = phases.resolve()
                assert found["h2d_s"] == pytest.approx(0.001)
                assert found["forward_s"] == pytest.approx(0.002)
            del waiting[:-20]
    assert TickingEvent.ticks == 1 + 400 * 6
    assert TickingEvent.made <= 1 + 40 * 6
