"""The network as an OpenVINO graph, built from the weights alone: a CPU server needs no torch.

That this graph computes what torch computed is proved at every start of a server, on the golden samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import ArtifactError
from image_classifier.serving.quiet_openvino import openvino, ops
from image_classifier.vision import network

_Weights = Mapping[str, NDArray[Any]]


def resnet50(weights: _Weights, *, image_size: int) -> openvino.Model:
    """A graph (1, 3, image_size, image_size) float32, normalised -> (1, num_classes) logits.

    Batch norms are folded into the convolutions.

    Raises:
        ArtifactError: a tensor is missing or has the wrong shape.
    """
    _check(weights)
    image = ops.parameter([1, network.STEM.inputs, image_size, image_size], np.float32, name="image")
    x = ops.relu(_convolution(image, weights, network.STEM))
    x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    for block in network.blocks():
        x = _bottleneck(x, weights, block)
    features = ops.reduce_mean(x, np.array([2, 3]), keep_dims=False)
    weight, bias = (_constant(_array(weights, f"{network.HEAD}.{part}")) for part in ("weight", "bias"))
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


def _bottleneck(x: Any, weights: _Weights, block: network.Block) -> Any:
    shortcut = x if block.shortcut is None else _convolution(x, weights, block.shortcut)
    first, second, third = block.path
    y = ops.relu(_convolution(x, weights, first))
    y = ops.relu(_convolution(y, weights, second))
    return ops.relu(ops.add(_convolution(y, weights, third), shortcut))


def _convolution(x: Any, weights: _Weights, layer: network.Convolution) -> Any:
    """The batch norm is folded in: with s = gamma / sqrt(variance + eps), w' = w s and b' = beta - mean s."""
    gamma, beta, mean, variance = (
        _array(weights, f"{layer.norm}.{part}").astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + network.BATCH_NORM_EPS)
    folded = _array(weights, f"{layer.name}.weight") * scale.astype(np.float32)[:, None, None, None]
    bias = (beta - mean * scale).astype(np.float32)[None, :, None, None]
    stride, pad = [layer.stride] * 2, [layer.kernel // 2] * 2
    return ops.add(ops.convolution(x, _constant(folded), stride, pad, pad, [1, 1]), _constant(bias))


def _constant(array: NDArray[Any]) -> Any:
    """A node over the array's own memory: copying 100 MB of weights takes longer than compiling the graph."""
    return ops.constant(array, shared_memory=True)


def _array(weights: _Weights, name: str) -> NDArray[Any]:
    return np.asarray(weights[name], dtype=np.float32)
