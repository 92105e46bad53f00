"""A stop that comes in the middle of a training, at a step that a test chooses."""

from __future__ import annotations

import torch

from image_classifier.debugging.observer import Observer
from image_classifier.training.stop import StopFlag


class StopAfter(Observer):
    """Asks for a stop when so many steps have ended."""

    def __init__(self, stop: StopFlag, steps: int) -> None:
        self.stop, self.steps = stop, steps

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.steps -= 1
        if self.steps == 0:
            self.stop.reason = "SIGTERM"
