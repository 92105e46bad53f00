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
from dataclasses import dataclass
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
from image_classifier.training.frozen_body import CPU_BATCH
from image_classifier.training.golden import by_turns
from image_classifier.training.int8_kernels import CHECKED, Int8Kernels, has_int8_kernels, is_as_good
from image_classifier.training.reading import by_threads
from image_classifier.vision import gate, network
from image_classifier.vision.folders import Split
from image_classifier.vision.gate import Gate
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.temperature import NONE

log = logging.getLogger(__name__)

RANGE_PHOTOS = 64  # of the training images; ranges hardly change with more
GATE_PHOTOS = 100  # that the network has not learned, on a CPU, where each takes a tenth of a second and more
GATE_PHOTOS_ON_GPU = 400
_BATCH = 16
_BATCH_ON_GPU = 64  # whose layers it computes faster than Python launches those of fewer
_LEAST_RANGE = 1e-6  # of a tensor that is all zeros

Round = Callable[[str, Tensor], Tensor]
"""(name of an activation, values) -> values as the format can hold them."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Largest absolute value of each activation, and number format -> what it costs."""

    ranges: Mapping[str, float]
    gates: Mapping[str, Gate]


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Images as the network sees them: batches of (n, 3, H, W) float32 with n labels each, int64."""

    images: tuple[Tensor, ...]
    labels: NDArray[np.int64]


class Body:
    """What lies before the head, on photographs and in every number format; computed anew.

    Args:
        seen: training images, for ranges.
        unseen: images that the network has not learned, for the gates.
        pause: called between batches; what it raises ends the measurement.
        ranges_in: the number format in which activations are computed for their ranges. bf16 moves the largest by up
            to 1 % (a ResNet50's); of a range int8 has 256 levels.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Photos,
        unseen: Photos,
        pause: Callable[[], None],
        *,
        ranges_in: torch.dtype = torch.float32,
    ) -> None:
        self.on_gpu = next(model.parameters()).device.type == "cuda"
        self._model, self._seen, self._unseen, self._pause = model, seen, unseen, pause
        self._ranges_in = ranges_in

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,), of the images for the gates."""
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
        folded = self._folded.converted(self._ranges_in)
        return observe(folded, self._seen, next(self._model.parameters()).device, self._pause)

    def int8(self, ranges: Mapping[str, float]) -> NDArray[np.float32]:
        """(n, FEATURES), in int8 with these ranges: by the processor's own instructions where it has them."""
        if (kernels := self._int8_kernels(ranges)) is not None:
            return np.concatenate(list(self._by_threads(kernels)))
        return self._features(self._in_int8, Int8(ranges))

    def _int8_kernels(self, ranges: Mapping[str, float]) -> Int8Kernels | None:
        """None where there are none, or where they do not give what the simulation does."""
        if self.on_gpu or not has_int8_kernels():
            return None
        photos = self._unseen.images[0]
        checked = photos[:CHECKED].contiguous(memory_format=torch.channels_last)
        simulated, exact = self._in_int8.features(checked, Int8(ranges)), self._folded.features(checked, as_it_is)
        try:
            shape = [CPU_BATCH, *photos.shape[1:]]
            kernels = Int8Kernels(self._folded.weights, self._folded.biases, ranges, shape)
            good = is_as_good(kernels(checked), simulated, exact)
        except Exception as error:  # any: torch's kernels differ from version to version
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
        return self._in_batches(lambda images: work.features(images, rounded))

    def _by_threads(self, kernels: Int8Kernels) -> Iterator[NDArray[np.float32]]:
        """Each thread computes pictures of its own, so that none waits for another at every layer."""
        parts = [part for batch in self._unseen.images for part in torch.split(batch, CPU_BATCH)]
        for rows in by_threads(torch.get_num_threads(), kernels, parts):
            self._pause()
            yield rows.numpy()

    def _in_batches(self, run: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        device = next(self._model.parameters()).device
        found = []
        for batch in self._unseen.images:
            self._pause()
            found.append(run(batch.to(device, memory_format=torch.channels_last)).cpu().numpy())
        return np.concatenate(found)


def measure_formats(
    model: nn.Module,
    train: Split,
    unseen: Split,
    preprocessing: Preprocessing,
    *,
    skip: int = 0,
    pause: Callable[[], None] = lambda: None,
    temperature: float = NONE,
) -> Measured:
    """Takes ranges from training images and measures every format on images of another split, on the model's device.

    Args:
        skip: the first so many of these are golden samples.
        pause: called between batches; what it raises ends the measurement.
        temperature: what the logits are divided by.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    batch = _BATCH_ON_GPU if on_gpu else _BATCH
    seen = photos(train, preprocessing, RANGE_PHOTOS, batch=batch)
    shown = photos(unseen, preprocessing, GATE_PHOTOS_ON_GPU if on_gpu else GATE_PHOTOS, skip, batch=batch)
    return measure_body(model, Body(model, seen, shown, pause), temperature)


def measure_body(model: nn.Module, body: Body, temperature: float = NONE) -> Measured:
    """What each format costs the answers of `model`'s head to what its body gives.

    Of several ways to choose ranges the first that is good enough is kept, else the one with most answers in common.
    """
    if body.is_empty:
        return Measured(ranges={}, gates={})
    head = model.get_submodule(network.HEAD).state_dict()
    weight, bias = head["weight"].float().cpu(), head["bias"].float().cpu()

    def answers(features: NDArray[np.float32], rounded: Round, to: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        entering = rounded(network.HEAD, torch.from_numpy(features))
        logits = F.linear(entering, to(weight), bias).double() / temperature
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
        tried: list[tuple[Gate, dict[str, float]]] = []
        maxima = body.maxima()
        for method, choose in RANGES.items():
            ranges = {name: max(_LEAST_RANGE, choose(values)) for name, values in maxima.items()}
            in_int8 = answers(body.int8(ranges), Int8(ranges), to_int8)
            tried.append((gate.measure(exact, in_int8, body.labels, method), ranges))
            if not tried[-1][0].refusal:
                break
    gates[gate.INT8], ranges = max(tried, key=lambda each: (not each[0].refusal, each[0].agreement))
    for name, found in gates.items():
        log.info("%s: %s%s", name, found.sentence, f"; not to be served: {found.refusal}" if found.refusal else "")
    return Measured(ranges=ranges, gates=gates)


def largest(values: NDArray[np.float64]) -> float:
    """Nothing that was seen is cut off."""
    return float(values.max())


def mean(values: NDArray[np.float64]) -> float:
    """What is larger than the largest of a usual photograph is cut off, and all else rounded less."""
    return float(values.mean())


RANGES: Mapping[str, Callable[[NDArray[np.float64]], float]] = {
    "largest value of all photos": largest,
    "mean of the photos' largest values": mean,
}
"""How a range is chosen from (n,) float64: the largest absolute value in each photo."""


def photos(split: Split, preprocessing: Preprocessing, count: int, skip: int = 0, *, batch: int = _BATCH) -> Photos:
    """`count` readable images of a split, by turns of the classes, after the first `skip`; decoded on every core.

    Args:
        batch: as many at a time go through the network together.
    """
    label_of = dict(zip(split.paths, split.labels, strict=True))
    images: list[Tensor] = []
    labels: list[int] = []
    for path, image in _decoded(by_turns(split), preprocessing):
        images.append(image)
        labels.append(label_of[path])
        if len(images) == count + skip:
            break
    return Photos(images=in_batches(images[skip:], batch), labels=np.asarray(labels[skip:], np.int64))


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


def in_batches(images: Sequence[Tensor], batch: int = _BATCH) -> tuple[Tensor, ...]:
    """As many at a time as go through the network together."""
    return tuple(torch.stack(list(images[i : i + batch])) for i in range(0, len(images), batch))


def observe(
    folded: Folded, seen: Photos, device: torch.device, pause: Callable[[], None]
) -> dict[str, NDArray[np.float64]]:
    """Name of an activation -> (n,) float64, its largest absolute value in each photo."""
    found: dict[str, list[Tensor]] = {}
    signed = network.activations()

    def look(name: str, x: Tensor) -> Tensor:
        every = tuple(range(1, x.ndim))
        largest_of_each = torch.maximum(x.amax(every), -x.amin(every)) if signed.get(name) else x.amax(every)
        found.setdefault(name, []).append(largest_of_each.double().cpu())
        return x

    dtype = folded.weights[network.HEAD].dtype
    for batch in seen.images:
        pause()
        folded.logits(batch.to(device, dtype, memory_format=torch.channels_last), look)
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def as_it_is(_: str, x: Tensor) -> Tensor:
    """Float32."""
    return x


class Half:
    """Numbers as a 16-bit engine holds them. Sums are float32 there as well."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, _: str, x: Tensor) -> Tensor:
        return x.to(self._dtype).float()

    def weight(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype).float()


class Int8:
    """Activations as an 8-bit engine holds them: 256 levels a tensor, from 0 on where there is no sign."""

    def __init__(self, ranges: Mapping[str, float]) -> None:
        self._ranges = ranges
        self._signed = network.activations()

    def __call__(self, name: str, x: Tensor) -> Tensor:
        most = self._ranges[name]
        if self._signed[name]:
            return torch.fake_quantize_per_tensor_affine(x, most / 128, 0, -128, 127)
        return torch.fake_quantize_per_tensor_affine(x, most / 255, 0, 0, 255)


def to_int8(weight: Tensor) -> Tensor:
    """Weights as an 8-bit engine holds them: 255 levels for each output channel, symmetric."""
    scale = weight.abs().flatten(1).amax(1).clamp(min=1e-9) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


class Folded:
    """The network with its batch norms folded into the convolutions, as the server's graph has it.

    Args:
        state: the model's state dict.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.weights: dict[str, Tensor] = {network.HEAD: state[f"{network.HEAD}.weight"].float()}
        self.biases: dict[str, Tensor] = {network.HEAD: state[f"{network.HEAD}.bias"].float()}
        for layer in network.convolutions():
            scale, shift = network.folded(*(state[f"{layer.norm}.{part}"].double() for part in network.NORM_PARTS))
            weight = state[f"{layer.name}.weight"].float() * scale.float()[:, None, None, None]
            self.weights[layer.name] = weight.contiguous(memory_format=torch.channels_last)
            self.biases[layer.name] = shift.float()

    def rounded(self, to: Callable[[Tensor], Tensor]) -> Folded:
        """The same network with other weights."""
        other = object.__new__(Folded)
        other.weights, other.biases = {name: to(weight) for name, weight in self.weights.items()}, self.biases
        return other

    def converted(self, dtype: torch.dtype) -> Folded:
        """The same network in a number format, for images in it."""
        other = self.rounded(lambda weight: weight.to(dtype))
        other.biases = {name: bias.to(dtype) for name, bias in self.biases.items()}
        return other

    def logits(self, images: Tensor, rounded: Round) -> Tensor:
        """(n, 3, H, W) float32, normalised -> (n, num_classes). What enters a layer goes through `rounded`."""
        features = rounded(network.HEAD, self.features(images, rounded))
        return F.linear(features, self.weights[network.HEAD], self.biases[network.HEAD])

    def features(self, images: Tensor, rounded: Round) -> Tensor:
        """The same up to the head: (n, FEATURES), not rounded."""
        stem = network.STEM
        x = F.relu(self._convolution(rounded(stem.name, images), stem))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for block in network.blocks():
            x = self._block(x, block, rounded)
        return x.mean((2, 3))

    def _block(self, x: Tensor, block: network.Block, rounded: Round) -> Tensor:
        first, second, third = block.path
        x = rounded(first.name, x)
        shortcut = x
        if block.shortcut is not None:
            rounded(block.shortcut.name, x)  # the same tensor, looked at by its second name
            shortcut = rounded(network.shortcut_output(block.shortcut), self._convolution(x, block.shortcut))
        y = F.relu(self._convolution(x, first))
        y = F.relu(self._convolution(rounded(second.name, y), second))
        return F.relu(self._convolution(rounded(third.name, y), third) + shortcut)

    def _convolution(self, x: Tensor, layer: network.Convolution) -> Tensor:
        return F.conv2d(x, self.weights[layer.name], self.biases[layer.name], layer.stride, layer.kernel // 2)
