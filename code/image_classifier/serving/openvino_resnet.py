"""The network as an OpenVINO graph, built from the weights alone: a CPU server needs no torch.

That this graph computes what torch computed is proved at every start of a server, on the golden samples.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import ArtifactError
from image_classifier.serving.quiet_openvino import openvino, ops
from image_classifier.vision import network

_Weights = Mapping[str, NDArray[Any]]
_Number = TypeVar("_Number", np.float32, np.int8)
_TINY = 1e-9  # of a channel whose weights are all zeros


@cache
def core() -> openvino.Core:
    """OpenVINO, once for the process and never given back.

    Its CPU plugin gives the thread that makes it a stack for signal handlers, and gives back the one it found when it
    ends. Of two, the one made first ends first: the thread is left with freed memory, and its next signal kills it.
    """
    return openvino.Core()


class Levels(NamedTuple):
    """Weights in int8: `levels` times `step`, one a channel, of the shape (outputs, 1, ...)."""

    levels: NDArray[np.int8]
    step: NDArray[np.float32]


class FoldedWeights:
    """The network's weights, batch norms folded into the convolutions: what graphs of every format are made of.

    They lie in a file without a name: what OpenVINO keeps of them beside its own, rearranged copy costs no memory once
    it is `forgotten`, because it could be read again. Raises ArtifactError when a tensor is missing or has the wrong
    shape.
    """

    def __init__(self, weights: _Weights) -> None:
        _check(weights)
        layers = network.convolutions()
        self._store = _Store(sum(layer.outputs * layer.inputs * layer.kernel**2 for layer in layers) * 4)
        self._levels: dict[str, Levels] = {}
        self._levels_store: _Store | None = None
        self.kernels: dict[str, NDArray[np.float32]] = {}
        self.biases: dict[str, NDArray[np.float32]] = {}
        for layer in layers:
            norm = (_array(weights, f"{layer.norm}.{part}").astype(np.float64) for part in network.NORM_PARTS)
            scale, shift = network.folded(*norm)
            weight = _array(weights, f"{layer.name}.weight")
            kernel = self._store.empty(weight.shape, np.float32)
            np.multiply(weight, scale.astype(np.float32)[:, None, None, None], out=kernel)
            self.kernels[layer.name] = kernel
            self.biases[layer.name] = shift.astype(np.float32)[None, :, None, None]
        self.kernels[network.HEAD] = _array(weights, f"{network.HEAD}.weight")
        self.biases[network.HEAD] = _array(weights, f"{network.HEAD}.bias")

    def levels(self, name: str) -> Levels:
        """A layer's weights rounded for int8."""
        if self._levels_store is None:
            self._levels_store = _Store(sum(kernel.size for kernel in self.kernels.values()))
        if name not in self._levels:
            kernel = self.kernels[name]
            self._levels[name] = rounded(kernel, self._levels_store.empty(kernel.shape, np.int8))
        return self._levels[name]

    def forget(self) -> None:
        """Leaves the arrays to the file, until somebody reads them again."""
        self._store.forget()
        if self._levels_store is not None:
            self._levels_store.forget()


class _Store:
    """So many bytes of a file without a name, as memory."""

    def __init__(self, size: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
        self._used = 0

    def empty(self, shape: tuple[int, ...], kind: type[_Number]) -> NDArray[_Number]:
        """A new array. All of them together are as large as the store."""
        array: NDArray[_Number] = np.ndarray(shape, kind, self._memory, self._used)
        self._used += array.nbytes
        return array

    def forget(self) -> None:
        """Gives up the memory; the file keeps what is in it."""
        self._memory.madvise(mmap.MADV_DONTNEED)


def rounded(weight: NDArray[np.float32], levels: NDArray[np.int8]) -> Levels:
    """255 levels for each output channel, symmetric: what FakeQuantize makes of constant weights when a graph is
    compiled, to the bit, in half of its time.

    Args:
        weight: (outputs, ...).
        levels: the array of that shape that is filled with -127 to 127.
    """
    most = np.abs(weight).max(tuple(range(1, weight.ndim)), keepdims=True).clip(_TINY).astype(np.float32)
    np.subtract(np.rint((weight + most) / (most + most) * np.float32(254)), 127, out=levels, casting="unsafe")
    return Levels(levels, most / np.float32(127))


def resnet50(weights: FoldedWeights, *, image_size: int, ranges: Mapping[str, float] | None = None) -> openvino.Model:
    """A graph (1, 3, image_size, image_size) float32, normalised -> (1, num_classes) logits.

    Args:
        weights: the graph's constants are theirs, not copies.
        ranges: with them the graph is to be computed in int8: largest absolute value of each of `network.activations`.
    """
    graph = _Graph(weights, ranges or {})
    image = ops.parameter([1, network.STEM.inputs, image_size, image_size], np.float32, name="image")
    x = ops.relu(graph.convolution(graph.rounded(network.STEM.name, image), network.STEM))
    x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    for block in network.blocks():
        x = graph.bottleneck(x, block)
    features = graph.rounded(network.HEAD, ops.reduce_mean(x, np.array([2, 3]), keep_dims=False))
    weight, bias = graph.weight(network.HEAD), _constant(weights.biases[network.HEAD])
    logits = ops.add(ops.matmul(features, weight, transpose_a=False, transpose_b=True), bias)
    return openvino.Model([logits], [image], network.NAME)


def _check(weights: _Weights) -> None:
    expected = network.tensor_shapes(num_classes=len(weights.get(f"{network.HEAD}.bias", ())))
    shapes = {name: shape for name, shape in expected.items() if shape}  # the graph reads no batch norm's counter
    wrong = [f"{name} is missing" for name in shapes if name not in weights] or [
        f"{name} has the shape {weights[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if weights[name].shape != shape
    ]
    if wrong:
        raise ArtifactError(f"the weights are not a {network.TITLE}'s ({wrong[0]})")


class _Graph:
    """Nodes over the weights. With ranges also those that say how to round, which OpenVINO turns into int8."""

    def __init__(self, weights: FoldedWeights, ranges: Mapping[str, float]) -> None:
        self._weights = weights
        self._ranges = ranges
        self._signed = network.activations()

    def rounded(self, name: str, x: Any) -> Any:
        """256 levels a tensor: symmetric with a sign, from 0 on without."""
        if not self._ranges:
            return x
        most = self._ranges[name]
        low, high = (-most, most * 127 / 128) if self._signed[name] else (0.0, most)
        ends = (np.float32(low), np.float32(high))
        return ops.fake_quantize(x, *ends, *ends, 256)

    def weight(self, name: str) -> Any:
        """A layer's."""
        if not self._ranges:
            return _constant(self._weights.kernels[name])
        levels = self._weights.levels(name)
        return ops.multiply(ops.convert(_constant(levels.levels), np.float32), _constant(levels.step))

    def bottleneck(self, x: Any, block: network.Block) -> Any:
        first, second, third = block.path
        x = self.rounded(first.name, x)
        shortcut = x
        if block.shortcut is not None:
            name = network.shortcut_output(block.shortcut)
            shortcut = self.rounded(name, self.convolution(x, block.shortcut))
        y = self.rounded(second.name, ops.relu(self.convolution(x, first)))
        y = self.rounded(third.name, ops.relu(self.convolution(y, second)))
        return ops.relu(ops.add(self.convolution(y, third), shortcut))

    def convolution(self, x: Any, layer: network.Convolution) -> Any:
        """With its batch norm."""
        bias = _constant(self._weights.biases[layer.name])
        stride, pad = [layer.stride] * 2, [layer.kernel // 2] * 2
        return ops.add(ops.convolution(x, self.weight(layer.name), stride, pad, pad, [1, 1]), bias)


def _constant(array: NDArray[Any]) -> Any:
    """A node over the array's own memory: copying 100 MB of weights takes longer than compiling the graph."""
    return ops.constant(array, shared_memory=True)


def _array(weights: _Weights, name: str) -> NDArray[Any]:
    return np.asarray(weights[name], dtype=np.float32)
