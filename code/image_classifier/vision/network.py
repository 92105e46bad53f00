"""The network, as facts: ResNet50 (He et al. 2015, table 1) with torchvision's names for its tensors.

Standard library only, so that whoever needs no torch can read it: `model` builds the network from it in torch, the CPU
server rebuilds it from the weights alone, the artifact's manifest, the report and the build of the images name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAME = "resnet50"  # torchvision's, and the manifest's `architecture`
TITLE = "ResNet50"  # for people

BLOCKS = (3, 4, 6, 3)  # bottleneck blocks of layer1 .. layer4
WIDTH = 64  # channels of layer1's 3x3 convolutions; every further layer has twice as many
EXPANSION = 4  # channels that leave a block / those of its 3x3 convolution
FEATURES = WIDTH * 2 ** (len(BLOCKS) - 1) * EXPANSION  # 2048, which the head sees
HEAD = "fc"
BATCH_NORM_EPS = 1e-5  # torch's default
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")  # of a batch norm in evaluation, as torch names them

# torchvision's IMAGENET1K_V2. build_and_push.sh reads this line. The name carries the first digits of the SHA-256.
IMAGENET_FILE = "resnet50-11ad3fa6.pth"
IMAGENET_URL = f"https://download.pytorch.org/models/{IMAGENET_FILE}"


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A square convolution without bias, padded so that stride 1 keeps the size, and the batch norm behind it.

    Args:
        name, norm: of the modules.
        inputs, outputs: channels.
        kernel: pixels a side, odd.
        stride: pixels.
    """

    name: str
    norm: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class Block:
    """A bottleneck: three convolutions, and beside them a shortcut that is added to what they give.

    Args:
        path: 1x1, 3x3 (with the stride, as in torchvision), 1x1; a ReLU follows each, after the last the sum's.
        shortcut: None where the input has as many channels and is added itself: in all blocks of a layer but the first.
    """

    path: tuple[Convolution, Convolution, Convolution]
    shortcut: Convolution | None


STEM = Convolution(name="conv1", norm="bn1", inputs=3, outputs=WIDTH, kernel=7, stride=2)


def blocks() -> tuple[Block, ...]:
    """All blocks in the order of the network."""
    found: list[Block] = []
    channels = STEM.outputs
    for layer, num_blocks in enumerate(BLOCKS, start=1):
        width = WIDTH * 2 ** (layer - 1)
        for number in range(num_blocks):
            stride = 2 if layer > 1 and number == 0 else 1
            found.append(_block(f"layer{layer}.{number}", channels, width, stride))
            channels = width * EXPANSION
    return tuple(found)


def convolutions() -> tuple[Convolution, ...]:
    """All convolutions in the order of the state dict."""
    found = [STEM]
    for block in blocks():
        found += block.path
        if block.shortcut is not None:
            found.append(block.shortcut)
    return tuple(found)


def layers() -> tuple[str, ...]:
    """The modules with a weight of two dimensions or more, whose learning is watched, in the order of the network."""
    return (*(each.name for each in convolutions()), HEAD)


def shortcut_output(shortcut: Convolution) -> str:
    """The name, among `activations`, of what a shortcut adds to its block."""
    return f"{shortcut.name}:output"


def activations() -> dict[str, bool]:
    """The tensors that an int8 network rounds -> whether they have a sign, in the order of the network.

    Named for the layer they enter: 53 convolutions and the head. A shortcut's output, which no layer takes in, is one
    as well. The picture and those outputs have a sign, all else comes from a ReLU.
    """
    found = {each.name: each is STEM for each in convolutions()} | {HEAD: False}
    return found | {shortcut_output(each.shortcut): True for each in blocks() if each.shortcut is not None}


def folded(gamma: Any, beta: Any, mean: Any, variance: Any) -> tuple[Any, Any]:
    """A batch norm in evaluation as (scale, shift) of each channel: w' = w scale and b' = shift fold it into the
    convolution before it.

    Args:
        gamma, beta, mean, variance: (channels,), arrays or tensors of float64.
    """
    scale = gamma / (variance + BATCH_NORM_EPS) ** 0.5
    return scale, beta - mean * scale


def tensor_shapes(num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the state dict, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for each in convolutions():
        shapes[f"{each.name}.weight"] = (each.outputs, each.inputs, each.kernel, each.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{each.norm}.{part}"] = (each.outputs,)
        shapes[f"{each.norm}.num_batches_tracked"] = ()
    return shapes | {f"{HEAD}.weight": (num_classes, FEATURES), f"{HEAD}.bias": (num_classes,)}


def _block(name: str, channels: int, width: int, stride: int) -> Block:
    outputs = width * EXPANSION
    first = Convolution(name=f"{name}.conv1", norm=f"{name}.bn1", inputs=channels, outputs=width, kernel=1)
    second = Convolution(name=f"{name}.conv2", norm=f"{name}.bn2", inputs=width, outputs=width, kernel=3, stride=stride)
    third = Convolution(name=f"{name}.conv3", norm=f"{name}.bn3", inputs=width, outputs=outputs, kernel=1)
    shortcut = Convolution(
        name=f"{name}.downsample.0",
        norm=f"{name}.downsample.1",
        inputs=channels,
        outputs=outputs,
        kernel=1,
        stride=stride,
    )
    return Block(path=(first, second, third), shortcut=None if channels == outputs else shortcut)
