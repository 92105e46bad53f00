"""The optimiser and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.debugging.uncompiled import uncompiled

FUSED = ("cpu", "cuda")  # devices


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over the parameters that train.

    Weight decay pulls on matrices and filters only: shrinking a bias or a batch norm's scale regularises nothing. On a
    CPU and on a GPU all are updated in one pass.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = uncompiled(torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.SGD)
    momentum = {} if config.optimizer == "adamw" else {"momentum": config.momentum, "nesterov": config.momentum > 0}
    fused = all(parameter.device.type in FUSED for parameter in trained)
    optimizer: torch.optim.Optimizer = kind(groups, lr=config.lr, fused=True if fused else None, **momentum)
    return optimizer


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a checkpoint's state. How an update is computed is not of it: the job may go on on another device."""
    groups = [
        {**saved, "fused": ours["fused"]}
        for saved, ours in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole job: linear warm-up to `lr`, then a cosine to 0."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets it in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
