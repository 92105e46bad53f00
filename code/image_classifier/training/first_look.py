"""The look at the network and a few images before the first step of a job; see debugging/preflight.py."""

from __future__ import annotations

import logging
import time

import torch

from image_classifier.contract.errors import describe
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.preflight import look_ahead
from image_classifier.training.loop import train_mode
from image_classifier.training.state import Training
from image_classifier.training.stop import Interrupted

log = logging.getLogger(__name__)
SAMPLE = 32  # images, from all over the split
STRIDE = 4
WORTHWHILE = 4000  # images that a job sees in all its epochs; what the look takes: benchmarks/bench_preflight.py


def before_first_step(training: Training, hook: Observer) -> None:
    """Tells the observers what a copy of the network shows, if the job wants that and has not begun yet. What fails
    here is a warning, and the training is the same with and without."""
    config, progress = training.config, training.progress
    seen = config.epochs * len(training.train.split)
    wanted = config.preflight == "on" or (config.preflight == "auto" and seen >= WORTHWHILE)
    begun = progress.epoch > 1 or progress.step > 0
    if not wanted or not config.debug or begun or training.stop or not training.group.is_main:
        return
    if any(module._forward_hooks or module._forward_pre_hooks for module in training.model.modules()):
        log.info("no preflight: what stands on the network (debughookconfig.json) would be copied with it")
        return
    started = time.perf_counter()
    try:
        look(training, hook)
    except Interrupted:
        return  # the loop sees to it
    except Exception as error:  # any: the look is worth less than the training
        log.warning("no preflight: %s", describe(error))
    else:
        log.info("preflight: %.1f s", time.perf_counter() - started)


def look(training: Training, hook: Observer) -> None:
    """Takes the sample and hands on what is found. Raises whatever the network or the files raise."""
    device, split = training.setup.device, training.train.split
    indices = torch.linspace(0, len(split) - 1, min(SAMPLE, len(split))).round().long().tolist()
    spread = [index for first in range(STRIDE) for index in indices[first::STRIDE]]  # the first few, of many classes
    batch, plain = training.train.sample(spread)
    training.bad.note(split, batch.contrast)  # said once of a picture, and this was the first time
    if len(batch.labels) < 2:
        log.info("no preflight: fewer than two images can be read")
        return
    inputs, labels = training.train.on_device(batch, device)
    bare = None if plain is None else training.train.on_device(plain, device)[0]
    train_mode(training.model, training.config.fine_tune)
    found = look_ahead(
        training.trained, inputs, labels, plain=bare, whole=training.model, bf16=training.step_setup.bf16
    )
    hook.preflight(found)
