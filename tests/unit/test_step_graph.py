"""Steps that are replayed train what steps do that are launched piece by piece. A stand-in records them on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.unit.test_training_loop import CONFIG, GROWING, pictures, training, without_times

from image_classifier.debugging.observer import Observer
from image_classifier.training import step_graph
from image_classifier.training.balance import make_loss
from image_classifier.training.distributed import Group
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.loop import fit, wants_graph
from image_classifier.training.state import Training
from image_classifier.training.step_graph import Answer, Passes, StepGraph
from image_classifier.vision.folders import Split

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Ten pictures: two batches of four, and one of two."""
    return pictures(tmp_path_factory.mktemp("images"), 10)


@pytest.fixture(autouse=True)
def _soon_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch of a shape is recorded, and a replay takes half of the time."""
    monkeypatch.setattr(step_graph, "SAME_SHAPE", 1)
    set_seconds(monkeypatch, launched=2.0, replayed=1.0)


def set_seconds(monkeypatch: pytest.MonkeyPatch, *, launched: float, replayed: float) -> None:
    tries = [(0.0, seconds) for seconds in (launched, replayed) for _ in range(step_graph.TRIES)]
    clock = itertools.cycle(itertools.chain.from_iterable(tries))
    monkeypatch.setattr(step_graph, "time", SimpleNamespace(perf_counter=lambda: next(clock)))


class Recorder:
    """What a CUDA graph is: a replay computes the same anew into the same tensors. Counts."""

    def __init__(self, model: torch.nn.Module, change: Callable[[torch.Tensor], object] = lambda _: None) -> None:
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._change = change  # of the gradients, for a recording that is wrong
        self.made = self.replays = 0

    def __call__(self, passes: Passes) -> tuple[Callable[[], None], Answer]:
        self.made += 1
        filled = passes()
        gradients = [parameter.grad for parameter in self._parameters]

        def replay() -> None:
            self.replays += 1
            for mine, computed in zip(filled, passes(), strict=True):
                mine.copy_(computed)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                gradient.copy_(parameter.grad)
                self._change(gradient)
                parameter.grad = gradient

        return replay, filled


def with_graph(
    job: Training,
    record: Callable[[Passes], tuple[Callable[[], None], Answer]],
    given_up: Callable[[], None] = lambda: None,
) -> Training:
    criterion = make_loss(job.config, job.train.split, CPU)
    job.step_graph = StepGraph(job.model, criterion, job.setup, record=record, wait=lambda: None, given_up=given_up)
    return job


def require_equal(job: Training, other: Training) -> None:
    assert without_times(job.progress) == without_times(other.progress)
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in job.model.state_dict().items())


@pytest.fixture
def launched(split: Split, tmp_path: Path) -> Training:
    """The same training piece by piece."""
    job = training(split, tmp_path / "launched")
    fit(job, Observer())
    return job


def test_replayed_steps_train_the_same_network(
    split: Split, tmp_path: Path, launched: Training, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job = training(split, tmp_path / "replayed")
    recorder = Recorder(job.model)
    fit(with_graph(job, recorder), Observer())
    require_equal(job, launched)
    assert recorder.made == 1
    # all but the first, of two in each of three epochs, whose last is of another shape; and those that were timed
    assert recorder.replays == 2 * 3 - 1 + step_graph.TRIES + 1
    assert "2000.0 ms launched piece by piece, 1000.0 ms as a CUDA graph" in caplog.text


def test_what_a_step_gave_is_not_what_the_next_one_fills(split: Split, tmp_path: Path) -> None:
    losses: list[torch.Tensor] = []
    then: list[float] = []

    class Keeper(Observer):
        def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
            losses.append(loss.detach())
            then.append(float(loss.detach()))

    job = training(split, tmp_path)
    fit(with_graph(job, Recorder(job.model)), Keeper())
    assert len(set(then)) > 1
    assert [float(loss) for loss in losses] == then


def test_another_size_of_crops_is_recorded_anew(split: Split, tmp_path: Path) -> None:
    whole, job = training(split, tmp_path / "whole", GROWING), training(split, tmp_path / "replayed", GROWING)
    fit(whole, Observer())
    recorder = Recorder(job.model)
    fit(with_graph(job, recorder), Observer())
    require_equal(job, whole)
    assert recorder.made == 2


def cannot(passes: Passes) -> tuple[Callable[[], None], Answer]:
    passes()
    raise RuntimeError("operation not permitted when stream is capturing\nand much more")


def test_what_cannot_be_recorded_is_launched(
    split: Split, tmp_path: Path, launched: Training, caplog: pytest.LogCaptureFixture
) -> None:
    job = training(split, tmp_path / "replayed")
    fit(with_graph(job, cannot), Observer())
    require_equal(job, launched)
    said = [message for message in caplog.messages if "CUDA graph" in message]
    assert said == ["steps are not replayed from a CUDA graph: operation not permitted when stream is capturing"]


@pytest.mark.parametrize("change", [lambda g: g.mul_(1.1), lambda g: g.fill_(torch.nan), lambda g: g.zero_()])
def test_a_recording_with_other_gradients_is_not_used(
    split: Split,
    tmp_path: Path,
    launched: Training,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[torch.Tensor], object],
) -> None:
    job = training(split, tmp_path / "replayed")
    recorder = Recorder(job.model, change)
    fit(with_graph(job, recorder), Observer())
    require_equal(job, launched)
    assert recorder.made == 1
    assert "it does not compute what they do" in caplog.text


def test_a_recording_that_is_no_faster_is_not_used(
    split: Split, tmp_path: Path, launched: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_seconds(monkeypatch, launched=1.0, replayed=1.0)
    job = training(split, tmp_path / "replayed")
    recorder, told = Recorder(job.model), []
    fit(with_graph(job, recorder, lambda: told.append("given up")), Observer())
    require_equal(job, launched)
    assert (recorder.made, recorder.replays) == (1, step_graph.TRIES + 1)
    assert told == ["given up"]


def test_a_network_that_calls_python_is_not_recorded(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path)
    job.model.body.register_forward_hook(lambda *_: None)
    recorder = Recorder(job.model)
    fit(with_graph(job, recorder), Observer())
    assert recorder.made == 0


def test_steps_are_recorded_where_one_process_computes_images_on_a_gpu(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path)
    job.setup = replace(job.setup, device=CUDA)
    assert wants_graph(job)
    job.config = CONFIG.replace(cuda_graph="off")
    assert not wants_graph(job)
    job.config = CONFIG
    job.group = Group(rank=0, size=2)
    assert not wants_graph(job)
    job.group = Group()
    job.train = FeatureLoader(split, 4, image_size=32)
    assert not wants_graph(job)


def test_on_a_cpu_nothing_is_recorded(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path, CONFIG.replace(epochs=1, warmup_epochs=0.0))
    fit(job, Observer())
    assert job.step_graph is None
