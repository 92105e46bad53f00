"""Everything a training needs, in one place, and where it stands. Knows nothing of files but the checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobStopped
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoints, Progress, Weights
from image_classifier.training.data import Loader
from image_classifier.training.distributed import Group
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.setup import Setup
from image_classifier.training.step_graph import StepGraph
from image_classifier.training.stop import StopFlag
from image_classifier.vision.network import HEAD


@dataclass(kw_only=True)
class Training:
    """Everything a training needs; `progress` and `best` change as it goes on.

    Args:
        model: the network. `trained` is the part that sees the batches: all of it, or the head where the loaders give
            features; `replica` is the same as the training step calls it, averaging gradients over the group.
        best: weights of the best epoch so far, on the CPU; empty before the first validation.
        frozen_digest: `body_digest` of a frozen body, once it was needed.
        step_graph: replays steps, on a GPU.
        on_epoch: called after each epoch.
    """

    config: TrainConfig
    group: Group = field(default_factory=Group)
    model: nn.Module
    trained: nn.Module = field(init=False)
    replica: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer
    setup: Setup
    train: Loader | FeatureLoader
    valid: Loader | FeatureLoader
    bad: BadImages
    checkpoints: Checkpoints
    stop: StopFlag
    progress: Progress
    best: Weights = field(default_factory=dict)
    frozen_digest: str = ""
    step_graph: StepGraph | None = None
    on_epoch: Callable[[Progress], None]

    def __post_init__(self) -> None:
        self.trained = self.model.get_submodule(HEAD) if self.on_features else self.model
        self.replica = self.group.wrap(self.trained, self.setup.device)

    @property
    def on_features(self) -> bool:
        """Whether the frozen body has seen the images before the training."""
        return isinstance(self.train, FeatureLoader)

    def stopped_at_the_end(self, where: str, how_to_go_on: str) -> JobStopped:
        """What to raise where a stop is asked for after the last epoch. Raises PlatformError when that is not saved."""
        self.checkpoints.settle()
        hint = f"start again with the same checkpoint folder to {how_to_go_on}"
        return self.stop.error(f"while {where}; the training has finished and is saved", hint)

    @property
    def step_setup(self) -> Setup:
        """How a step computes: a head alone in float32, in which it costs nothing."""
        return replace(self.setup, bf16=False) if self.on_features else self.setup
