"""Classes of unequal size: weights in the loss, and how often an image is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.training.balance import class_weights, make_loss
from image_classifier.training.data import EpochBatches
from image_classifier.vision.folders import Split

LABELS = (0,) * 80 + (1,) * 15 + (2,) * 5


def split() -> Split:
    paths = tuple(Path(f"/data/{label}/{index}.jpg") for index, label in enumerate(LABELS))
    return Split("train", Path("/data"), paths, LABELS)


def drawn(epoch: int = 1, *, rank: int = 0, size: int = 1, first_step: int = 0) -> list[list[tuple[int, int]]]:
    batches = EpochBatches(len(LABELS), 16, shuffle_seed=3, rank=rank, size=size, balance=LABELS)
    batches.epoch, batches.first_step = epoch, first_step
    return list(batches)


def test_balanced_weights_give_every_class_the_same_part_of_the_loss_and_leave_its_size() -> None:
    weights = class_weights(LABELS, "balanced")
    parts = weights * np.bincount(LABELS)
    assert parts == pytest.approx([100 / 3] * 3, rel=1e-6)


def test_effective_weights_are_those_of_the_paper() -> None:
    beta = 0.9999
    expected = np.array([(1 - beta) / (1 - beta**count) for count in (80, 15, 5)])
    weights = class_weights(LABELS, "effective")
    assert weights / weights[0] == pytest.approx(expected / expected[0], rel=1e-5)
    assert (weights * np.bincount(LABELS)).sum() == pytest.approx(100, rel=1e-5)


def test_a_weighted_loss_is_the_mean_of_weighted_images_so_that_parts_of_a_batch_add_up() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(100, 3), torch.tensor(LABELS)
    loss = make_loss(TrainConfig(class_weights="balanced"), split(), torch.device("cpu"))
    each = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    of_class = torch.stack([each[labels == label].mean() for label in range(3)])
    whole = loss(logits, labels)
    assert whole.item() == pytest.approx(of_class.mean().item(), rel=1e-5)
    halves = (loss(logits[:50], labels[:50]) + loss(logits[50:], labels[50:])) / 2
    assert halves.item() == pytest.approx(whole.item(), rel=1e-5)


def test_without_weights_the_loss_is_what_it_was() -> None:
    logits, labels = torch.randn(100, 3), torch.tensor(LABELS)
    plain = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    assert torch.equal(make_loss(TrainConfig(), split(), torch.device("cpu"))(logits, labels), plain)
    both = TrainConfig(class_weights="balanced", sampler="balanced")  # drawn as often, none has more to weigh
    assert torch.equal(make_loss(both, split(), torch.device("cpu"))(logits, labels), plain)


def test_a_balanced_epoch_has_as_many_of_every_class_and_as_many_steps() -> None:
    keys = [key for batch in drawn() for key in batch]
    assert len(keys) == len(LABELS)
    assert sorted(Counter(LABELS[index] for _, index in keys).values()) == [33, 33, 34]
    times = Counter(index for _, index in keys)
    assert max(times[index] for index in range(80)) == 1
    assert {times[index] for index in range(95, 100)} <= {6, 7}
    assert len(set(keys)) == len(keys)  # an image that is drawn again is seen in another crop


def test_a_balanced_epoch_is_the_same_each_time_and_others_come_in_the_next() -> None:
    assert drawn() == drawn()
    assert drawn()[3:] == drawn(first_step=3)
    large = [{index for batch in drawn(epoch) for _, index in batch if LABELS[index] == 0} for epoch in (1, 2)]
    assert large[0] != large[1]


def test_processes_share_a_balanced_batch() -> None:
    for whole, *parts in zip(drawn(), drawn(rank=0, size=2), drawn(rank=1, size=2), strict=True):
        assert sorted(parts[0] + parts[1]) == sorted(whole)
