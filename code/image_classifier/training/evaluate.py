"""A network's answers to a split, and what they are worth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import DataError
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.scores import balanced_accuracy, confusion_matrix, macro_f1
from image_classifier.training.bad_images import BadImages
from image_classifier.training.data import Loader
from image_classifier.training.distributed import Group
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.setup import Setup
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.vision.confidence import calibration_error, confidence_bins
from image_classifier.vision.folders import Split
from image_classifier.vision.temperature import NONE

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
        uncalibrated: `loss` and `calibration_error` as they would be without a temperature.
    """

    loss: float
    accuracy: float
    top5_accuracy: float
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]
    uncalibrated: Mapping[str, float] = field(default_factory=dict)

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

    def answered_above(self, limit: float) -> dict[str, float]:
        """`coverage`, the share of images whose answer is at least so probable, and `accuracy`, of these."""
        sure = self.probability >= limit
        hits = (self.predicted == self.labels)[sure]
        return {"coverage": float(sure.mean()), "accuracy": float(hits.mean()) if len(hits) else 0.0}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one process was told by the network of its share of a split.

    Args:
        columns: (n,) arrays: index into the split, label, predicted class, its probability, loss, whether the label is
            among the TOP_K; probability and loss without a temperature.
        unreadable, contrast: as of Batch, of the whole share.
    """

    columns: tuple[NDArray[Any], ...]
    unreadable: Mapping[int, str]
    contrast: Mapping[int, str]


def evaluate(
    model: nn.Module,
    loader: Loader | FeatureLoader,
    hook: Observer,
    bad: BadImages,
    stop: StopFlag,
    *,
    setup: Setup,
    group: Group | None = None,
    temperature: float = NONE,
) -> Evaluation:
    """Runs the split through the network, or its head where the loader gives features, in evaluation mode: batch norms
    on their running statistics.

    The hook has been told which evaluation this is (`begin`).

    Args:
        group: whose processes evaluate together, each with a loader of its share, on the main process's batch norms.
            What is returned and raised is the same in all of them. Default: this process has the whole split.
        temperature: what the logits are divided by.

    Raises:
        Interrupted: the stop flag was set.
        DataError: no image could be read, or too many could not.
    """
    group = Group() if group is None else group
    group.share_buffers(model)
    shares = group.from_each(lambda: answer(model, loader, hook, bad, stop, setup=setup, temperature=temperature))
    for share in shares:
        for reason in bad.add(loader.split, share.unreadable):  # that other processes have met
            log.warning("skipped: %s", reason)
        bad.note(loader.split, share.contrast)
    evaluation = group.from_main(lambda: evaluation_of(shares, loader.split))
    if group.size > 1:
        hook.whole_split(evaluation.labels, evaluation.predicted)
    hook.end_epoch()
    return evaluation


@torch.inference_mode()
def answer(
    model: nn.Module,
    loader: Loader | FeatureLoader,
    hook: Observer,
    bad: BadImages,
    stop: StopFlag,
    *,
    setup: Setup,
    temperature: float = NONE,
) -> Answers:
    """The network's answers to what the loader has of a split; `bad` has been told. Raises as `evaluate`, but for a
    share of which nothing can be read."""
    model.eval()
    columns: list[list[torch.Tensor]] = [[], [], [], [], [], [], [], []]
    unreadable: dict[int, str] = {}
    contrast: dict[int, str] = {}
    for batch in loader.epoch(stop=stop):
        hook.mark("data_wait_s")
        if stop:
            raise Interrupted
        for reason in bad.add(loader.split, batch.unreadable):
            log.warning("skipped: %s", reason)
        bad.note(loader.split, batch.contrast)
        unreadable |= batch.unreadable
        contrast |= batch.contrast
        if len(batch.labels) == 0:
            hook.skip_step()
            continue
        with hook.phase("h2d"):
            inputs, labels = loader.on_device(batch, setup.device)
        with hook.phase("forward"):
            with setup.autocast():
                given = model(inputs)
            logits = given.float() / temperature
            losses = F.cross_entropy(logits, labels, reduction="none")
        hook.end_step(losses.mean(), logits, labels)
        probability, ranked = logits.softmax(1).topk(min(TOP_K, logits.shape[1]))
        plain = (probability[:, 0], losses) if temperature == NONE else _plain(given.float(), labels)
        hits = ranked == labels[:, None]
        row = (batch.indices, labels, ranked[:, 0], probability[:, 0], losses, hits.any(1), *plain)
        for column, values in zip(columns, row, strict=True):
            column.append(values)
    found = tuple(torch.cat(column).cpu().numpy() if column else np.empty(0) for column in columns)
    return Answers(columns=found, unreadable=unreadable, contrast=contrast)


def evaluation_of(shares: Sequence[Answers], split: Split) -> Evaluation:
    """What the answers are worth, in the order of the split. Raises DataError when there is none."""
    shares = [share for share in shares if len(share.columns[0])]
    if not shares:
        raise DataError(f"no image of the {split.name} split can be read", "bad_images.json names the reasons")
    columns = [np.concatenate([share.columns[i] for share in shares]) for i in range(len(shares[0].columns))]
    order = np.argsort(columns[0], kind="stable")
    indices, labels, predicted, probability, losses, in_top, *plain = (column[order] for column in columns)
    bins = confidence_bins(plain[0], predicted == labels)
    return Evaluation(
        loss=float(losses.astype(np.float64).mean()),
        accuracy=float((predicted == labels).mean()),
        top5_accuracy=float(in_top.mean()),
        indices=indices,
        labels=labels,
        predicted=predicted,
        probability=probability,
        uncalibrated={"loss": float(plain[1].astype(np.float64).mean()), "calibration_error": calibration_error(bins)},
    )


def _plain(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable class's probability, and the loss, without a temperature."""
    return logits.softmax(1).amax(1), F.cross_entropy(logits, labels, reduction="none")
