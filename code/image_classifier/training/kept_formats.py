"""What number formats make of a body, on the CPU: computed by every core, and of a frozen one kept for the next job.

In float32, and in bf16 where the processor computes in it, the photographs go through the body that trainings on
features use: after one of them, the rows in float32 are those that it was tested on. int8 is computed or simulated as
`number_formats` says. What depends on the head is computed in every job.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import RequestError
from image_classifier.contract.machine import usable_cores
from image_classifier.contract.text import as_text
from image_classifier.training.feature_store import FeatureStore, row_name
from image_classifier.training.features import Extraction
from image_classifier.training.golden import by_turns
from image_classifier.training.number_formats import GATE_PHOTOS, RANGE_PHOTOS, Body, Photos, in_batches
from image_classifier.training.views import CENTRE
from image_classifier.vision import network
from image_classifier.vision.fingerprint import file_digests
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing, load


class KeptBody(Body):
    """A body whose rows may be known from before.

    Args:
        train, unseen: splits with their files' digests, as `digests_of` gives them: for ranges and for the gates.
        unreadable: paths as text, of images that are known not to be readable.
        skip: as of `measure_formats`.
        in_float32: what computes features, and has a store or none.
        in_bf16: the same in bf16, where the processor computes in it: what a training on features has computed already.
    """

    def __init__(
        self,
        model: nn.Module,
        train: tuple[Split, Sequence[str]],
        unseen: tuple[Split, Sequence[str]],
        preprocessing: Preprocessing,
        *,
        unreadable: Collection[str],
        skip: int,
        pause: Callable[[], None],
        in_float32: Extraction,
        in_bf16: Extraction | None = None,
    ) -> None:
        nothing = Photos(images=(), labels=np.empty(0, np.int64))
        super().__init__(model, nothing, nothing, pause, ranges_in=torch.bfloat16 if in_bf16 else torch.float32)
        self._preprocessing, self._in_float32, self._in_bf16 = preprocessing, in_float32, in_bf16
        self._last: tuple[Split, Photos] | None = None
        self._train, self._train_digests = chosen(*train, RANGE_PHOTOS, 0, unreadable)
        self._gated, self._gated_digests = chosen(*unseen, GATE_PHOTOS, skip, unreadable)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self._gated.labels, np.int64)

    @property
    def is_empty(self) -> bool:
        return not len(self._train) or not len(self._gated)

    def exact(self) -> NDArray[np.float32]:
        return self._computed(self._in_float32)

    def half(self, dtype: torch.dtype) -> NDArray[np.float32]:
        if dtype == torch.bfloat16 and self._in_bf16 is not None:
            return self._computed(self._in_bf16)
        return self._rounded({"of": str(dtype)}, lambda: super(KeptBody, self).half(dtype))

    def maxima(self) -> Mapping[str, NDArray[np.float64]]:
        names = tuple(network.activations())
        computing = self._in_bf16 or self._in_float32

        def compute(missing: Split) -> NDArray[np.float32]:
            self._pause()
            if (rows := computing.largest_activations(missing)) is not None:
                return rows
            self._seen = as_photos(missing, self._preprocessing)
            found = super(KeptBody, self).maxima()
            return np.stack([found[name] for name in names], axis=1).astype(np.float32)

        store = computing.store_of({"of": "largest activations", "names": names}, len(names))
        rows = kept(store, self._train, self._train_digests, compute).astype(np.float64)
        return {name: rows[:, column] for column, name in enumerate(names)}

    def int8(self, ranges: Mapping[str, float]) -> NDArray[np.float32]:
        return self._rounded({"of": "int8", "ranges": dict(ranges)}, lambda: super(KeptBody, self).int8(ranges))

    def _computed(self, extraction: Extraction) -> NDArray[np.float32]:
        """A row for each image of the gates, as trainings on features have them."""
        self._pause()
        wanted = np.ones((len(self._gated), 1), np.bool_)
        found = extraction.split(self._gated, self._gated_digests, (CENTRE,), wanted, said=False)
        if found.unreadable:
            raise PhotosChanged
        return found.rows[found.places[:, 0], : network.FEATURES]

    def _rounded(self, what: Mapping[str, object], simulate: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """A row for each image of the gates; `simulate` gives those of `_unseen`."""

        def compute(missing: Split) -> NDArray[np.float32]:
            self._unseen = self._read(missing)
            return simulate()

        return kept(self._in_float32.store_of(what, network.FEATURES), self._gated, self._gated_digests, compute)

    def _read(self, split: Split) -> Photos:
        """The pictures of the gates' images; those that were read last are not read again."""
        if self._last is None or self._last[0] != split:
            self._last = split, as_photos(split, self._preprocessing)
        return self._last[1]


class PhotosChanged(Exception):
    """A photograph that could be read in the training no longer can."""


def chosen(
    split: Split, digests: Sequence[str], count: int, skip: int, unreadable: Collection[str]
) -> tuple[Split, list[str]]:
    """`count` readable images by turns of the classes after the first `skip`, as a split, and their files' digests."""
    place = {path: index for index, path in enumerate(split.paths)}
    readable = [path for path in by_turns(split) if as_text(path) not in unreadable]
    taken = [place[path] for path in readable[skip : skip + count]]
    return some_of(split, taken), [digests[i] for i in taken]


def as_photos(split: Split, preprocessing: Preprocessing) -> Photos:
    """Every image of a split, read, in its order. Raises PhotosChanged when one can no longer be."""
    try:
        with ThreadPoolExecutor(usable_cores()) as threads:
            arrays = threads.map(partial(load, preprocessing=preprocessing), split.paths)
            images = [torch.from_numpy(array) for array in arrays]
    except (RequestError, OSError) as error:
        raise PhotosChanged from error
    return Photos(images=in_batches(images), labels=np.asarray(split.labels, np.int64))


def kept(
    store: FeatureStore, split: Split, digests: Sequence[str], compute: Callable[[Split], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """A row an image: from the store, or computed and kept, unless the files have changed meanwhile.

    Args:
        digests: of the files.
        compute: some of the images -> a row each.
    """
    names = [row_name(CENTRE, digest) for digest in digests]
    found = store.load(name for name, digest in zip(names, digests, strict=True) if digest)  # some nobody has read
    missing = [index for index, name in enumerate(names) if name not in found]
    computed: dict[int, NDArray[np.float32]] = {}
    if missing:
        part = some_of(split, missing)
        computed = dict(zip(missing, compute(part), strict=True))
        if [digests[index] for index in missing] == file_digests(part.paths):
            store.save({names[index]: row for index, row in computed.items()})
    return np.stack([computed[i] if i in computed else found[name] for i, name in enumerate(names)])


def some_of(split: Split, indices: Sequence[int]) -> Split:
    """A split of these images, in this order."""
    paths, labels = tuple(split.paths[i] for i in indices), tuple(split.labels[i] for i in indices)
    return replace(split, paths=paths, labels=labels)
