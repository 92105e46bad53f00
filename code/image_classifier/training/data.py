"""Files to batches. What a batch holds depends on (seed, epoch, step) only, never on the number of processes.

Knows nothing of the network. A file that cannot be read leaves its batch one image smaller and is reported with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import RandomResizedCrop

from image_classifier.contract.config import AUTO_WORKERS
from image_classifier.contract.errors import DataError, RequestError
from image_classifier.training.stop import ignore_stop_signals
from image_classifier.vision.decode import decode
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing, load, normalise

# Smallest share of the picture's area a training crop covers. 0.35 rather than ImageNet's usual 0.08: with few images
# a class, most crops should still show the thing itself.
CROP_SCALE: Mapping[str, float] = {"standard": 0.35, "light": 0.8}
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default
MAX_WORKERS = 8
CORES_PER_WORKER = 4  # without a GPU: the network is busy on every core, decoding needs a fraction of one

Key = tuple[int, int]  # (epoch, index into the split)


class Batch(NamedTuple):
    """What a step sees.

    Args:
        images: (n, 3, image_size, image_size) float32, normalised.
        labels: (n,) int64.
        indices: (n,) int64, into the split.
        unreadable: index into the split -> why; these images are not in the batch. n may be 0.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    unreadable: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Sample:
    index: int
    image: NDArray[np.float32] | None  # None when it cannot be read
    label: int
    reason: str


class ImageDataset(Dataset[_Sample]):
    """One split as samples. `augment` is a key of CROP_SCALE, or `none` for the picture as it is served."""

    def __init__(self, split: Split, preprocessing: Preprocessing, *, augment: str = "none", seed: int = 0) -> None:
        self.split = split
        self._preprocessing = preprocessing
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> _Sample:
        epoch, index = key
        path, label = self.split.paths[index], self.split.labels[index]
        try:
            if self._augment == "none":
                image = load(path, self._preprocessing)
            else:
                image = random_view(path, self._preprocessing, self._augment, (self._seed, epoch, index))
        except RequestError as error:
            return _Sample(index, None, label, error.message)
        return _Sample(index, image, label, "")


def random_view(path: Path, preprocessing: Preprocessing, augment: str, seed: Sequence[int]) -> NDArray[np.float32]:
    """A random crop of the picture, flipped half of the time; the same for the same seed.

    Returns:
        (3, image_size, image_size) float32, normalised.
    """
    scale, size = CROP_SCALE[augment], preprocessing.image_size
    shortest_crop = math.sqrt(scale * CROP_RATIO[0])  # of a square picture's side
    image = decode(path, min_side=math.ceil(size / shortest_crop))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        top, left, height, width = RandomResizedCrop.get_params(image, [scale, 1.0], list(CROP_RATIO))
        flip = bool(torch.rand(()) < 0.5)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    pixels = np.asarray(crop)
    return normalise(pixels[:, ::-1] if flip else pixels, preprocessing)


class EpochBatches(Sampler[list[Key]]):
    """The keys of one epoch's batches, from `first_step` on; set `epoch` and `first_step` before iterating."""

    def __init__(
        self, num_images: int, batch_size: int, *, shuffle_seed: int | None = None, rank: int = 0, size: int = 1
    ) -> None:
        self.epoch = 0
        self.first_step = 0
        self._num_images = num_images
        self._batch_size = batch_size
        self._shuffle_seed = shuffle_seed
        self._rank, self._size = rank, size

    def __len__(self) -> int:
        return math.ceil(self._num_images / self._batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order: NDArray[np.int64] = np.arange(self._num_images)
        if self._shuffle_seed is not None:
            order = np.random.default_rng((self._shuffle_seed, self.epoch)).permutation(self._num_images)
        for step in range(self.first_step, len(self)):
            start = step * self._batch_size
            share = order[start : start + self._batch_size][self._rank :: self._size]
            yield [(self.epoch, int(index)) for index in share]


class Loader:
    """A split as batches, epoch by epoch; with `size` processes, one process's share of each batch."""

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        workers: int,
        shuffle_seed: int | None = None,
        pin_memory: bool = False,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.split = dataset.split
        self._batches = EpochBatches(len(dataset), batch_size, shuffle_seed=shuffle_seed, rank=rank, size=size)
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # collate makes Batches of its samples
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker if workers else None,
            persistent_workers=workers > 0,
        )

    @property
    def num_steps(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return len(self._batches)

    def epoch(self, epoch: int = 0, *, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without opening the images of the steps before `first_step`."""
        self._batches.epoch, self._batches.first_step = epoch, first_step
        return iter(self._loader)

    def close(self) -> None:
        """Ends the data loading processes. Left to the interpreter's exit they get a SIGTERM, which they ignore, and
        the exit waits for them."""
        iterator = self._loader._iterator  # torch has no public way
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # of an iterator over processes


def collate(samples: Sequence[_Sample]) -> Batch:
    """Stacks the readable samples and names the others."""
    good = [sample for sample in samples if sample.image is not None]
    images = [torch.from_numpy(sample.image) for sample in good]
    return Batch(
        images=torch.stack(images) if images else torch.empty((0, 3, 1, 1)),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        indices=torch.tensor([sample.index for sample in good], dtype=torch.int64),
        unreadable={sample.index: sample.reason for sample in samples if sample.image is None},
    )


def _start_worker(_worker: int) -> None:
    ignore_stop_signals()


def num_workers(wanted: int, device: torch.device) -> int:
    """Data loading processes: as wanted; for AUTO_WORKERS one a core with a GPU, else one for every fourth core.

    On two cores without a GPU that is none: at 128 pixels the loop waits for images 2 % of the time, and a process of
    its own for them takes as much from the network.
    """
    if wanted != AUTO_WORKERS:
        return wanted
    cores = len(os.sched_getaffinity(0))
    return min(MAX_WORKERS, cores if device.type == "cuda" else cores // CORES_PER_WORKER)


class BadImages:
    """The unreadable files met so far: each is named once in the log; too many end the job."""

    def __init__(self, limit: int, found: Mapping[str, str] | None = None) -> None:
        self.found = dict(found or {})  # path -> reason
        self._limit = limit

    def add(self, split: Split, unreadable: Mapping[int, str]) -> list[str]:
        """Takes down the unreadable images of one batch and returns the reasons not heard before.

        Raises:
            DataError: more than `limit` distinct files cannot be read.
        """
        new = {str(split.paths[index]): reason for index, reason in unreadable.items()}
        new = {path: reason for path, reason in new.items() if path not in self.found}
        self.found.update(new)
        if len(self.found) > self._limit:
            raise DataError(
                f"{len(self.found)} images cannot be read, more than max_bad_images={self._limit}; "
                f"the last: {next(reversed(self.found.values()))}",
                "repair or remove the files named in bad_images.json, or raise max_bad_images",
            )
        return list(new.values())
