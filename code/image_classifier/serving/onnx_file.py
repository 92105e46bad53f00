"""The network as an ONNX file, written without the package onnx, whose protobuf the other parts cannot live with.

ONNX is a protocol buffer: the field numbers here are those of onnx.proto3, IR version 8 with opset 13, which every
runtime of the last years reads. What is written is proved by another reader (`exporting.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.vision import network

IR_VERSION, OPSET = 8, 13
FLOAT = 1  # TensorProto.DataType
INT, INTS = 2, 7  # AttributeProto.AttributeType
INPUT, OUTPUT, BATCH = "image", "logits", "N"


def onnx_model(weights: Mapping[str, NDArray[Any]], *, image_size: int, producer: str) -> bytes:
    """The file (N, 3, image_size, image_size) float32, normalised -> (N, classes) logits; batch norms are folded in.

    Args:
        weights: a ResNet50's, by torchvision's names.
        producer: who wrote it, for people.
    """
    nodes, tensors = _Nodes(), dict[str, NDArray[np.float32]]()
    x = _convolution(nodes, tensors, weights, INPUT, network.STEM, relu=True)
    x = nodes.add("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block in network.blocks():
        y = x
        for number, layer in enumerate(block.path):
            y = _convolution(nodes, tensors, weights, y, layer, relu=number < len(block.path) - 1)
        if block.shortcut is not None:
            x = _convolution(nodes, tensors, weights, x, block.shortcut, relu=False)
        name = block.path[-1].name
        x = nodes.add("Relu", [nodes.add("Add", [y, x], f"{name}:sum")], f"{name}:out")
    x = nodes.add("Flatten", [nodes.add("GlobalAveragePool", [x], "mean")], "features", axis=1)
    for part in ("weight", "bias"):
        tensors[f"{network.HEAD}.{part}"] = np.asarray(weights[f"{network.HEAD}.{part}"], np.float32)
    nodes.add("Gemm", [x, f"{network.HEAD}.weight", f"{network.HEAD}.bias"], OUTPUT, transB=1)
    num_classes = len(tensors[f"{network.HEAD}.bias"])
    graph = b"".join(
        (
            *(_field(1, node) for node in nodes.made),
            _field(2, network.NAME.encode()),
            *(_field(5, _tensor(name, value)) for name, value in tensors.items()),
            _field(11, _value_info(INPUT, (network.STEM.inputs, image_size, image_size))),
            _field(12, _value_info(OUTPUT, (num_classes,))),
        )
    )
    opset = _field(1, b"") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _field(2, producer.encode()) + _field(7, graph) + _field(8, opset)


class _Nodes:
    """The graph's nodes, in the order in which they compute."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: int | list[int]) -> str:
        """One more; returns `output`."""
        parts = [
            *(_field(1, name.encode()) for name in inputs),
            _field(2, output.encode()),
            _field(3, output.encode()),
            _field(4, kind.encode()),
            *(_field(5, _attribute(name, value)) for name, value in attributes.items()),
        ]
        self.made.append(b"".join(parts))
        return output


def _convolution(
    nodes: _Nodes,
    tensors: dict[str, NDArray[np.float32]],
    weights: Mapping[str, NDArray[Any]],
    x: str,
    layer: network.Convolution,
    *,
    relu: bool,
) -> str:
    """A convolution with its batch norm, and a ReLU behind it if there is one; the name of what it gives."""
    norm = (np.asarray(weights[f"{layer.norm}.{part}"], np.float64) for part in network.NORM_PARTS)
    scale, shift = network.folded(*norm)
    weight = np.asarray(weights[f"{layer.name}.weight"], np.float32)
    tensors[f"{layer.name}.weight"] = weight * scale.astype(np.float32)[:, None, None, None]
    tensors[f"{layer.name}.bias"] = shift.astype(np.float32)
    y = nodes.add(
        "Conv",
        [x, f"{layer.name}.weight", f"{layer.name}.bias"],
        layer.name,
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=[layer.kernel // 2] * 4,
    )
    return nodes.add("Relu", [y], f"{layer.name}:relu") if relu else y


def _attribute(name: str, value: int | list[int]) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _number(3, value) + _number(20, INT)
    return _field(1, name.encode()) + b"".join(_number(8, each) for each in value) + _number(20, INTS)


def _tensor(name: str, value: NDArray[np.float32]) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    raw = np.ascontiguousarray(value, "<f4").tobytes()
    return dims + _number(2, FLOAT) + _field(8, name.encode()) + _field(9, raw)


def _value_info(name: str, shape: Sequence[int]) -> bytes:
    dims = [_field(2, BATCH.encode()), *(_number(1, size) for size in shape)]
    of_tensor = _number(1, FLOAT) + _field(2, b"".join(_field(1, dim) for dim in dims))
    return _field(1, name.encode()) + _field(2, _field(1, of_tensor))


def _field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or another message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """A field that holds a whole number, not below 0."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    return b"".join(struct.pack("B", byte) for byte in _septets(value))


def _septets(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
