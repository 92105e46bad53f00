"""ResNet50 as a torch module, made from the facts in `network`.

It is torchvision's, name for name, value for value from the same seed, and answer for answer, as tests say. Importing
torchvision's brings object detection and torch's compiler along, which a short job waits for in vain.
"""

from __future__ import annotations

import torch
from torch import nn

from image_classifier.vision import network


class Bottleneck(nn.Module):
    """A block: (N, C, H, W) -> (N, EXPANSION x width, H / stride, W / stride)."""

    def __init__(self, block: network.Block) -> None:
        super().__init__()
        shortcut = block.shortcut  # made first, as in torchvision: the random numbers are drawn in this order
        downsample = None if shortcut is None else nn.Sequential(_convolution(shortcut), _norm(shortcut))
        first, second, third = block.path
        self.conv1, self.bn1 = _convolution(first), _norm(first)
        self.conv2, self.bn2 = _convolution(second), _norm(second)
        self.conv3, self.bn3 = _convolution(third), _norm(third)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of path and shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The network: (N, 3, H, W) float32, normalised -> (N, num_classes) logits.

    Random weights are drawn as torchvision draws them, each block starting as the identity (`zero_init_residual`).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(network.STEM), _norm(network.STEM)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        blocks = iter(network.blocks())
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(Bottleneck(next(blocks)) for _ in range(count))) for count in network.BLOCKS
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(network.FEATURES, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _convolution(layer: network.Convolution) -> nn.Conv2d:
    padding = layer.kernel // 2
    return nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, stride=layer.stride, padding=padding, bias=False)


def _norm(layer: network.Convolution) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(layer.outputs)
