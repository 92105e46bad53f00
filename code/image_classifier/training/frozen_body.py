"""The frozen part of a network, as fast as torch computes it: pictures in, what the head sees out.

On the CPU each thread computes a few pictures alone, so that no core waits for another: batch norms are folded into the
convolutions, and ReLUs and residual sums are done by them (oneDNN's fused kernels, those that torch.compile would use).
On a GPU the folded convolutions run one by one. Before it is used, the result is held against the network's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import describe
from image_classifier.debugging.host_copy import HostCopy
from image_classifier.training.normalising import Normaliser, channel_statistics
from image_classifier.training.setup import Setup, exact_float32
from image_classifier.vision import network
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.resnet import ResNet

log = logging.getLogger(__name__)

CPU_BATCH = 8  # pictures a thread computes at once: more do not make it faster (measured from 4 to 32)
GPU_BATCH = 256
CHECKED = 2  # pictures on which the folded network is held against the network itself
TOLERANCE = {True: 0.02, False: 1e-4}
"""Largest distance of a picture's features from torch's in float32, over their length, by whether it computes in bf16.
Autocast to bf16 itself is off by 0.004, the folded network by 0.004 in bf16 and by 3e-7 in float32 (ResNet50)."""

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.uint8: torch.uint8}
Run = Callable[[torch.Tensor], torch.Tensor]
Look = Callable[[str, torch.Tensor], object]  # (name of an activation, its values)
Pictures = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # (S, S, 3) each, in order in memory


class FrozenBody:
    """What lies before a network's head, for pictures of one size. Safe to call from several threads.

    Args:
        model: not changed, and not to be changed as long as this is used.
        setup: device, and whether to compute in bf16.
        check: (n, S, S, 3) uint8, on which the folded network proves itself; None keeps to the network as it is.
    """

    def __init__(
        self, model: ResNet, preprocessing: Preprocessing, setup: Setup, check: NDArray[np.uint8] | None = None
    ) -> None:
        self.on_cpu = setup.device.type == "cpu"
        self.batch = CPU_BATCH if self.on_cpu else GPU_BATCH
        self._device = setup.device
        self._normalise = Normaliser(preprocessing)
        self._plain = _PlainBody(model, setup)
        self._size = preprocessing.image_size
        self._run: Run = self._plain
        if check is not None:
            self._make_fast(model, setup, check)

    @property
    def is_fast(self) -> bool:
        """Whether the folded network computes, and not the network itself."""
        return self._run is not self._plain

    def features(self, pixels: Pictures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """n <= batch pictures -> (n, FEATURES) float32, and (n, 6): means and standard deviations of the normalised
        channels. The same for a picture whatever lies beside it in the batch."""
        return self.begin(pixels)()

    def largest_activations(self, pixels: Pictures) -> NDArray[np.float32] | None:
        """n <= batch pictures -> (n, activations) float32: the largest absolute value of each one that
        `network.activations` names, in their order; None where the network is not folded."""
        folded = self._run
        if not isinstance(folded, _FoldedBody):
            return None
        signed = network.activations()
        found: dict[str, torch.Tensor] = {}

        def look(name: str, values: torch.Tensor) -> None:
            found[name] = largest_of_each(values, signed=signed[name])

        with torch.inference_mode(), exact_float32():
            folded(self._normalised(pixels), look)
            rows = torch.stack([found[name] for name in signed], dim=1)[: len(pixels)]
        return rows.float().cpu().numpy()

    def begin(self, pixels: Pictures) -> Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Gives a GPU the pictures; what waits for `features` of them. On a CPU they are computed when this returns."""
        count = len(pixels)
        with torch.inference_mode(), exact_float32():
            images = self._normalised(pixels)
            found = HostCopy(self._run(images)[:count])
            channels = HostCopy(channel_statistics(images[:count]))
        return lambda: (found.read().numpy(), channels.read().numpy())

    def _normalised(self, pixels: Pictures) -> torch.Tensor:
        """As `Loader.on_device` gives them to the network; a batch of always the same size, black at its end."""
        shape = (self.batch, self._size, self._size, 3)
        whole = torch.empty(shape, dtype=torch.uint8, pin_memory=not self.on_cpu)  # a GPU fetches it by itself
        # all in one call: between two, a thread that reads would have Python to itself for milliseconds
        torch.stack([torch.from_numpy(picture) for picture in pixels], out=whole[: len(pixels)])
        whole[len(pixels) :] = 0
        return self._normalise(whole.to(self._device, non_blocking=True).permute(0, 3, 1, 2))

    def _make_fast(self, model: ResNet, setup: Setup, check: NDArray[np.uint8]) -> None:
        """Folds the network, and keeps to the network itself where that gives other features, or none."""
        check = check[:CHECKED]
        try:
            with torch.inference_mode(), exact_float32():
                images = self._normalised(check)
                folded = _FoldedBody(model, setup, images)
                distance = relative_distance(folded(images)[: len(check)], self._plain.exact(images[: len(check)]))
        except Exception as error:  # any: torch's kernels differ from version to version
            log.warning("features are computed by the network as it is: %s", describe(error))
            return
        if not distance <= TOLERANCE[setup.bf16]:
            log.warning("features are computed by the network as it is: folded they are off by %.2g", distance)
            return
        self._run = folded


def name_of(setup: Setup) -> str:
    """Everything besides weights and pictures that decides which bits features have: torch, device, number format."""
    device = torch.backends.cpu.get_cpu_capability() if setup.device.type == "cpu" else setup.device_name
    flags = torch.cpu.get_capabilities()
    matrix = "amx" if setup.device.type == "cpu" and flags.get("amx_bf16") else ""
    return " ".join(filter(None, ("torch", torch.__version__, device, matrix, setup.number_format)))


def relative_distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest distance of a row from its exact value, over that value's length."""
    lengths = exact.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((found - exact).norm(dim=1) / lengths).max())


class _PlainBody:
    """The network itself, its head left out."""

    def __init__(self, model: ResNet, setup: Setup) -> None:
        self._body = nn.Sequential(*(m for name, m in model.named_children() if name != network.HEAD), nn.Flatten(1))
        self._body.eval()
        self._setup = setup

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with self._setup.autocast():
            return self._body(images).float()  # type: ignore[no-any-return]

    def exact(self, images: torch.Tensor) -> torch.Tensor:
        """In float32."""
        return self._body(images)  # type: ignore[no-any-return]


class _FoldedBody:
    """ResNet50's convolutions with their batch norms folded in."""

    def __init__(self, model: ResNet, setup: Setup, images: torch.Tensor) -> None:
        self._dtype = torch.bfloat16 if setup.bf16 else torch.float32
        self._fused = setup.device.type == "cpu" and has_fused_kernels()
        state = model.state_dict()
        self._layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in network.convolutions():
            scale, shift = network.folded(*(state[f"{layer.norm}.{part}"].double() for part in network.NORM_PARTS))
            weight = (state[f"{layer.name}.weight"].double() * scale[:, None, None, None]).to(self._dtype)
            weight = weight.contiguous(memory_format=torch.channels_last)
            self._layers[layer.name] = weight, shift.to(self._dtype)
        if self._fused:
            self._pack(images)

    def __call__(self, images: torch.Tensor, look: Look = lambda _, values: None) -> torch.Tensor:
        x = images.to(self._dtype).contiguous(memory_format=torch.channels_last)
        look(network.STEM.name, x)
        x = pooled(self._convolution(x, network.STEM, relu=True))
        for block in network.blocks():
            first, second, third = block.path
            look(first.name, x)
            shortcut = x
            if block.shortcut is not None:
                look(block.shortcut.name, x)
                shortcut = self._convolution(x, block.shortcut)
                look(network.shortcut_output(block.shortcut), shortcut)
            y = self._convolution(x, first, relu=True)
            look(second.name, y)
            y = self._convolution(y, second, relu=True)
            look(third.name, y)
            x = self._added(y, third, shortcut)
        found = x.float().mean((2, 3))
        look(network.HEAD, found)
        return found

    def _convolution(self, x: torch.Tensor, layer: network.Convolution, *, relu: bool = False) -> torch.Tensor:
        weight, bias = self._layers[layer.name]
        if self._fused:
            kernel: Any = torch.ops.mkldnn._convolution_pointwise
            after = "relu" if relu else "none"
            return kernel(x, weight, bias, *geometry(layer), after, [], "")  # type: ignore[no-any-return]
        y = F.conv2d(x, weight, bias, layer.stride, layer.kernel // 2)
        return y.relu_() if relu else y

    def _added(self, x: torch.Tensor, layer: network.Convolution, shortcut: torch.Tensor) -> torch.Tensor:
        """A block's end. `shortcut` may be written over."""
        weight, bias = self._layers[layer.name]
        if self._fused:
            kernel: Any = torch.ops.mkldnn._convolution_pointwise_.binary
            after: Any = ("add", 1.0, "relu", [], None)
            return kernel(shortcut, x, weight, bias, *geometry(layer), *after)  # type: ignore[no-any-return]
        return self._convolution(x, layer).add_(shortcut).relu_()

    def _pack(self, images: torch.Tensor) -> None:
        """Lays the weights out as the kernels want them for pictures of this size."""
        sizes = input_shapes(list(images.shape))
        for layer in network.convolutions():
            weight, bias = self._layers[layer.name]
            pack: Any = torch.ops.mkldnn._reorder_convolution_weight
            self._layers[layer.name] = pack(weight, *geometry(layer), sizes[layer.name]), bias


def largest_of_each(values: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """(n, ...), channels last in memory where there are any, -> (n,) of the same dtype: the largest absolute values.

    Args:
        signed: whether a value may be below zero; those that cannot are compared as in `pooled`.
    """
    rows = (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).flatten(1)
    if signed:
        return torch.maximum(rows.amax(1), -rows.amin(1))
    if values.device.type != "cpu" or values.dtype not in _BITS:
        return rows.amax(1)
    return rows.view(_BITS[values.dtype]).amax(1).view(values.dtype)


def pooled(x: torch.Tensor) -> torch.Tensor:
    """The largest of each window of 3 x 3, for every second row and column, of what a ReLU has let through.

    (N, C, H, W), no number below zero, channels last in memory -> (N, C, H / 2, W / 2), rounded up.

    On a CPU numbers from zero on are compared as the integers that their bits are, which have the same order: two and a
    half times as fast as `torch.max_pool2d` in bf16.
    """
    height, width = x.shape[2:]
    if x.device.type != "cpu" or x.dtype not in _BITS or height % 2 or width % 2:
        numbers = x.float() if x.dtype == torch.uint8 else x  # torch pools no bytes
        return torch.max_pool2d(numbers, 3, 2, 1).to(x.dtype)
    whole = x.permute(0, 2, 3, 1).view(_BITS[x.dtype])
    rows = torch.maximum(whole[:, 0::2], whole[:, 1::2])
    torch.maximum(rows[:, 1:], whole[:, 1:-1:2], out=rows[:, 1:])
    found = torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
    torch.maximum(found[:, :, 1:], rows[:, :, 1:-1:2], out=found[:, :, 1:])
    return found.view(x.dtype).permute(0, 3, 1, 2)


def input_shapes(images: list[int]) -> dict[str, list[int]]:
    """Convolution -> the (N, C, H, W) that it sees, for `images` of that shape."""
    count, side = images[0], images[2]
    found = {network.STEM.name: images}
    side = _halved(_halved(side))  # the stem, and the pooling behind it
    for block in network.blocks():
        first, second, third = block.path
        after = _halved(side) if second.stride == 2 else side
        for layer, its_side in ((first, side), (second, side), (third, after)):
            found[layer.name] = [count, layer.inputs, its_side, its_side]
        if block.shortcut is not None:
            found[block.shortcut.name] = [count, block.shortcut.inputs, side, side]
        side = after
    return found


def has_fused_kernels() -> bool:
    """Whether this torch has oneDNN's convolutions with what follows them."""
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")


def _halved(side: int) -> int:
    return (side + 1) // 2


def geometry(layer: network.Convolution) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups, as the kernels take them."""
    return [layer.kernel // 2] * 2, [layer.stride] * 2, [1, 1], 1
