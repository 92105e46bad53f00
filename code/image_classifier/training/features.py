"""What the head sees, computed once: the features of a split's images in their views, from the store or the body."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import nn

import image_classifier
from image_classifier.contract.errors import RequestError
from image_classifier.contract.machine import usable_cores
from image_classifier.debugging.tensorstats import Scalars, to_numbers
from image_classifier.training.bad_images import BadImages
from image_classifier.training.distributed import Group
from image_classifier.training.feature_store import FeatureStore, Rows, row_name
from image_classifier.training.frozen_body import FrozenBody, name_of
from image_classifier.training.reading import Picture, Read, by_threads, in_parts, read, read_ahead
from image_classifier.training.setup import Setup
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.training.views import CENTRE, read_views
from image_classifier.vision import usual_jpeg
from image_classifier.vision.contrast import FEW_LEVELS, contrast_of
from image_classifier.vision.decode import decode
from image_classifier.vision.fingerprint import Digests
from image_classifier.vision.folders import Split
from image_classifier.vision.network import FEATURES, HEAD
from image_classifier.vision.preprocess import IMAGENET_STD, Preprocessing
from image_classifier.vision.resnet import ResNet

log = logging.getLogger(__name__)

WIDTH = FEATURES + 6  # numbers in a row: features, and the input's channel means and deviations
ROUND = {"cpu": 512, "cuda": 8192}  # images between two meetings of the processes, and two writes to the store
RECENT = 4096  # rows of 8 kB that are not computed again where no store keeps them
SAY_EVERY_S = 10.0
# Of normalised values: with a larger one, a picture spans FEW_LEVELS for certain. Half of them is the largest deviation
# that a channel can have within them, and they are divided by ImageNet's deviation of that channel.
FAINT_DEVIATION = FEW_LEVELS / 2 / 255 / min(IMAGENET_STD)


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """What is known of a split.

    Args:
        rows: (r, WIDTH) float32.
        places: (images, views) int64, which row; -1 where an image cannot be read, or a view is not needed.
        unreadable: index into the split -> why.
    """

    rows: NDArray[np.float32]
    places: NDArray[np.int64]
    unreadable: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class _Computed:
    """What came of some pictures: (index, view) -> row, the same by the name for the store, and what is unreadable."""

    rows: dict[tuple[int, str], NDArray[np.float32]]
    kept: Rows
    unreadable: dict[int, str]


def _no_rows() -> _Computed:
    return _Computed(rows={}, kept={}, unreadable={})


class Extraction:
    """Computes features, each process of a group its share of the images. All of them make the same calls.

    Args:
        setup: device and number format of the features.
        store_folder: see FeatureStore.
        preparing: called now and then while it computes, with the seconds since the last call.
        digest: `body_digest` of the model, if it is known.
        readers: processes that read the pictures for a GPU; without them threads do.
    """

    def __init__(
        self,
        model: ResNet,
        preprocessing: Preprocessing,
        setup: Setup,
        *,
        store_folder: Path | None,
        group: Group,
        stop: StopFlag,
        bad: BadImages,
        preparing: Callable[[float], None] = lambda _: None,
        digest: str = "",
        readers: int = 0,
    ) -> None:
        self._readers = readers
        self._model, self._preprocessing, self._setup = model, preprocessing, setup
        self._group, self._stop, self._bad, self._preparing = group, stop, bad, preparing
        self._folder = store_folder
        self._key = {
            "weights": digest or body_digest(model) if store_folder else "",
            "preprocessing": preprocessing.to_json(),
            "engine": name_of(setup),
            "program": [image_classifier.__version__, PIL.__version__, usual_jpeg.VERSION],
        }
        self._store = FeatureStore(store_folder, self._key, WIDTH)
        self._body: FrozenBody | None = None
        self._recent: Rows = {}
        self.computed = 0  # rows, by this process
        self._told = self._alive = time.monotonic()

    def split(
        self,
        split: Split,
        contents: Sequence[str],
        views: Sequence[str],
        wanted: NDArray[np.bool_],
        *,
        said: bool = True,
    ) -> SplitFeatures:
        """The features of a split.

        Args:
            contents: the files' digests.
            wanted: (images, views), which of them.
            said: whether the log tells how many there are and how fast they were computed.

        Raises:
            Interrupted: a stop was asked for, in any process; what was computed is in the store.
            DataError: too many images cannot be read.
        """
        started, before = time.perf_counter(), self.computed
        places: NDArray[np.int64] = np.full(wanted.shape, -1, np.int64)
        rows: NDArray[np.float32] = np.empty((int(wanted.sum()), WIDTH), np.float32)
        unreadable: dict[int, str] = {}
        column = {view: number for number, view in enumerate(views)}
        filled = 0
        stride = ROUND[self._setup.device.type]
        for first in range(0, len(split), stride):
            indices = range(first + self._group.rank, min(first + stride, len(split)), self._group.size)
            pictures = [
                Picture(index=i, path=split.paths[i], views=tuple(np.array(views)[wanted[i]].tolist()))
                for i in indices
                if wanted[i].any()
            ]
            for found, reasons in self._round(pictures, contents, len(split)):
                for (index, view), row in found.items():
                    rows[filled], places[index, column[view]] = row, filled
                    filled += 1
                unreadable |= reasons
            for reason in self._bad.add(split, unreadable):
                log.warning("skipped: %s", reason)
        self._bad.note(split, contrast_in(split, rows, places))
        seconds = max(time.perf_counter() - started, 1e-9)
        log.log(
            logging.INFO if said else logging.DEBUG,
            "features of %s: %d kept from before, %d computed at %.1f images/s",
            split.name,
            filled - (self.computed - before),
            self.computed - before,
            (self.computed - before) / seconds,
        )
        return SplitFeatures(rows=rows[:filled], places=places, unreadable=unreadable)

    def _round(
        self, pictures: Sequence[Picture], contents: Sequence[str], num_images: int
    ) -> list[tuple[dict[tuple[int, str], NDArray[np.float32]], dict[int, str]]]:
        """What each process found of its pictures. Raises Interrupted in all of them when one was asked to stop."""
        named = {(each.index, view): row_name(view, contents[each.index]) for each in pictures for view in each.views}
        kept = self._store.load(named.values())
        kept |= {name: self._recent[name] for name in named.values() if name not in kept and name in self._recent}
        found = {place: kept[name] for place, name in named.items() if name in kept}
        missing = [
            replace(each, views=views)
            for each in pictures
            if (views := tuple(view for view in each.views if (each.index, view) not in found))
        ]
        unreadable: dict[int, str] = {}
        new: Rows = {}
        stopped = False
        for computed in self._compute(missing):
            found |= computed.rows
            unreadable |= computed.unreadable
            new |= computed.kept
            self.computed += len(computed.rows)
            self._tell(num_images)
            if stopped := bool(self._stop):
                break
        self._store.save(new)
        if self._folder is None:
            self._recent |= dict(islice(new.items(), RECENT - len(self._recent)))
        if self._group.largest(int(stopped or bool(self._stop))):
            raise Interrupted
        return self._group.exchange((found, unreadable))

    def _compute(self, pictures: Sequence[Picture]) -> Iterator[_Computed]:
        """The rows of pictures, a few at a time, while others are read.

        On the CPU each thread computes what it has read; for a GPU others only read, and this thread computes.
        """
        if not pictures:
            return
        body = self._ready_body(pictures)
        if self._setup.device.type == "cpu":
            share = max(1, body.batch // max(len(each.views) for each in pictures))
            work = partial(self._read_and_compute, body)
            yield from by_threads(torch.get_num_threads(), work, in_parts(pictures, share))
        else:
            yield from self._in_batches(
                body,
                read_ahead(
                    pictures,
                    self._preprocessing,
                    batch=body.batch,
                    processes=self._readers,
                    threads=max(1, self._setup.cores),
                ),
            )

    def _in_batches(self, body: FrozenBody, parts: Iterable[Read]) -> Iterator[_Computed]:
        """The rows of what was read, computed as soon as it fills a batch; read from the GPU while it computes the next
        one."""
        names: list[tuple[int, str, str]] = []
        pixels: list[NDArray[np.uint8]] = []
        before = _no_rows
        for its_names, its_pixels, unreadable in parts:
            names += its_names
            pixels += its_pixels
            whole = len(pixels) - len(pixels) % body.batch
            if whole or unreadable:
                begun = self._begun(body, names[:whole], pixels[:whole], unreadable)
                del names[:whole], pixels[:whole]
                yield before()
                before = begun
        begun = self._begun(body, names, pixels, {})
        yield before()
        yield begun()

    def _ready_body(self, pictures: Sequence[Picture]) -> FrozenBody:
        """The body, made when it is needed first and checked on a picture that can be read."""
        if self._body is None:
            views = self._first_views(pictures)
            self._body = FrozenBody(self._model, self._preprocessing, self._setup, views)
            if not self._body.is_fast:  # these are other bits than the store's
                self._store = FeatureStore(None, {}, WIDTH)
        return self._body

    def _first_views(self, pictures: Sequence[Picture]) -> NDArray[np.uint8] | None:
        for picture in pictures:
            try:
                _, views = read_views(picture.path, self._preprocessing, picture.views)
            except RequestError:
                continue
            return np.stack(list(views.values()))
        return None

    def _read_and_compute(self, body: FrozenBody, pictures: Sequence[Picture]) -> _Computed:
        return self._begun(body, *read(self._preprocessing, pictures))()

    def _begun(
        self,
        body: FrozenBody,
        names: list[tuple[int, str, str]],
        pixels: list[NDArray[np.uint8]],
        unreadable: dict[int, str],
    ) -> Callable[[], _Computed]:
        """Has them computed; what waits for it."""
        starts = range(0, len(pixels), body.batch)
        batches = [(names[at : at + body.batch], body.begin(pixels[at : at + body.batch])) for at in starts]

        def computed() -> _Computed:
            found = _Computed(rows={}, kept={}, unreadable=unreadable)
            for its_names, finished in batches:
                for (index, view, content), row in zip(its_names, np.concatenate(finished(), axis=1), strict=True):
                    found.rows[index, view] = row
                    if content:
                        found.kept[row_name(view, content)] = row
            return found

        return computed

    def of_bytes(self, image: bytes) -> NDArray[np.float32]:
        """(FEATURES,) of the centre of a picture that is no file. Raises what `decode` raises."""
        name = row_name(CENTRE, hashlib.sha256(image).hexdigest())
        row = self._store.load([name]).get(name, self._recent.get(name))
        if row is None:
            _, views = read_views(image, self._preprocessing, (CENTRE,))
            pixels = np.stack(list(views.values()))
            body = self._body or FrozenBody(self._model, self._preprocessing, self._setup, pixels)
            row = np.concatenate(body.features(pixels), axis=1)[0]
            if body.is_fast:
                self._store.save({name: row})
            self._body = body
        return row[:FEATURES].copy()  # what the store gives is not to be written to

    def largest_activations(self, split: Split) -> NDArray[np.float32] | None:
        """(n, activations) float32, as `FrozenBody.largest_activations` has them; None where the network is not folded
        or an image cannot be read.

        Raises:
            Interrupted: a stop was asked for.
        """
        pictures = [Picture(index=index, path=path, views=(CENTRE,)) for index, path in enumerate(split.paths)]
        body = self._ready_body(pictures)
        found: list[NDArray[np.float32]] = []
        work = partial(self._read_and_look, body)
        for rows in by_threads(torch.get_num_threads(), work, in_parts(pictures, body.batch)):
            if self._stop:
                raise Interrupted
            if rows is None:
                return None
            found.append(rows)
        return np.concatenate(found)

    def _read_and_look(self, body: FrozenBody, pictures: Sequence[Picture]) -> NDArray[np.float32] | None:
        images = read(self._preprocessing, pictures)
        return None if images.unreadable else body.largest_activations(images.pixels)

    def store_of(self, what: Mapping[str, object], width: int) -> FeatureStore:
        """Where something else that the body alone decides is kept, `width` numbers a picture."""
        return FeatureStore(self._folder, {**self._key, **what}, width)

    def statistics(self, images: Sequence[str], compute: Callable[[], Scalars]) -> Scalars:
        """What was computed of these images' activations before, or is now: a frozen body's are always the same.

        Args:
            images: their digests.
        """
        if not all(images):
            return compute()
        kept = self._store.load_note(images)
        if kept is None:
            scalars = compute()
            self._store.save_note(images, to_numbers({"": scalars})[""])
            return scalars
        return {layer: {name: torch.tensor(value) for name, value in values.items()} for layer, values in kept.items()}

    def _tell(self, num_images: int) -> None:
        now = time.monotonic()
        self._preparing(now - self._alive)
        self._alive = now
        if time.monotonic() - self._told > SAY_EVERY_S:
            self._told = time.monotonic()
            log.info("computing features: %d views so far, %d images in all", self.computed, num_images)


def contrast_in(split: Split, rows: NDArray[np.float32], places: NDArray[np.int64]) -> dict[int, str]:
    """Index -> `contrast_of` it, of the images that show next to nothing: the deviations of their channels tell which
    files are worth another look.

    Args:
        rows, places: see SplitFeatures; `places` has an image's views in columns.
    """
    deviations = rows[:, -3:].max(axis=1, initial=0.0)
    known = ((index, views[views >= 0]) for index, views in enumerate(places))
    faint = [index for index, views in known if len(views) and deviations[views[0]] <= FAINT_DEVIATION]

    def contrast(index: int) -> str | None:
        with suppress(RequestError):
            return contrast_of(decode(split.paths[index]))
        return None

    with ThreadPoolExecutor(usable_cores()) as threads:
        return {index: said for index, said in zip(faint, threads.map(contrast, faint), strict=True) if said}


def body_digest(model: nn.Module) -> str:
    """sha256 (hex) over the names and values of everything before the head."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not name.startswith(f"{HEAD}."):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def digests_of(contents: Digests, split: Split) -> Sequence[str]:
    """The digests of a split's files; of files that nobody has read yet, names that no store knows."""
    found = contents.get(split.name, ())
    return found if len(found) == len(split) else [""] * len(split)
