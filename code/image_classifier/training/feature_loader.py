"""A split whose images the body has seen already, as batches of features: to the loop a Loader like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from image_classifier.debugging.observer import Observer
from image_classifier.debugging.tensorstats import Scalars
from image_classifier.training.data import Batch, EpochBatches, Key
from image_classifier.training.features import SplitFeatures
from image_classifier.training.side_stream import SideStream
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.training.views import view_index
from image_classifier.vision.folders import Split
from image_classifier.vision.network import FEATURES

NOTHING = SplitFeatures(rows=np.empty((0, 0), np.float32), places=np.empty((0, 0), np.int64), unreadable={})


class FeatureLoader:
    """The batches are those of a `Loader` with the same arguments, image for image. Before the first epoch, `features`
    must be set, and `activations` to the statistics of the whole network's on a few images.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        rank: int = 0,
        size: int = 1,
        image_size: int,
        balanced: bool = False,
    ) -> None:
        self.split = split
        self.features = NOTHING
        self.activations: Scalars = {}
        self._labels = np.array(split.labels, np.int64)
        balance = split.labels if balanced else ()
        self._batches = EpochBatches(
            len(split), batch_size, shuffle_seed=shuffle_seed, rank=rank, size=size, balance=balance
        )
        self._num_pixels = image_size**2
        self._side_stream = SideStream()

    @property
    def num_steps(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return len(self._batches)

    def epoch(self, epoch: int = 0, *, first_step: int = 0, stop: StopFlag | None = None) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on: `images` are (n,) int64, rows of `features`.

        Raises, in the iterator:
            Interrupted: a stop is asked for.
        """
        self._batches.epoch, self._batches.first_step = epoch, first_step
        for keys in self._batches:
            if stop:
                raise Interrupted
            yield self._batch(keys)

    def sample(self, indices: Sequence[int]) -> tuple[Batch, None]:
        """A few rows as the first epoch has them, and nothing of what they would be without augmentation."""
        return self._batch([(1, index) for index in indices]), None

    def _batch(self, keys: Sequence[Key]) -> Batch:
        features = self.features
        bad = {index: features.unreadable[index] for _, index in keys if index in features.unreadable}
        good = np.array([key for key in keys if key[1] not in bad], np.int64).reshape(-1, 2)
        epochs, indices = good[:, 0], good[:, 1]
        places = features.places[indices, view_index(epochs, indices, features.places.shape[1])]
        return Batch(
            images=torch.from_numpy(places),
            labels=torch.from_numpy(self._labels[indices]),
            indices=torch.from_numpy(indices),
            unreadable=bad,
            contrast={},  # the extraction has told
        )

    def begin_early(self, epoch: int = 0) -> None:
        """Nothing: no batch has to be waited for."""

    def cache_news(self) -> str:
        """Nothing: no image is kept."""
        return ""

    def on_device(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, FEATURES) float32, as the head sees them, and the labels."""
        rows, labels = torch.from_numpy(self.features.rows[batch.images.numpy(), :FEATURES]), batch.labels
        if device.type == "cuda":  # from memory that may be moved, a copy would wait for the GPU
            rows, labels = rows.pin_memory(), labels.pin_memory()
        rows, labels = self._side_stream.copy((rows, labels), device)
        return rows, labels

    def show(self, batch: Batch, inputs: torch.Tensor, hook: Observer) -> None:
        """Tells of the images what `before_forward` is told otherwise: they were seen by the body."""

        def channels() -> Scalars:
            rows = self.features.rows[batch.images.numpy(), FEATURES:]
            return channel_statistics(torch.from_numpy(rows), self._num_pixels)

        hook.before_head(channels, self.activations)


def channel_statistics(rows: torch.Tensor, num_pixels: int) -> Scalars:
    """What `input_statistics` says of a batch, from each image's channel means and standard deviations.

    Args:
        rows: (n, 6) float32: three means, three deviations.
        num_pixels: of an image.
    """
    means, stds = rows[:, :3].double(), rows[:, 3:].double()
    mean, count = means.mean(dim=0), len(rows) * num_pixels
    squares = ((num_pixels - 1) * stds.square() + num_pixels * (means - mean).square()).sum(dim=0)
    std = (squares / max(1, count - 1)).sqrt()
    images = torch.tensor(float(len(rows)))
    return {str(i): {"mean": mean[i].float(), "std": std[i].float(), "images": images} for i in range(3)}
