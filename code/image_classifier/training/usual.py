"""What the endpoint's drift watch compares with: the validation images as this model sees and answers them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

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

PHOTOS = 400  # more make a shift that is large by custom no clearer: chance then does less than that


def usual_sight(training: Training, valid: Split, hook: Observer) -> dict[str, Histogram]:
    """The reference of the model as it is, on its device; empty where there are too few photographs.

    A split of more than PHOTOS images is sampled, the same ones every time. A head that was trained on features needs
    no image for it.

    Raises:
        JobStopped: a stop was asked for.
    """
    try:
        with torch.inference_mode():
            rows = list(_of_features(training, hook) if training.on_features else _of_images(training, valid))
    except Interrupted:
        raise training.stop.error(
            "while looking at the validation images; the training has finished and is saved",
            "start again with the same checkpoint folder to write the model",
        ) from None
    return reference_of(np.concatenate(rows)) if rows else {}


def _of_images(training: Training, valid: Split) -> Iterator[NDArray[np.float64]]:
    config, setup = training.config, training.setup
    loader = Loader(
        ImageDataset(
            _part(valid),
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
        yield _rows(logits, pictures)


def _of_features(training: Training, hook: Observer) -> Iterator[NDArray[np.float64]]:
    loader = training.valid
    assert isinstance(loader, FeatureLoader)
    if not len(loader.features.places):  # a job that goes on after its last epoch
        loader.features = validation_features(training, hook)
    preprocessing = Preprocessing.for_image_size(training.config.image_size)
    mean, std = (255 * np.array(each) for each in (preprocessing.mean, preprocessing.std))
    head = training.trained.eval()
    for batch in loader.epoch(stop=training.stop):
        if not len(batch.labels):
            continue
        normalised = loader.features.rows[batch.images.numpy(), FEATURES:].astype(np.float64)
        pictures = np.concatenate([normalised[:, :3] * std + mean, normalised[:, 3:] * std], axis=1)
        inputs, _ = loader.on_device(batch, training.setup.device)
        yield _rows(head(inputs), pictures)


def _rows(logits: torch.Tensor, pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, num_classes) logits and (n, 6) -> (n, 8), as `drift.STATISTICS` has them."""
    confidence, top1 = logits.double().softmax(1).max(1)
    answers = torch.stack([top1.double(), confidence], dim=1).cpu().numpy()
    return np.concatenate([answers, pictures], axis=1)


def _part(split: Split) -> Split:
    if len(split) <= PHOTOS:
        return split
    chosen = sorted(random.Random(0).sample(range(len(split)), PHOTOS))
    return replace(split, paths=tuple(split.paths[i] for i in chosen), labels=tuple(split.labels[i] for i in chosen))
