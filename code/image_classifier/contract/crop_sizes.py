"""How large the crops are that a training sees, epoch by epoch."""

from __future__ import annotations

from image_classifier.contract.config import TrainConfig

SIZE_STEP = 32  # pixels: a ResNet50 divides both sides by it
FULL_SIZE_SHARE = 1 / 3  # of the epochs have the largest crops, after sizes have grown


def training_sizes(config: TrainConfig) -> tuple[int, ...]:
    """The side of the training crops in each epoch, from the first, in multiples of SIZE_STEP unless it is image_size.

    That depends on the settings alone, so that a resumed job goes on with the same crops.
    """
    growing = config.epochs - max(1, round(config.epochs * FULL_SIZE_SHARE))
    first, last = min(config.start_scale, config.train_scale), config.train_scale
    scales = [first + (last - first) * epoch / growing for epoch in range(growing)]
    return tuple(_crop_size(config.image_size, scale) for scale in scales + [last] * (config.epochs - growing))


def work_by_epoch(config: TrainConfig) -> tuple[float, ...]:
    """What an epoch computes beside one whose crops are as large as what is served; a frozen body sees no crops."""
    if config.fine_tune == "head" and config.feature_views:
        return (1.0,) * config.epochs
    return tuple((size / config.image_size) ** 2 for size in training_sizes(config))


def _crop_size(image_size: int, scale: float) -> int:
    stepped = SIZE_STEP * max(1, round(image_size * scale / SIZE_STEP))
    return image_size if scale == 1 else min(image_size, stepped)
