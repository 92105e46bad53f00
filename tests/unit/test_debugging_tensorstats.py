"""Statistics of activations: close to those of every position, and exact where one position matters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from image_classifier.debugging.tensorstats import activation_statistics, to_numbers

SIDE = 90  # 8,100 positions: far more than are looked at


def statistics_of(images: torch.Tensor) -> dict[str, float]:
    """(n, 3, h, w) in; the statistics of a network that is one ReLU."""
    with torch.no_grad():
        return to_numbers({"activations": activation_statistics(nn.Sequential(nn.ReLU()), images)})["activations"][
            "0_output_0"
        ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_of_a_large_map_tells_what_the_whole_tells(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    units = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    images = (torch.randn(16, 3, SIDE, SIDE) * units + 0.5).contiguous(memory_format=layout)
    images[:, 1] = torch.where(torch.rand(16, SIDE, SIDE) < 0.002, 1.0, -1.0)  # below 1 %: a dead unit
    seen = statistics_of(images)
    std = images.std(dim=(0, 2, 3), unbiased=False).mean().item()
    assert seen["input_std"] == pytest.approx(std, rel=0.05)
    assert seen["zero_share"] == pytest.approx((images <= 0).float().mean().item(), abs=0.02)
    assert seen["dead_share"] == pytest.approx(1 / 3)
    assert seen["abs_max"] == images.clamp(min=0).max().item()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_one_odd_position_of_a_large_map_is_seen(value: float) -> None:
    images = torch.zeros(4, 3, SIDE, SIDE)
    images[3, 2, 7, 11] = value
    assert statistics_of(images)["abs_max"] == pytest.approx(value, nan_ok=True)


def test_units_without_positions_are_all_looked_at() -> None:
    values = torch.tensor([[1.0, -1.0], [3.0, -1.0], [5.0, -1.0]])
    assert statistics_of(values) == pytest.approx(
        {"input_std": (8 / 3) ** 0.5 / 2, "abs_max": 5.0, "zero_share": 0.5, "dead_share": 0.5, "looks": 3.0}
    )
