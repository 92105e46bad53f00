"""ResNet50 as a torch module, made from the facts in `network`.

It is torchvision's, name for name, value for value from the same seed, and answer for answer, as tests say. Importing
torchvision's brings object detection and torch's compiler along, which a short job waits for in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from image_classifier.vision import network

Convolve = Callable[[nn.Conv2d, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Computes what a convolution makes of x; and gives x, for what else in the network reads it."""


def convolve(convolution: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's answer, and x."""
    return convolution(x), x


class LayerEnd(Protocol):
    """What comes behind a convolution: batch norm, shortcut where there is one, ReLU where there is one, and pooling
    where there is some."""

    def __call__(
        self,
        norm: nn.BatchNorm2d,
        x: torch.Tensor,
        *,
        relu: nn.ReLU | None = None,
        shortcut: torch.Tensor | None = None,
        pool: nn.MaxPool2d | None = None,
    ) -> torch.Tensor:
        """(N, C, H, W), and a shortcut like it -> the same shape, or the pooled one, in memory of its own."""
        ...


def end_layer(
    norm: nn.BatchNorm2d,
    x: torch.Tensor,
    *,
    relu: nn.ReLU | None = None,
    shortcut: torch.Tensor | None = None,
    pool: nn.MaxPool2d | None = None,
) -> torch.Tensor:
    """The modules one after the other, as in torchvision's network."""
    y: torch.Tensor = norm(x)
    if shortcut is not None:
        y += shortcut
    y = y if relu is None else relu(y)
    return y if pool is None else pool(y)


def has_hooks(module: nn.Module) -> bool:
    """Whether Python is to be called before or behind this module: it must be called as a module then."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class Bottleneck(nn.Module):
    """A block: (N, C, H, W) -> (N, EXPANSION x width, H / stride, W / stride)."""

    def __init__(self, block: network.Block, *, drawn: bool) -> None:
        super().__init__()
        shortcut = block.shortcut  # made first, as in torchvision: the random numbers are drawn in this order
        downsample = None if shortcut is None else nn.Sequential(*_layer(shortcut, drawn=drawn))
        first, second, third = block.path
        self.conv1, self.bn1 = _layer(first, drawn=drawn)
        self.conv2, self.bn2 = _layer(second, drawn=drawn)
        self.conv3, self.bn3 = _layer(third, drawn=drawn)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._end: LayerEnd = end_layer
        self._convolve: Convolve = convolve

    def end_layers_by(self, end: LayerEnd) -> None:
        """As that of `ResNet`, for this block."""
        self._end = end

    def convolve_by(self, convolve: Convolve) -> None:
        """As that of `ResNet`, for this block."""
        self._convolve = convolve

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of path and shortcut."""
        y, x = self._convolve(self.conv1, x)
        y = self._end(self.bn1, y, relu=self.relu)
        y, _ = self._convolve(self.conv2, y)
        y = self._end(self.bn2, y, relu=self.relu)
        y, _ = self._convolve(self.conv3, y)
        return self._end(self.bn3, y, relu=self.relu, shortcut=self._shortcut(x))

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is None:
            return x
        if (self._end is end_layer and self._convolve is convolve) or has_hooks(self.downsample):
            return self.downsample(x)  # type: ignore[no-any-return]
        convolution, norm = self.downsample
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        y, _ = self._convolve(convolution, x)
        return self._end(norm, y)


class ResNet(nn.Module):
    """The network: (N, 3, H, W) float32, normalised -> (N, num_classes) logits.

    Random weights are drawn as torchvision draws them, each block starting as the identity (`zero_init_residual`);
    those of convolutions only if `drawn`.
    """

    def __init__(self, num_classes: int, *, drawn: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = _layer(network.STEM, drawn=drawn)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        blocks = iter(network.blocks())
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(Bottleneck(next(blocks), drawn=drawn) for _ in range(count))) for count in network.BLOCKS
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(network.FEATURES, num_classes)
        self._end: LayerEnd = end_layer
        self._convolve: Convolve = convolve
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and drawn:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def end_layers_by(self, end: LayerEnd) -> None:
        """Has batch norms, shortcuts, ReLUs and pooling computed by `end` from now on, in copies of the network too.

        Args:
            end: computes what `end_layer` does, and calls that where a module has hooks. Copying it gives itself.
        """
        self._end = end
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.end_layers_by(end)

    def convolve_by(self, convolve: Convolve) -> None:
        """Has its convolutions computed by `convolve` from now on, in copies of the network too.

        Args:
            convolve: computes what the function of that name does, and calls that where a module has hooks.
        """
        self._convolve = convolve
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.convolve_by(convolve)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        x, _ = self._convolve(self.conv1, x)
        x = self._end(self.bn1, x, relu=self.relu, pool=self.maxpool)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


class _AsItLies(nn.Conv2d):
    """Holds whatever lies in its memory until weights are loaded. (torch's own `skip_init` imports 500 modules.)"""

    def reset_parameters(self) -> None:
        """Draws nothing."""


def _layer(layer: network.Convolution, *, drawn: bool) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    make = nn.Conv2d if drawn else _AsItLies
    settings: dict[str, Any] = {"stride": layer.stride, "padding": layer.kernel // 2, "bias": False}
    return make(layer.inputs, layer.outputs, layer.kernel, **settings), nn.BatchNorm2d(layer.outputs)
