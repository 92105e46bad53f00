"""At the end of a training: which labels are likely wrong, judged by probabilities that have not seen them.

A head's features are there, so that every training and validation image is judged by a head that all other images have
trained. Where the whole network was trained, it has seen the labels of the training images, and only validation images
are judged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.outputs import MAX_SUSPECTS, SUSPECTED_LABELS
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.out_of_fold import MAX_IMAGES, left_out
from image_classifier.training.state import Training
from image_classifier.training.usual import Sight
from image_classifier.vision.confidence import exact_interval
from image_classifier.vision.confident_learning import MIN_AGREEMENT, MIN_CHANCE, MIN_PRECISION, agreement, suspects
from image_classifier.vision.folders import ImageFolders, Split, name_in
from image_classifier.vision.network import FEATURES
from image_classifier.vision.temperature import probabilities_of

log = logging.getLogger(__name__)
MIN_IMAGES = 20

_Images = Sequence[tuple[Split, int]]


def write_suspects(training: Training, folders: ImageFolders, sight: Sight, temperature: float, folder: Path) -> None:
    """Writes SUSPECTED_LABELS, and one line to the log.

    Args:
        sight, temperature: of the model that was trained.
    """
    images, probabilities, labels, method = _judged(training, folders, sight, temperature)
    found = judge(images, probabilities, labels, folders.classes) | {"method": method}
    SUSPECTED_LABELS.write(folder, found)
    if found["silent"]:
        log.info("labels: none is called wrong, because %s", found["silent"])
    elif found["count"]:
        log.warning("labels: %d of %d images are likely labelled wrong", found["count"], len(images))
    else:
        log.info("labels: none of %d images is likely labelled wrong", len(images))


def judge(
    images: _Images, probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """What SUSPECTED_LABELS holds but for the method, see `contract/outputs.py`.

    Args:
        images: split and index in it of each of the n images.
        probabilities: (n, num_classes), of models that have not seen the image's label.
        labels: (n,), as given.
    """
    silent = _too_weak(probabilities, labels)
    candidates = [] if silent else suspects(probabilities, labels)
    expected = float(np.mean([each.chance for each in candidates])) if candidates else 1.0
    if expected < MIN_PRECISION:
        silent = f"of those that the model would accuse, only {expected:.0%} are expected to be wrong"
    found = [] if silent else [each for each in candidates if each.chance >= MIN_CHANCE]
    named = [
        {
            "path": name_in(split, split.paths[place]),
            "label": classes[each.given],
            "meant": classes[each.meant],
            "label_probability": round(each.given_probability, 4),
            "meant_probability": round(each.meant_probability, 4),
        }
        for each in found[:MAX_SUSPECTS]
        for split, place in [images[each.index]]
    ]
    return {
        "images": len(images),
        "splits": sorted({split.name for split, _ in images}),
        "agreement": agreement(probabilities, labels),
        "silent": silent,
        "count": len(found),
        "suspects": named,
    }


def _too_weak(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> str:
    """Why the probabilities can accuse nobody; empty when they can."""
    if len(labels) < MIN_IMAGES:
        return f"only {len(labels)} images could be judged, {MIN_IMAGES} are needed"
    same = agreement(probabilities, labels)
    low, _ = exact_interval(same * len(labels), len(labels))
    if low <= np.bincount(labels).max() / len(labels):
        return "the model is not shown to be better than guessing"
    if same < MIN_AGREEMENT:
        return f"the model knows only {same:.0%} of the labels, {MIN_AGREEMENT:.0%} are needed to tell wrong ones"
    return ""


def _judged(
    training: Training, folders: ImageFolders, sight: Sight, temperature: float
) -> tuple[_Images, NDArray[np.float64], NDArray[np.int64], str]:
    """Images, probabilities, labels, and how they were judged."""
    known: list[tuple[tuple[Split, int], NDArray[np.float32]]] = []
    if training.on_features and len(folders.train) + len(folders.valid) <= MAX_IMAGES:
        known = [*_rows(training.train, folders.train), *_rows(training.valid, folders.valid)]
    of_train = sum(split.name == folders.train.name for (split, _), _ in known)
    if of_train < 2:  # of a job that goes on after its last epoch, too: it has no features of training images
        images = [(folders.valid, int(index)) for index in sight.images]
        return images, probabilities_of(sight.logits, temperature), sight.labels, "validation"
    images = [image for image, _ in known]
    labels = np.array([split.labels[index] for split, index in images], np.int64)
    rows = np.stack([row for _, row in known])
    return images, left_out(rows, labels, len(folders.classes)), labels, "left out"


def _rows(loader: object, split: Split) -> list[tuple[tuple[Split, int], NDArray[np.float32]]]:
    """The features of each image whose first view is known."""
    if not isinstance(loader, FeatureLoader) or not len(loader.features.places):
        return []
    places = loader.features.places[:, 0]
    return [
        ((split, int(index)), loader.features.rows[places[index], :FEATURES]) for index in np.flatnonzero(places >= 0)
    ]
