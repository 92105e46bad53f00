"""Classes of unequal size: how much an image of a class weighs in the loss, and how often it is drawn in an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.vision.folders import Split

EFFECTIVE_BETA = 0.9999  # Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples": their largest
REPEATS_APART = 10_001  # between the keys of an image's repeats in an epoch: more than there are epochs


class WeightedLoss(nn.Module):
    """The mean over the images of the cross entropy times the weight of the image's class.

    The mean is over images, not over weights as torch's, so that the parts of a batch in several processes add up.

    Args:
        weights: (classes,) float32.
    """

    def __init__(self, weights: NDArray[np.float32], label_smoothing: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(weights))
        self._label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of (n, classes) float32 logits and (n,) int64 labels."""
        losses = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self._label_smoothing)
        weights: torch.Tensor = self.get_buffer("weights")
        return (losses * weights[labels]).mean()


def make_loss(config: TrainConfig, split: Split, device: torch.device) -> nn.Module:
    """The loss of a training. With a balanced sampler every class is drawn as often, and none has more to weigh."""
    if config.class_weights == "none" or config.sampler == "balanced":
        return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    weights = class_weights(split.labels, config.class_weights)
    return WeightedLoss(weights, config.label_smoothing).to(device)


def class_weights(labels: Sequence[int], kind: str) -> NDArray[np.float32]:
    """(classes,): the weight of an image of each class, 1 on average over the images.

    Args:
        labels: of the training images, every class among them.
        kind: `balanced` gives every class the same sum of weights (scikit-learn's `class_weight="balanced"`),
            `effective` the inverse of its effective number of images, (1 - beta^n) / (1 - beta).
    """
    counts = np.bincount(np.asarray(labels)).astype(np.float64)
    weights = 1 / counts if kind == "balanced" else (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**counts)
    made: NDArray[np.float32] = (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
    return made


def balanced_keys(labels: Sequence[int], epoch: int, seed: int) -> list[tuple[int, int]]:
    """As many keys (epoch, index) as there are images, of every class as many as of each other, in random order.

    Of a small class images are drawn again, each as often as the others, and seen in other crops: the key's epoch is
    another. Of a large class other images are drawn in every epoch.
    """
    rng = np.random.default_rng((seed, epoch))
    of_class = np.asarray(labels)
    classes = np.unique(of_class)
    quotas = np.full(len(classes), len(of_class) // len(classes))
    quotas[rng.permutation(len(classes))[: len(of_class) % len(classes)]] += 1
    keys: list[tuple[int, int]] = []
    for name, quota in zip(classes, quotas, strict=True):
        images = np.flatnonzero(of_class == name)
        for repeat in range(-(-int(quota) // len(images))):
            drawn = rng.permutation(images)[: int(quota) - repeat * len(images)]
            keys += [(epoch + REPEATS_APART * repeat, int(index)) for index in drawn]
    return [keys[place] for place in rng.permutation(len(keys))]
