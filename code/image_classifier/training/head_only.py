"""A training of the head alone: the frozen body sees each view of each image once, before the first step."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.machine import memory
from image_classifier.contract.paths import FEATURES_VARIABLE, MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.tensorstats import PROBE_IMAGES, Scalars, activation_statistics
from image_classifier.training.distributed import Group
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.features import WIDTH, Extraction, SplitFeatures, body_digest, digests_of
from image_classifier.training.loop import saved_and_stopped
from image_classifier.training.setup import Setup, num_workers
from image_classifier.training.state import Training
from image_classifier.training.stop import Interrupted
from image_classifier.training.views import CENTRE, view_index, views_of
from image_classifier.vision.folders import ImageFolders, Split
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.resnet import ResNet

log = logging.getLogger(__name__)
MEMORY_SHARE = 0.25  # of the free memory may hold features


def serves(config: TrainConfig, folders: ImageFolders, paths: MlPaths, group: Group) -> bool:
    """Whether this training is one on features; one of a head that is not says why."""
    if config.fine_tune != "head" or config.feature_views == 0:
        return False
    free = memory()[1]
    reason = ""
    if paths.debug_hook_config.is_file():
        reason = "debughookconfig.json wants to see the whole network in every step"
    elif needed_bytes(config, folders) > MEMORY_SHARE * free:
        reason = f"they need {needed_bytes(config, folders) / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
    reason = next(filter(None, group.exchange(reason)), "")  # one process's reason is everybody's
    if reason:
        log.warning("features are not kept, the frozen body sees every image in every epoch: %s", reason)
    return not reason


def needed_bytes(config: TrainConfig, folders: ImageFolders) -> int:
    """What the features of training and validation take in memory."""
    rows = len(folders.train) * min(len(views_of(config)), config.epochs) + len(folders.valid)
    return int(4 * WIDTH * rows)


def training_loader(split: Split, config: TrainConfig, group: Group) -> FeatureLoader:
    """The training images in their views, in the order in which a `Loader` gives them."""
    return FeatureLoader(
        split,
        config.batch_size,
        shuffle_seed=config.seed,
        rank=group.rank,
        size=group.size,
        image_size=config.image_size,
        balanced=config.sampler == "balanced",
    )


def served_loader(split: Split, config: TrainConfig) -> FeatureLoader:
    """A split as it is served."""
    return FeatureLoader(split, config.batch_size, image_size=config.image_size)


def activations_of(training: Training, extraction: Extraction) -> Scalars:
    """The statistics of the whole network's activations on the first images that can be read."""
    split, unreadable = training.train.split, training.train.features.unreadable  # type: ignore[union-attr]
    probed = [index for index in range(len(split)) if index not in unreadable][:PROBE_IMAGES]
    digests = digests_of(training.checkpoints.contents, split)

    def compute() -> Scalars:
        preprocessing = Preprocessing.for_image_size(training.config.image_size)
        images = torch.stack([torch.from_numpy(load(split.paths[index], preprocessing)) for index in probed])
        on_device = images.to(training.setup.device, memory_format=torch.channels_last)
        return activation_statistics(training.model.eval(), on_device, bf16=training.setup.bf16)

    return extraction.statistics([digests[index] for index in probed], compute) if probed else {}


def compute_features(training: Training, hook: Observer) -> None:
    """Fills the loaders of training and validation with what the epochs that are left need.

    Raises:
        JobStopped: a stop was asked for; what was computed is in the store.
        DataError: too many images cannot be read.
    """
    train, valid, config, progress = training.train, training.valid, training.config, training.progress
    if not isinstance(train, FeatureLoader) or not isinstance(valid, FeatureLoader) or progress.finished:
        return
    extraction = extraction_of(training, training.setup, training.group, hook)
    views = views_of(config)
    wanted = needed_views(len(train.split), len(views), progress.epoch, config.epochs)
    contents = training.checkpoints.contents
    try:
        train.features = extraction.split(train.split, digests_of(contents, train.split), views, wanted)
        valid.features = extraction.split(
            valid.split, digests_of(contents, valid.split), (CENTRE,), np.ones((len(valid.split), 1), np.bool_)
        )
        if training.group.is_main and config.debug and config.activation_interval:
            train.activations = activations_of(training, extraction)
    except Interrupted:
        raise saved_and_stopped(training) from None


@contextmanager
def one_thread_for_the_head(training: Training) -> Iterator[None]:
    """A head's step is too little to divide: a second thread costs more than it does, much more on a busy core."""
    before = torch.get_num_threads()
    if training.on_features:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_loader(training: Training, split: Split, extraction: Extraction) -> FeatureLoader:
    """The test images, by this process alone.

    Args:
        extraction: in float32, the precision in which the model is stored and served.

    Raises:
        Interrupted: a stop was asked for.
        DataError: too many images cannot be read.
    """
    loader = served_loader(split, training.config)
    contents = digests_of(training.checkpoints.contents, split)
    wanted = np.ones((len(split), 1), np.bool_)
    loader.features = extraction.split(split, contents, (CENTRE,), wanted, said=training.on_features)
    return loader


def validation_features(training: Training, hook: Observer) -> SplitFeatures:
    """The validation images' features as the training saw them, by this process alone. Raises as `test_loader`."""
    split = training.valid.split
    contents = digests_of(training.checkpoints.contents, split)
    extraction = extraction_of(training, training.setup, Group(), hook)
    return extraction.split(split, contents, (CENTRE,), np.ones((len(split), 1), np.bool_))


def served_extraction(training: Training, hook: Observer) -> Extraction | None:
    """What computes features in float32, as a server does; None where a GPU trained more than a head: it answers each
    photo anew in less time than Python takes to keep track of it."""
    if not training.on_features and training.setup.device.type != "cpu":
        return None
    return extraction_of(training, replace(training.setup, bf16=False), Group(), hook)


def extraction_of(training: Training, setup: Setup, group: Group, hook: Observer) -> Extraction:
    """What computes features of this training's body; they are kept where it is frozen."""
    folder = os.environ.get(FEATURES_VARIABLE) if training.on_features else None
    assert isinstance(training.model, ResNet)
    if folder and not training.frozen_digest:
        training.frozen_digest = body_digest(training.model)
    return Extraction(
        training.model,
        Preprocessing.for_image_size(training.config.image_size),
        setup,
        store_folder=Path(folder) if folder else None,
        group=group,
        stop=training.stop,
        bad=training.bad,
        preparing=hook.preparing,
        digest=training.frozen_digest,
        readers=num_workers(training.config.workers, setup.device),
    )


def needed_views(num_images: int, num_views: int, first_epoch: int, last_epoch: int) -> NDArray[np.bool_]:
    """(images, views): which are trained on in these epochs."""
    needed: NDArray[np.bool_] = np.zeros((num_images, num_views), np.bool_)
    indices = np.arange(num_images)
    for epoch in range(first_epoch, min(last_epoch, first_epoch + num_views - 1) + 1):
        needed[indices, view_index(epoch, indices, num_views)] = True
    return needed
