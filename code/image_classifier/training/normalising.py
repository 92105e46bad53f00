"""Pictures as the network sees them, made of their bytes by the device that computes them: bit for bit what
`vision.preprocess.normalise` makes."""

from __future__ import annotations

import torch

from image_classifier.vision.preprocess import Preprocessing, scale_and_shift


class Normaliser:
    """Scales and shifts the channels of pictures. Safe to call from several threads."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._scale, self._shift = (torch.from_numpy(array) for array in scale_and_shift(preprocessing))
        self._placed: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}  # on a device; for rows of a width

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) uint8 RGB, channels last in memory -> the same as float32, in the same order in memory."""
        if images.device.type != "cpu":
            scale, shift = self._placed.get(images.device) or self._place(images.device)
            return (images * scale).sub_(shift)
        # A row of pixels is a row of numbers, and so are the constants, repeated: torch takes them in vectors, where it
        # would take a pixel's channels one after the other.
        count, channels, height, width = images.shape
        scale, shift = self._placed.get(width) or self._repeat(width)
        rows = images.permute(0, 2, 3, 1).reshape(count * height, width * channels).float().mul_(scale).sub_(shift)
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)

    def _place(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self._placed.setdefault(device, (self._scale.to(device), self._shift.to(device)))

    def _repeat(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = (each.flatten().repeat(width) for each in (self._scale, self._shift))
        return self._placed.setdefault(width, (scale, shift))


def channel_statistics(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) floats, channels last in memory -> (n, 6): each one's means of its channels, then their standard
    deviations, as `torch.std_mean` has them within float32's rounding; on a CPU in a fifth of its time."""
    if images.device.type != "cpu":
        deviations, means = torch.std_mean(images, dim=(2, 3))
        return torch.cat([means, deviations], dim=1)
    count, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)

    def summed(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sum(1).view(count, width, channels).sum(1)

    means = summed(rows) / (height * width)
    squares = (rows - means.repeat(1, width)[:, None]).square_()
    return torch.cat([means, (summed(squares) / (height * width - 1)).sqrt()], dim=1)
