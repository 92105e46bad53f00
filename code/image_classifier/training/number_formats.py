"""What the number formats a server may compute in would cost this model, found out on photographs before it is written.

The image that trains has no server's engine in it, so the formats are simulated in torch: the same folded convolutions
as the server's graph, with what enters them and their weights rounded as there, all else in float32. Where a processor
has instructions for int8, they compute it (`int8_kernels.py`), held against the simulation. What an engine makes of it
in the end is held against the golden samples, within what was measured here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from image_classifier.contract.errors import RequestError, describe
from image_classifier.contract.machine import usable_cores
from image_classifier.training.folded_network import Folded, Half, Int8, Round, as_it_is, to_int8
from image_classifier.training.golden import by_turns
from image_classifier.training.int8_kernels import CHECKED, Int8Kernels, has_int8_kernels, is_as_good
from image_classifier.training.rounding import Correcting, corrections_of, least_error
from image_classifier.vision import gate, network
from image_classifier.vision.folders import Split
from image_classifier.vision.gate import Gate
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.temperature import NONE

log = logging.getLogger(__name__)

RANGE_PHOTOS = 64  # of the training images; ranges hardly change with more
GATE_PHOTOS = 100  # of the validation images, on a CPU, where each takes a tenth of a second and more
GATE_PHOTOS_ON_GPU = 400
_BATCH = 16
_LEAST_RANGE = 1e-6  # of a tensor that is all zeros
LARGEST = "largest value of all photos"
LEAST_ERROR = "range of the least squared error, with corrected biases"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """For int8 the range of each activation and, by layer, what corrects its biases; by number format its cost."""

    ranges: Mapping[str, float]
    gates: Mapping[str, Gate]
    corrections: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Images as the network sees them: batches of (n, 3, H, W) float32 with n labels each, int64."""

    images: tuple[Tensor, ...]
    labels: NDArray[np.int64]


class Body:
    """What lies before the head, on photographs and in every number format; computed anew.

    Args:
        seen: training images, for ranges.
        unseen: validation images, for the gates.
        pause: called between batches; what it raises ends the measurement.
    """

    def __init__(self, model: nn.Module, seen: Photos, unseen: Photos, pause: Callable[[], None]) -> None:
        self.on_gpu = next(model.parameters()).device.type == "cuda"
        self._model, self._seen, self._unseen, self._pause = model, seen, unseen, pause

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,), of the validation images."""
        return self._unseen.labels

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to measure on."""
        return not len(self._seen.labels) or not len(self._unseen.labels)

    def exact(self) -> NDArray[np.float32]:
        """(n, FEATURES), in float32."""
        return self._features(self._folded, as_it_is)

    def half(self, dtype: torch.dtype) -> NDArray[np.float32]:
        """(n, FEATURES), in a 16-bit format."""
        to_half = Half(dtype)
        return self._features(self._folded.rounded(to_half.weight), to_half)

    def maxima(self) -> Mapping[str, NDArray[np.float64]]:
        """Name of an activation -> its largest absolute value in each training image."""
        return observe(self._folded, self._seen, self._device, self._pause, largest_value)

    def least_errors(self) -> Mapping[str, NDArray[np.float64]]:
        """Name of an activation -> the range with the least error in each training image."""
        return observe(self._folded, self._seen, self._device, self._pause, least_error)

    def losses(self, ranges: Mapping[str, float]) -> NDArray[np.float32]:
        """What rounding with these ranges takes from each training image: a row of `Correcting` for each."""
        work = Correcting(self._folded, self._in_int8, ranges)
        return self._computed(self._seen, work.rows)

    def int8(self, ranges: Mapping[str, float], corrections: Mapping[str, Sequence[float]]) -> NDArray[np.float32]:
        """(n, FEATURES), in int8 with these ranges, and biases that are corrected by so much: by the processor's own
        instructions where it has them."""
        work = self._in_int8.corrected(corrections)
        if (kernels := self._int8_kernels(work, ranges)) is not None:
            return self._computed(self._unseen, kernels)
        return self._features(work, Int8(ranges))

    def _int8_kernels(self, work: Folded, ranges: Mapping[str, float]) -> Int8Kernels | None:
        """None where there are none, or where they do not give what the simulation does."""
        if self.on_gpu or not has_int8_kernels():
            return None
        photos = self._unseen.images[0]
        checked = photos[:CHECKED].contiguous(memory_format=torch.channels_last)
        simulated, exact = work.features(checked, Int8(ranges)), self._folded.features(checked, as_it_is)
        try:
            kernels = Int8Kernels(self._folded.weights, work.biases, ranges, list(photos.shape))
            good = is_as_good(kernels(checked), simulated, exact)
        except RuntimeError as error:  # torch's kernels differ from version to version
            log.info("int8 is simulated: %s", describe(error))
            return None
        if not good:
            log.info("int8 is simulated: the processor's own instructions give other features")
        return kernels if good else None

    @cached_property
    def _folded(self) -> Folded:
        return Folded(self._model.state_dict())

    @cached_property
    def _in_int8(self) -> Folded:
        return self._folded.rounded(to_int8)

    def _features(self, work: Folded, rounded: Round) -> NDArray[np.float32]:
        return self._computed(self._unseen, lambda images: work.features(images, rounded))

    def _computed(self, some: Photos, compute: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        """A row for each image."""
        found = []
        for batch in some.images:
            self._pause()
            found.append(compute(batch.to(self._device, memory_format=torch.channels_last)).cpu().numpy())
        return np.concatenate(found)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def measure_formats(
    model: nn.Module,
    train: Split,
    valid: Split,
    preprocessing: Preprocessing,
    *,
    skip: int = 0,
    pause: Callable[[], None] = lambda: None,
    temperature: float = NONE,
) -> Measured:
    """Takes ranges from training images and measures every format on validation images, on the model's device.

    Args:
        skip: the first so many validation images are golden samples.
        pause: called between batches; what it raises ends the measurement.
        temperature: what the logits are divided by.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    seen = photos(train, preprocessing, RANGE_PHOTOS)
    unseen = photos(valid, preprocessing, GATE_PHOTOS_ON_GPU if on_gpu else GATE_PHOTOS, skip)
    return measure_body(model, Body(model, seen, unseen, pause), temperature)


def measure_body(model: nn.Module, body: Body, temperature: float = NONE) -> Measured:
    """What each format costs the answers of `model`'s head to what its body gives.

    Of several ways to round to int8 the first that is good enough is kept, else the one with most answers in common.
    """
    if body.is_empty:
        return Measured(ranges={}, gates={})
    head = model.get_submodule(network.HEAD).state_dict()
    weight, bias = head["weight"].float().cpu(), head["bias"].float().cpu()

    def answers(
        features: NDArray[np.float32], rounded: Round, to: Callable[[Tensor], Tensor], more: Sequence[float] = ()
    ) -> NDArray[np.float64]:
        entering = rounded(network.HEAD, torch.from_numpy(features))
        corrected = bias + torch.tensor(more) if more else bias
        logits = F.linear(entering, to(weight), corrected).double() / temperature
        probabilities: NDArray[np.float64] = logits.softmax(1).numpy()
        return probabilities

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = answers(body.exact(), as_it_is, lambda weight: weight)
        gates = {}
        for name, dtype in ((gate.BFLOAT16, torch.bfloat16), (gate.FLOAT16, torch.float16)):
            if name == gate.FLOAT16 and not body.on_gpu:
                continue  # no CPU engine computes in it
            to_half = Half(dtype)
            gates[name] = gate.measure(exact, answers(body.half(dtype), to_half, to_half.weight), body.labels)
        tried: list[Measured] = []
        for method, ranges, corrections in ways_to_int8(body, weight):
            more = corrections.get(network.HEAD, ())
            in_int8 = answers(body.int8(ranges, corrections), Int8(ranges), to_int8, more)
            found = gate.measure(exact, in_int8, body.labels, method)
            tried.append(Measured(ranges=ranges, gates=gates | {gate.INT8: found}, corrections=corrections))
            if not found.refusal:
                break
    best = max(tried, key=lambda each: (not each.gates[gate.INT8].refusal, each.gates[gate.INT8].agreement))
    for name, found in best.gates.items():
        log.info("%s: %s%s", name, found.sentence, f"; not to be served: {found.refusal}" if found.refusal else "")
    return best


def ways_to_int8(body: Body, head: Tensor) -> Iterator[tuple[str, dict[str, float], dict[str, tuple[float, ...]]]]:
    """How ranges are chosen, the ranges, and the corrections of biases; the next one is computed when it is asked for.

    Args:
        head: (num_classes, FEATURES), its weights.
    """
    maxima = {name: max(_LEAST_RANGE, float(values.max())) for name, values in body.maxima().items()}
    yield LARGEST, maxima, {}
    ranges = {name: max(_LEAST_RANGE, float(values.mean())) for name, values in body.least_errors().items()}
    yield LEAST_ERROR, ranges, corrections_of(body.losses(ranges), head)


def photos(split: Split, preprocessing: Preprocessing, count: int, skip: int = 0) -> Photos:
    """`count` readable images of a split, by turns of the classes, after the first `skip`; decoded on every core."""
    label_of = dict(zip(split.paths, split.labels, strict=True))
    images: list[Tensor] = []
    labels: list[int] = []
    for path, image in _decoded(by_turns(split), preprocessing):
        images.append(image)
        labels.append(label_of[path])
        if len(images) == count + skip:
            break
    return Photos(images=in_batches(images[skip:]), labels=np.asarray(labels[skip:], np.int64))


def _decoded(paths: Iterator[Path], preprocessing: Preprocessing) -> Iterator[tuple[Path, Tensor]]:
    """The readable ones of the images and what the network sees of them, in order; a few are decoded ahead."""

    def read(path: Path) -> Tensor | None:
        with suppress(RequestError, OSError):  # counted and named when it was evaluated
            return torch.from_numpy(load(path, preprocessing))
        return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        while some := tuple(islice(paths, _BATCH)):
            for path, image in zip(some, pool.map(read, some), strict=True):
                if image is not None:
                    yield path, image


def in_batches(images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As many at a time as go through the network together."""
    return tuple(torch.stack(list(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH))


def observe(
    folded: Folded,
    seen: Photos,
    device: torch.device,
    pause: Callable[[], None],
    of_each: Callable[[Tensor, bool], Tensor],
) -> dict[str, NDArray[np.float64]]:
    """Name of an activation -> (n,) float64, a number for each photo.

    Args:
        of_each: (n, ...), whether it has a sign -> (n,).
    """
    found: dict[str, list[Tensor]] = {}
    signed = network.activations()

    def look(name: str, x: Tensor) -> Tensor:
        found.setdefault(name, []).append(of_each(x, signed.get(name, False)).double().cpu())
        return x

    for batch in seen.images:
        pause()
        folded.logits(batch.to(device, memory_format=torch.channels_last), look)
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def largest_value(x: Tensor, signed: bool) -> Tensor:
    """(n, ...) -> (n,), absolute."""
    every = tuple(range(1, x.ndim))
    return torch.maximum(x.amax(every), -x.amin(every)) if signed else x.amax(every)
