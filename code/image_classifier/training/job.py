"""One training job from channels to model: what is made, in which order, and handed to whom."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes
from image_classifier.contract.errors import ConfigError, DataError, JobStopped, RuleFired
from image_classifier.contract.outputs import BAD_IMAGES, DATASET, FINDINGS, HISTORY, RESULT
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import as_text
from image_classifier.debugging.schema import RuleResult
from image_classifier.report.dataset import facts_of
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoint, Checkpoints, Progress, identity
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.distributed import Group
from image_classifier.training.ending import leave
from image_classifier.training.finishing import evaluation_loader, finish
from image_classifier.training.first_look import before_first_step
from image_classifier.training.given_data import GivenData
from image_classifier.training.head_only import (
    compute_features,
    one_thread_for_the_head,
    served_loader,
    serves,
    training_loader,
)
from image_classifier.training.kept_memory import keep_freed_memory
from image_classifier.training.loop import fit
from image_classifier.training.norm_trial import fuse_norms
from image_classifier.training.observe import Watched, import_ahead, make_hook
from image_classifier.training.optim import make_optimizer, resume_optimizer
from image_classifier.training.setup import Setup, choose_device, make_setup, tell_device
from image_classifier.training.state import Training
from image_classifier.training.steps import min_images
from image_classifier.training.stop import StopFlag
from image_classifier.training.waiting_threads import WaitingThreads
from image_classifier.training.waking import wake
from image_classifier.vision.findings import LEFTOVER, by_level
from image_classifier.vision.fingerprint import fingerprint, fingerprint_by_name, in_order, order_fingerprint
from image_classifier.vision.folders import ImageFolders, Split, name_in
from image_classifier.vision.model import build_model, first_stages, head, load_starting_weights
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.resnet import ResNet

log = logging.getLogger(__name__)


def run_in(
    group: Group,
    config: TrainConfig,
    paths: MlPaths,
    stop: StopFlag,
    *,
    begun: float | None = None,
    given: GivenData | None = None,
) -> None:
    """One process's part of the job: all of it, or, for a follower, the training steps. They end together.

    Args:
        begun: Unix seconds from which the rules count the time to the first step; default: now.
        given: the images of the job's channels, where somebody has begun to look at them.

    Raises:
        ClassifierError: bad settings, data or weights; a full disk; a training that diverged or was stopped.
    """
    begun = time.time() if begun is None else begun
    smallest = min_images(config.fine_tune) * group.size
    if config.batch_size < smallest:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot train batch norms in {group.size} processes",
            f"use {smallest} or more, or fine_tune=head",
        )
    import_ahead(config, is_main=group.is_main)
    device = choose_device(group.local_rank)
    tell_device(config.amp, device)
    if device.type == "cpu" and config.fine_tune == "full":
        keep_freed_memory()
    awake = wake(config, device)
    folders, contents = (given or GivenData(config, paths)).take(lambda: end_if_asked(stop))
    describe_data(folders)
    data_fingerprint = fingerprint(folders, contents)
    if len(set(group.exchange((data_fingerprint, order_fingerprint(contents))))) > 1:
        raise DataError("the hosts see different images", "use S3DataDistributionType FullyReplicated")
    checkpoints = Checkpoints(
        paths.checkpoints,
        identity(config, data_fingerprint),
        data_before=partial(fingerprint_by_name, folders),
        contents=contents,
        writes=group.is_main,
    )
    checkpoint = group.from_main(checkpoints.load)
    if checkpoint is not None and checkpoint.contents:
        folders = in_order(folders, contents, checkpoint.contents)
        checkpoints.contents = checkpoint.contents
    model = make_model(config, len(folders.classes), paths.channel("weights"), checkpoint, device)
    on_features = serves(config, folders, paths, group)
    loading = config.replace(workers=0, cache="none") if on_features else config  # its pictures are read otherwise
    training = make_training(
        config,
        folders,
        model,
        make_setup(loading, device, folders, checkpoints.contents),
        on_features=on_features,
        group=group,
        checkpoints=checkpoints,
        checkpoint=checkpoint,
        stop=stop,
        paths=paths,
    )
    hook = make_hook(watched(training, folders, begun), paths, stop, lambda fired: end_hung(training, fired, paths))
    try:
        awake()
        with WaitingThreads(device), checkpoints.settled():
            compute_features(training, hook)
            if training.progress.step == 0 and not training.progress.finished:
                training.train.begin_early(training.progress.epoch)  # while the network is looked at
            before_first_step(training, hook)
            fuse_norms(training)
            with one_thread_for_the_head(training):
                fit(training, hook)
            group.from_main(lambda: finish(training, hook, folders, data_fingerprint, paths))  # the others wait
    except RuleFired as fired:
        if group.is_main:
            RESULT.write(paths.output_data, stopped_result(training.progress, fired))
        raise
    finally:
        hook.close()
        if group.is_main:
            write_findings(training.bad, folders, data_fingerprint, paths)


def write_findings(bad: BadImages, folders: ImageFolders, data_fingerprint: str, paths: MlPaths) -> None:
    """Writes what could not be read, what else is to be said of the images and what they are; logs what was not said
    yet."""
    for finding in bad.new_findings():
        log.warning("%s", finding.line)
    BAD_IMAGES.write(paths.output_data, bad.found)
    FINDINGS.write(paths.output_data, by_level((*folders.findings, *bad.findings())))
    DATASET.write(paths.output_data, facts_of(folders, data_fingerprint))


def end_if_asked(stop: StopFlag) -> None:
    """Raises JobStopped when a stop is asked for before there is anything to save."""
    if stop:
        raise stop.error("while reading the images", "start again")


def end_hung(training: Training, fired: RuleResult, paths: MlPaths) -> NoReturn:
    """Ends the process of a training that hangs, for the rule that noticed it; called in another thread."""
    progress, stop = training.progress, training.stop
    stop.fire(fired)
    error = stop.error(
        f"in epoch {progress.epoch} of {training.config.epochs}, step {progress.step} of {training.train.num_steps}; "
        "it hangs, so what came after the last checkpoint is lost",
        "start again with the same checkpoint folder to resume from there",
    )
    RESULT.write(paths.output_data, stopped_result(progress, error))
    leave(error, paths)


def stopped_result(progress: Progress, fired: JobStopped) -> dict[str, object]:
    """metrics.json of a job that a rule stopped: why, and how far it came."""
    best = progress.history[progress.best_epoch - 1] if progress.best_epoch else {}
    return {
        "outcome": "stopped by a rule",
        "reason": fired.message,
        "advice": fired.hint,
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.history),
        "metrics": {name: value for name, value in best.items() if ":" in name},
        "seconds": round(progress.total_seconds, 3),
    }


def watched(training: Training, folders: ImageFolders, begun: float) -> Watched:
    """What the observers want to know of the training."""
    progress, steps = training.progress, training.train.num_steps
    return Watched(
        config=training.config,
        model=training.model,
        classes=folders.classes,
        images={split.name: len(split) for split in folders.splits},
        steps_per_epoch=steps,
        begun=begun,
        done={
            "train": (progress.epoch - 1) * steps + progress.step,
            "eval": len(progress.history) * training.valid.num_steps,
            "test": 0,
        },
        setup=training.setup,
        rank=training.group.rank,
        world_size=training.group.size,
        node=os.environ.get("SM_CURRENT_HOST", "algo-1").replace("localhost", "algo-1"),
        samples_machine=training.group.local_rank == 0,
    )


def describe_data(folders: ImageFolders) -> None:
    """One line in the log, and one for each thing the user did not ask for."""
    images = " ".join(f"{split.name}={len(split)}" for split in folders.splits)
    log.info("data: %d classes, images %s", len(folders.classes), images)
    if folders.valid_split_off:
        log.info("there is no valid channel: %d of the train images were split off for it", len(folders.valid))
    if folders.test is None:
        log.info("there is no test channel: no test metrics, golden samples come from valid")
    for finding in folders.findings:
        log.log(logging.INFO if finding.kind == LEFTOVER else logging.WARNING, "%s", finding.line)


def make_model(
    config: TrainConfig, num_classes: int, weights_channel: Path, checkpoint: Checkpoint | None, device: torch.device
) -> ResNet:
    """The network with its starting weights or the checkpoint's, on the device; frozen but for the head, or in its
    first stages, if asked."""
    torch.manual_seed(config.seed)
    drawn = config.weights == "none" if checkpoint is None else not checkpoint.model
    model = build_model(num_classes, drawn=drawn)
    if checkpoint is None:
        channel = weights_channel if weights_channel.is_dir() else None
        log.info("weights: %s", load_starting_weights(model, config.weights, channel=channel))
    elif checkpoint.model:
        model.load_state_dict(checkpoint.model)
    if config.fine_tune == "head":
        model.requires_grad_(False)
        head(model).requires_grad_(True)
    for part in first_stages(model, config.frozen_stages if config.fine_tune == "full" else 0):
        part.requires_grad_(False)
    return model.to(device).to(memory_format=torch.channels_last)


def make_training(
    config: TrainConfig,
    folders: ImageFolders,
    model: ResNet,
    setup: Setup,
    *,
    on_features: bool,
    group: Group,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    stop: StopFlag,
    paths: MlPaths,
) -> Training:
    """Puts together what the loop needs, at the point where the checkpoint left off."""
    log.info("workers=%d", setup.workers)
    if group.size > 1:
        log.info("processes: %d, this is number %d", group.size, group.rank)
    optimizer = make_optimizer(model, config)
    if checkpoint is not None and checkpoint.optimizer:
        resume_optimizer(optimizer, checkpoint.optimizer)
    progress = Progress() if checkpoint is None else checkpoint.progress
    return Training(
        config=config,
        group=group,
        model=model,
        optimizer=optimizer,
        setup=setup,
        train=(
            training_loader(folders.train, config, group)
            if on_features
            else image_loader(folders.train, config, setup, group)
        ),
        valid=(
            served_loader(folders.valid, config)
            if on_features
            else evaluation_loader(folders.valid, config, setup, group)
        ),
        bad=BadImages(
            config.max_bad_images,
            still_there(progress.unreadable, folders),
            still_shown(progress.contrast, folders),
        ),
        checkpoints=checkpoints,
        stop=stop,
        progress=progress,
        best={} if checkpoint is None else checkpoint.best,
        on_epoch=lambda progress: HISTORY.write(paths.output_data, progress.history) if group.is_main else None,
    )


def still_there(unreadable: Mapping[str, str], folders: ImageFolders) -> dict[str, str]:
    """Those of the files named that there are: one that was renamed, and is met again, counts once."""
    names = {as_text(path) for split in folders.splits for path in split.paths}
    return {name: reason for name, reason in unreadable.items() if name in names}


def still_shown(contrast: Mapping[str, str], folders: ImageFolders) -> dict[str, str]:
    """The same for images that show next to nothing, which findings name in their own way."""
    names = {name_in(split, path) for split in folders.splits for path in split.paths} if contrast else set()
    return {name: kind for name, kind in contrast.items() if name in names}


def image_loader(split: Split, config: TrainConfig, setup: Setup, group: Group) -> Loader:
    """The training images with new crops in every epoch: this process's share of each batch."""
    dataset = ImageDataset(
        split,
        Preprocessing.for_image_size(config.image_size),
        augment=config.augment,
        seed=config.seed,
        cache=setup.kept.get(split.name),
        sizes=training_sizes(config),
    )
    return Loader(
        dataset,
        config.batch_size,
        workers=setup.workers,
        shuffle_seed=config.seed,
        pin_memory=setup.device.type == "cuda",
        rank=group.rank,
        size=group.size,
        balanced=config.sampler == "balanced",
    )
