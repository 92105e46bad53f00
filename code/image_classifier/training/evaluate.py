"""A network's answers to a split, and what they are worth."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import DataError
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.scores import balanced_accuracy, confusion_matrix, macro_f1
from image_classifier.training.data import BadImages, Loader
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.setup import Setup
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.vision.confidence import calibration_error, confidence_bins

log = logging.getLogger(__name__)
TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over the readable images of a split, and the answer to each.

    Args:
        loss: mean cross entropy against the true labels, without smoothing.
        accuracy, top5_accuracy: shares, 0..1; of min(5, classes) answers.
        indices: (n,) int64, into the split.
        labels, predicted: (n,) int64.
        probability: (n,) float32, of the predicted class.
    """

    loss: float
    accuracy: float
    top5_accuracy: float
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]

    def metrics(self, split: str) -> dict[str, float]:
        """Metric name -> value, named for the split."""
        num_classes = int(max(self.labels.max(), self.predicted.max())) + 1
        confusion = confusion_matrix(self.labels, self.predicted, num_classes)
        bins = confidence_bins(self.probability, self.predicted == self.labels)
        return {
            f"{split}:loss": self.loss,
            f"{split}:accuracy": self.accuracy,
            f"{split}:top5_accuracy": self.top5_accuracy,
            f"{split}:balanced_accuracy": balanced_accuracy(confusion),
            f"{split}:macro_f1": macro_f1(confusion),
            f"{split}:calibration_error": calibration_error(bins),
        }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader | FeatureLoader,
    hook: Observer,
    bad: BadImages,
    stop: StopFlag,
    *,
    setup: Setup,
) -> Evaluation:
    """Runs the split through the network, or its head where the loader gives features, in evaluation mode: batch norms
    on their running statistics.

    The hook has been told which evaluation this is (`begin`).

    Raises:
        Interrupted: the stop flag was set.
        DataError: no image could be read, or too many could not.
    """
    model.eval()
    columns: list[list[torch.Tensor]] = [[], [], [], [], [], []]
    for batch in loader.epoch(stop=stop):
        hook.mark("data_wait_s")
        if stop:
            raise Interrupted
        for reason in bad.add(loader.split, batch.unreadable):
            log.warning("skipped: %s", reason)
        bad.note(loader.split, batch.contrast)
        if len(batch.labels) == 0:
            hook.skip_step()
            continue
        with hook.phase("h2d"):
            inputs, labels = loader.on_device(batch, setup.device)
        with hook.phase("forward"):
            with setup.autocast():
                logits = model(inputs)
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
        hook.end_step(losses.mean(), logits, labels)
        probability, ranked = logits.float().softmax(1).topk(min(TOP_K, logits.shape[1]))
        hits = ranked == labels[:, None]
        row = (batch.indices, labels, ranked[:, 0], probability[:, 0], losses, hits.any(1))
        for column, values in zip(columns, row, strict=True):
            column.append(values)
    hook.end_epoch()
    if not columns[0]:
        raise DataError(f"no image of the {loader.split.name} split can be read", "bad_images.json names the reasons")
    indices, labels_, predicted, probability_, losses_, in_top = (torch.cat(column).cpu().numpy() for column in columns)
    return Evaluation(
        loss=float(losses_.astype(np.float64).mean()),
        accuracy=float((predicted == labels_).mean()),
        top5_accuracy=float(in_top.mean()),
        indices=indices,
        labels=labels_,
        predicted=predicted,
        probability=probability_,
    )
