"""cuDNN tries its kernels where a training is long enough to gain by it, and for the usual batches alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.unit.test_training_loop import pictures, training

from image_classifier.contract.config import TrainConfig
from image_classifier.debugging.observer import Observer
from image_classifier.training import convolution_search
from image_classifier.training.convolution_search import PAYS_AFTER, pays, searching
from image_classifier.training.loop import fit

ONE_SIZE = TrainConfig(epochs=10, start_scale=1.0)


def test_a_long_training_searches_and_a_short_one_does_not() -> None:
    assert pays(ONE_SIZE, 1, PAYS_AFTER // 10)
    assert not pays(ONE_SIZE, 1, PAYS_AFTER // 10 - 1)


def test_steps_that_are_done_do_not_count() -> None:
    assert not pays(ONE_SIZE, 2, PAYS_AFTER // 10)
    assert pays(ONE_SIZE, 10, PAYS_AFTER)


def test_each_size_of_crops_counts_its_own_steps() -> None:
    growing = TrainConfig(epochs=30)
    assert not pays(growing, 1, PAYS_AFTER // 10)  # few epochs have the smallest crops
    assert pays(growing, 21, PAYS_AFTER // 10)  # a third of them have the largest


def test_what_follows_is_not_searched_also_after_an_error() -> None:
    with searching(on=True):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError), searching(on=True):
        raise RuntimeError
    assert not torch.backends.cudnn.benchmark
    with searching(on=False):
        assert not torch.backends.cudnn.benchmark


def test_neither_the_last_small_batch_nor_the_validation_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_search, "PAYS_AFTER", 1)
    job = training(pictures(tmp_path, 10), tmp_path / "checkpoints")  # two batches of four, and one of two
    searched = set()
    job.model.register_forward_hook(
        lambda model, inputs, _: searched.add((model.training, len(inputs[0]), torch.backends.cudnn.benchmark))
    )
    fit(job, Observer())
    assert searched == {(True, 4, True), (True, 2, False), (False, 4, False), (False, 2, False)}
