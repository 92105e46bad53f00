"""The validation images as a trained model sees and answers them: what a temperature is fitted on, and what the
endpoint's drift watch compares with."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from image_classifier.debugging.observer import Observer
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.head_only import validation_features
from image_classifier.training.state import Training
from image_classifier.training.stop import Interrupted
from image_classifier.vision.drift import Histogram, picture_statistics, reference_of, sample
from image_classifier.vision.folders import Split
from image_classifier.vision.network import FEATURES
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.temperature import probabilities_of

ROWS = 4000  # of features, which cost nothing but the memory of their logits
PHOTOS = 400  # more make a shift that is large by custom no clearer: chance then does less than that


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the model makes of validation images.

    Args:
        logits: (n, num_classes) float64.
        labels: (n,) int64, the true classes.
        images: (n,) int64, their indices in the split.
        pictures: (n, 6) float64, as `drift.picture_statistics` gives them.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    images: NDArray[np.int64]
    pictures: NDArray[np.float64]

    def reference(self, temperature: float) -> dict[str, Histogram]:
        """For the drift watch; empty where there are too few photographs."""
        if not len(self.logits):
            return {}
        probabilities = probabilities_of(self.logits, temperature)
        answers = np.stack([probabilities.argmax(1).astype(np.float64), probabilities.max(1)], axis=1)
        return reference_of(np.concatenate([answers, self.pictures], axis=1))


_Part = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def usual_sight(training: Training, valid: Split, hook: Observer) -> Sight:
    """What the model as it is, on its device, makes of validation images; of a split of more than PHOTOS images, or
    ROWS of a head that was trained on features and needs no image for it, of a sample, the same one every time.

    Raises:
        JobStopped: a stop was asked for.
    """
    try:
        with torch.inference_mode():
            parts = list(_of_features(training, hook) if training.on_features else _of_images(training, valid))
    except Interrupted:
        raise training.stopped_at_the_end("looking at the validation images", "write the model") from None
    if not parts:
        return Sight(
            logits=np.empty((0, 2)),
            labels=np.empty(0, np.int64),
            images=np.empty(0, np.int64),
            pictures=np.empty((0, 6)),
        )
    logits, labels, images, pictures = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Sight(logits=logits, labels=labels, images=images, pictures=pictures)


def _of_images(training: Training, valid: Split) -> Iterator[_Part]:
    config, setup = training.config, training.setup
    chosen = _chosen(len(valid))
    loader = Loader(
        ImageDataset(
            _part(valid, chosen),
            Preprocessing.for_image_size(config.image_size),
            cache=setup.kept.get(valid.name) if len(valid) <= PHOTOS else None,
        ),
        config.batch_size,
        workers=setup.workers,
        pin_memory=setup.device.type == "cuda",
    )
    model = training.model.eval()
    for batch in loader.epoch(stop=training.stop):
        if training.stop:
            raise Interrupted
        if not len(batch.labels):  # none of them can be read, which validation has said
            continue
        pictures = picture_statistics(sample(batch.images.permute(0, 2, 3, 1).numpy()))
        inputs, _ = loader.on_device(batch, setup.device)
        with setup.autocast():
            logits = model(inputs)
        yield logits.double().cpu().numpy(), batch.labels.numpy(), chosen[batch.indices.numpy()], pictures


def _of_features(training: Training, hook: Observer) -> Iterator[_Part]:
    loader = training.valid
    assert isinstance(loader, FeatureLoader)
    if not len(loader.features.places):  # a job that goes on after its last epoch
        loader.features = validation_features(training, hook)
    preprocessing = Preprocessing.for_image_size(training.config.image_size)
    mean, std = (255 * np.array(each) for each in (preprocessing.mean, preprocessing.std))
    head = training.trained.eval()
    every = max(1, math.ceil(len(loader.split) / ROWS))
    for batch in loader.epoch(stop=training.stop):
        chosen = batch.indices.numpy() % every == 0
        if not chosen.any():
            continue
        normalised = loader.features.rows[batch.images.numpy(), FEATURES:].astype(np.float64)
        pictures = np.concatenate([normalised[:, :3] * std + mean, normalised[:, 3:] * std], axis=1)
        inputs, _ = loader.on_device(batch, training.setup.device)
        logits = head(inputs).double().cpu().numpy()
        yield logits[chosen], batch.labels.numpy()[chosen], batch.indices.numpy()[chosen], pictures[chosen]


def _chosen(count: int) -> NDArray[np.int64]:
    """Indices of PHOTOS of so many images, or of all."""
    every = range(count)
    return np.array(every if count <= PHOTOS else sorted(random.Random(0).sample(every, PHOTOS)), np.int64)


def _part(split: Split, chosen: NDArray[np.int64]) -> Split:
    indices = chosen.tolist()
    return replace(split, paths=tuple(split.paths[i] for i in indices), labels=tuple(split.labels[i] for i in indices))
