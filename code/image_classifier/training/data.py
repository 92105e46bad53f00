"""Files to batches. What a batch holds depends on (seed, epoch, step) only, never on the number of processes.

Knows nothing of the network. A file that cannot be read leaves its batch one image smaller and is reported with it.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from image_classifier.contract.errors import JobError, RequestError
from image_classifier.contract.shared_memory import AHEAD
from image_classifier.debugging.observer import Observer
from image_classifier.training.balance import balanced_keys
from image_classifier.training.cache import PixelCache
from image_classifier.training.crops import no_larger_than_needed, random_view, resized, shortest_side
from image_classifier.training.kept_memory import keep_decoded_memory
from image_classifier.training.normalising import Normaliser
from image_classifier.training.side_stream import SideStream
from image_classifier.training.stop import Interrupted, StopFlag, ignore_stop_signals, share_temporary_folder
from image_classifier.vision.contrast import contrast_of_file
from image_classifier.vision.decode import decode_pixels
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing, load_pixels

BATCH_TIMEOUT_S = 900.0  # without a single batch: half of what the rule StalledTraining grants a step
TURN_S = 1.0  # between two looks while a batch does not come

Key = tuple[int, int]  # (epoch, index into the split)


class Batch(NamedTuple):
    """What the data loading processes send: bytes, a quarter of the floats that the network sees.

    Args:
        images: (n, 3, image_size, image_size) uint8 RGB, channels last in memory. `Loader.on_device` normalises them.
        labels: (n,) int64.
        indices: (n,) int64, into the split.
        unreadable: index into the split -> why; these images are not in the batch. n may be 0.
        contrast: index into the split -> `contrast_of` it, of images that show next to nothing and were read just now.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    unreadable: dict[int, str]
    contrast: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Sample:
    index: int
    image: torch.Tensor | None  # (image_size, image_size, 3) uint8; None when it cannot be read
    label: int
    reason: str
    contrast: str = ""


class ImageDataset(Dataset[_Sample]):
    """One split as samples. `augment` is a key of CROP_SCALE, or `none` for the picture as it is served.

    With a `cache` each file is opened once, as far as there is memory; it changes no sample.

    Args:
        sizes: the side of a sample in each epoch, from the first, the last one's going on; empty: what the network is
            tested on.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        augment: str = "none",
        seed: int = 0,
        cache: PixelCache | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        self.split = split
        self.preprocessing = preprocessing
        self._augment = augment
        self._seed = seed
        self.cache = cache
        self._sizes = tuple(sizes) or (preprocessing.image_size,)
        self._looked_at = bytearray(len(split))  # 1 for a picture whose contrast this process has looked at
        self.between: Callable[[], None] | None = None  # called before each picture that this process reads itself

    def unchanged(self) -> ImageDataset | None:
        """The same images without augmentation; None where these are."""
        return None if self._augment == "none" else ImageDataset(self.split, self.preprocessing, sizes=self._sizes)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> _Sample:
        if self.between is not None:
            self.between()
        epoch, index = key
        label = self.split.labels[index]
        try:
            pixels, contrast = self._pixels(index)
        except RequestError as error:
            return _Sample(index, None, label, error.message)
        image, size = torch.from_numpy(pixels), self._sizes[min(max(epoch, 1), len(self._sizes)) - 1]
        if self._augment == "none":
            image = resized(image, size)
        else:
            image = random_view(image, size, self._augment, seed_of(self._seed, epoch, index))
        return _Sample(index, image, label, "", contrast)

    def _pixels(self, index: int) -> tuple[NDArray[np.uint8], str]:
        """(H, W, 3): what of a sample is the same in every epoch; and `contrast_of` it, when it was not seen yet.

        Raises what `decode` raises.
        """
        kept = None if self.cache is None else self.cache.get(index)
        if kept is None:
            pixels = self._decoded(index)
            kept = None if self.cache is None else self.cache.put(index, pixels)
            kept = pixels if kept is None else kept
        if self._looked_at[index]:
            return kept, ""
        self._looked_at[index] = 1
        return kept, contrast_of_file(self.split.paths[index], kept)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        path = self.split.paths[index]
        if self._augment == "none":
            return load_pixels(path, self.preprocessing)
        side = shortest_side(max(self._sizes), self._augment)
        return no_larger_than_needed(decode_pixels(path, min_side=side), side)


def seed_of(seed: int, epoch: int, index: int) -> int:
    """Of the view that an epoch has of a picture: another number for other ones, each below 2**32."""
    return seed << 64 | epoch << 32 | index


class EpochBatches(Sampler[list[Key]]):
    """The keys of one epoch's batches, from `first_step` on; set `epoch` and `first_step` before iterating.

    Args:
        balance: the labels, where as many images of every class are to be drawn.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        rank: int = 0,
        size: int = 1,
        balance: Sequence[int] = (),
    ) -> None:
        self.epoch = 0
        self.first_step = 0
        self._num_images = num_images
        self._batch_size = batch_size
        self._shuffle_seed = shuffle_seed
        self._rank, self._size = rank, size
        self._balance = balance

    def __len__(self) -> int:
        return math.ceil(self._num_images / self._batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order: NDArray[np.int64] = np.arange(self._num_images)
        if self._shuffle_seed is not None:
            order = np.random.default_rng((self._shuffle_seed, self.epoch)).permutation(self._num_images)
        keys = balanced_keys(self._balance, self.epoch, self._shuffle_seed or 0) if self._balance else ()
        for step in range(self.first_step, len(self)):
            places = slice(step * self._batch_size, (step + 1) * self._batch_size)
            share = keys[places] or [(self.epoch, int(index)) for index in order[places]]
            yield list(share[self._rank :: self._size])


class Waiting:
    """What is looked at while a batch does not come.

    torch waits for its loading processes in turns of some seconds, each a call of the iterator's `_try_get_data`, and
    sees in each whether one of them died. It looks for nothing else: here each turn does.
    """

    stop: StopFlag | None = None
    _idle_since: float | None = None  # of time.monotonic()

    def watch(self, iterator: Any) -> None:
        """Lets a DataLoader's iterator with loading processes wait in our turns, from now on."""
        if getattr(iterator, "watched", False):  # loading processes stay for the next epoch, and so does their iterator
            return
        iterator.watched = True
        # By a weak reference: an iterator that refers to itself ends in a garbage collection, which takes its queues
        # first. Its processes then do not hear that they are done, and it waits five seconds for each of them.
        turn = partial(type(iterator)._try_get_data, weakref.proxy(iterator))
        iterator._try_get_data = partial(self._turn, turn)

    def _turn(self, turn: Callable[..., tuple[bool, Any]], timeout: float = 0.0) -> tuple[bool, Any]:
        found, data = turn(timeout=TURN_S)
        if found:
            self._idle_since = None
            return found, data
        self.check_stop()
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        if time.monotonic() - self._idle_since > BATCH_TIMEOUT_S:
            raise JobError(
                f"no batch of images has come for {BATCH_TIMEOUT_S:.0f} s",
                "is the storage there? workers=0 loads without processes of their own",
            )
        return found, data

    def check_stop(self) -> None:
        """Raises Interrupted when a stop is asked for."""
        if self.stop:
            raise Interrupted


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
        balanced: bool = False,
    ) -> None:
        self.split = dataset.split
        self._dataset = dataset
        self._kept = 0
        self._begun: tuple[Key, Iterator[Batch]] | None = None  # of (epoch, first_step)
        self._waiting = Waiting()
        self._side_stream = SideStream()
        self._normalise = Normaliser(dataset.preprocessing)
        balance = dataset.split.labels if balanced else ()
        self._batches = EpochBatches(
            len(dataset), batch_size, shuffle_seed=shuffle_seed, rank=rank, size=size, balance=balance
        )
        workers = min(workers, self.num_steps)  # each makes whole batches
        if workers:
            share_temporary_folder()
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # collate makes Batches of its samples
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=start_worker if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,  # what PixelCache needs
            prefetch_factor=AHEAD if workers else None,
        )

    @property
    def num_steps(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return len(self._batches)

    def epoch(self, epoch: int = 0, *, first_step: int = 0, stop: StopFlag | None = None) -> Iterator[Batch]:
        """The batches of one epoch, without opening the images of the steps before `first_step`.

        Raises, also in the iterator:
            Interrupted: a stop is asked for while a batch does not come.
            JobError: none came for BATCH_TIMEOUT_S.
            RuntimeError: a loading process died or failed, as torch says it.
        """
        self._waiting.stop = stop
        self._dataset.between = None if self._loader.num_workers else self._waiting.check_stop
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (epoch, first_step):
            return begun[1]
        return self._begin(epoch, first_step)

    def begin_early(self, epoch: int = 0) -> None:
        """Lets the loading processes begin with the epoch that will be asked for next, so that its first batch is there
        when it is. Between two epochs of this loader; does nothing without loading processes."""
        if self._loader.num_workers and self._begun is None:
            self._begun = (epoch, 0), self._begin(epoch, 0)

    def _begin(self, epoch: int, first_step: int) -> Iterator[Batch]:
        self._batches.epoch, self._batches.first_step = epoch, first_step
        iterator: Any = iter(self._loader)
        if self._loader.num_workers:
            self._waiting.watch(iterator)
        return iterator  # type: ignore[no-any-return]

    def sample(self, indices: Sequence[int]) -> tuple[Batch, Batch | None]:
        """A few images as the first epoch has them, read here and now, and the same without augmentation if there is
        one. Raises Interrupted as `epoch`."""
        augmented = collate([self._dataset[1, index] for index in indices])
        plain = self._dataset.unchanged()
        return augmented, None if plain is None else collate([plain[1, int(index)] for index in augmented.indices])

    def cache_news(self) -> str:
        """How many decoded images are kept, if that is not what the last call said; for the log."""
        cache = self._dataset.cache
        if cache is None or (kept := len(cache)) == self._kept:
            return ""
        self._kept = kept
        share = "all" if kept == len(self.split) else f"{kept} of"
        rest = "" if kept == len(self.split) else "; the others are decoded in every epoch"
        return (
            f"{share} {len(self.split)} {self.split.name} images are kept decoded, {cache.num_bytes / 1e6:.0f} MB{rest}"
        )

    def show(self, batch: Batch, inputs: torch.Tensor, hook: Observer) -> None:
        """Shows an observer what the network is about to see."""
        hook.before_forward(inputs)

    def on_device(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The images as the network sees them, bit for bit those of `vision.preprocess.normalise`, and the labels.

        Returns:
            (n, 3, image_size, image_size) float32, channels last in memory; (n,) int64.
        """
        images, labels = self._side_stream.copy((batch.images, batch.labels), device)
        return self._normalise(images), labels


def collate(samples: Sequence[_Sample]) -> Batch:
    """Stacks the readable samples and names the others.

    In a loading process the tensors move to shared memory here. torch would do it in a thread whose errors, such as no
    space left, nobody hears of: the batch would never come.
    """
    good = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in samples if sample.image is not None]
    batch = Batch(
        images=(torch.stack(images) if images else torch.empty((0, 1, 1, 3), dtype=torch.uint8)).permute(0, 3, 1, 2),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        indices=torch.tensor([sample.index for sample in good], dtype=torch.int64),
        unreadable={sample.index: sample.reason for sample in samples if sample.image is None},
        contrast={sample.index: sample.contrast for sample in samples if sample.contrast},
    )
    if get_worker_info() is not None:
        for tensor in (batch.images, batch.labels, batch.indices):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    return batch


def start_worker(_worker: int) -> None:
    """What a loading process does first."""
    ignore_stop_signals()
    keep_decoded_memory()
    # Iterators that the job had when it forked are its own to end: torch would fail over their processes, in the log.
    torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__del__ = lambda _: None  # type: ignore[method-assign]
