"""torchvision's ResNet50 as an OpenVINO graph, built from the weights alone: a CPU server needs no torch.

The names of the tensors are torchvision's. That this graph computes what torch computed is proved at every start of a
server, on the golden samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from image_classifier.contract.errors import ArtifactError, describe

BATCH_NORM_EPS = 1e-5  # torch's default
BLOCKS = (3, 4, 6, 3)  # bottleneck blocks of layer1 .. layer4 (He et al. 2015, table 1)

_Weights = Mapping[str, NDArray[Any]]


def resnet50(weights: _Weights, *, image_size: int) -> openvino.Model:
    """A graph (1, 3, image_size, image_size) float32, normalised -> (1, num_classes) logits.

    Batch norms are folded into the convolutions.

    Raises:
        ArtifactError: a tensor is missing or has the wrong shape.
    """
    image = ops.parameter([1, 3, image_size, image_size], np.float32, name="image")
    try:
        x = ops.relu(_convolution(image, weights, "conv1", "bn1", stride=2))
        x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
        for layer, num_blocks in enumerate(BLOCKS, start=1):
            for block in range(num_blocks):
                x = _bottleneck(x, weights, f"layer{layer}.{block}", stride=2 if layer > 1 and block == 0 else 1)
        features = ops.reduce_mean(x, np.array([2, 3]), keep_dims=False)
        head = ops.matmul(features, _constant(_array(weights, "fc.weight")), transpose_a=False, transpose_b=True)
        logits = ops.add(head, _constant(_array(weights, "fc.bias")))
    except (KeyError, ValueError, RuntimeError) as error:  # OpenVINO's shape checks raise RuntimeError
        raise ArtifactError(f"the weights are not a ResNet50's ({describe(error)})") from error
    return openvino.Model([logits], [image], "resnet50")


def _bottleneck(x: Any, weights: _Weights, name: str, *, stride: int) -> Any:
    """1x1, 3x3 (with the stride, as in torchvision), 1x1, and the shortcut around them."""
    shortcut = x
    if f"{name}.downsample.0.weight" in weights:
        shortcut = _convolution(x, weights, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
    y = ops.relu(_convolution(x, weights, f"{name}.conv1", f"{name}.bn1"))
    y = ops.relu(_convolution(y, weights, f"{name}.conv2", f"{name}.bn2", stride=stride))
    y = _convolution(y, weights, f"{name}.conv3", f"{name}.bn3")
    return ops.relu(ops.add(y, shortcut))


def _convolution(x: Any, weights: _Weights, conv: str, norm: str, *, stride: int = 1) -> Any:
    """Convolution with "same" padding, the batch norm folded in: with s = gamma / sqrt(variance + eps), w' = w s and
    b' = beta - mean s."""
    kernel = _array(weights, f"{conv}.weight")
    gamma, beta, mean, variance = (
        _array(weights, f"{norm}.{part}").astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPS)
    folded = kernel * scale.astype(np.float32)[:, None, None, None]
    bias = (beta - mean * scale).astype(np.float32)[None, :, None, None]
    pad = kernel.shape[-1] // 2
    y = ops.convolution(x, _constant(folded), [stride, stride], [pad, pad], [pad, pad], [1, 1])
    return ops.add(y, _constant(bias))


def _constant(array: NDArray[Any]) -> Any:
    """A node over the array's own memory: copying 100 MB of weights takes longer than compiling the graph."""
    return ops.constant(array, shared_memory=True)


def _array(weights: _Weights, name: str) -> NDArray[Any]:
    if name not in weights:
        raise ValueError(f"{name} is missing")
    return np.asarray(weights[name], dtype=np.float32)
