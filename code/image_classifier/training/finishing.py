"""The end of a training: the best epoch's weights are tested, their number formats measured, the model written."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version

from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.metrics import metric_line
from image_classifier.contract.outputs import HISTORY, RESULT, TRIAL, TRIED
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import as_text
from image_classifier.debugging.observer import Observer
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.distributed import Group
from image_classifier.training.evaluate import Evaluation, evaluate
from image_classifier.training.feature_loader import FeatureLoader
from image_classifier.training.features import RECENT, Extraction, digests_of
from image_classifier.training.golden import golden_samples
from image_classifier.training.head_only import extraction_of, served_extraction, test_loader
from image_classifier.training.kept_formats import KeptBody, PhotosChanged
from image_classifier.training.label_errors import write_suspects
from image_classifier.training.number_formats import (
    GATE_PHOTOS,
    GATE_PHOTOS_ON_GPU,
    Measured,
    measure_body,
    measure_formats,
)
from image_classifier.training.setup import Setup, exact_float32
from image_classifier.training.state import Training
from image_classifier.training.stop import Interrupted
from image_classifier.training.tables import guessing_metrics, readable_labels, what_guessing_gets, write_test_results
from image_classifier.training.usual import usual_sight
from image_classifier.vision import usual_jpeg
from image_classifier.vision.artifact import write_model
from image_classifier.vision.folders import ImageFolders, Split
from image_classifier.vision.model import state_arrays
from image_classifier.vision.network import HEAD
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.temperature import abstain_below, calibrate

log = logging.getLogger(__name__)
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors")  # of which none can be missing


def finish(training: Training, hook: Observer, folders: ImageFolders, data_fingerprint: str, paths: MlPaths) -> None:
    """Tests the best epoch's weights, then writes metrics and model. Raises JobStopped when a stop is asked for."""
    started = time.perf_counter()
    progress, config, model = training.progress, training.config, training.model
    HISTORY.write(paths.output_data, progress.history)
    if TRIAL.read_object(paths.config):
        training.checkpoints.settle()
        RESULT.write(paths.output_data, trial_result(training, folders))
        log.info("done: best epoch %d of %d; a trial writes no model", progress.best_epoch, len(progress.history))
        return
    model.load_state_dict(training.best)
    metrics = dict(progress.history[progress.best_epoch - 1])
    sight = usual_sight(training, folders.valid, hook)
    calibration = calibrate(sight.logits, sight.labels)
    log.info("%s", calibration.sentence)
    temperature = calibration.temperature
    write_suspects(training, folders, sight, temperature, paths.output_data)
    limit = abstain_below(sight.logits, temperature, config.abstain_coverage)
    if config.abstain_coverage:
        log.info("abstain: below %.4f, to answer %.1f %% of images", limit, 100 * config.abstain_coverage)
    extraction = served_extraction(training, hook)
    answered = {"valid": what_guessing_gets(readable_labels(folders.valid, training.bad.found))}
    uncalibrated: dict[str, float] = {}
    abstaining: dict[str, float] = {"below": limit} if limit else {}
    if folders.test is not None:
        few = training.on_features or len(folders.test) <= RECENT  # whose features are not too many to hold
        test = run_test(training, hook, folders.test, extraction if few else None, temperature)
        write_test_results(paths.output_data, test, folders.test, folders.classes)
        log.info(metric_line(progress.best_epoch, test.metrics("test")))
        metrics |= test.metrics("test")
        uncalibrated = {f"test:{name}": value for name, value in test.uncalibrated.items()}
        if limit:
            abstaining |= test.answered_above(limit)
        answered["test"] = what_guessing_gets(test.labels.tolist())
    preprocessing = Preprocessing.for_image_size(config.image_size)
    measured = run_formats(training, hook, folders, extraction, temperature)
    golden = golden_samples(
        model,
        folders.test or folders.valid,
        preprocessing,
        config.golden_samples,
        features=None if extraction is None or training.setup.device.type != "cpu" else extraction.of_bytes,
        temperature=temperature,
    )
    training.checkpoints.settle()
    write_model(
        paths.model,
        weights=state_arrays(model),
        classes=folders.classes,
        preprocessing=preprocessing,
        golden=golden,
        config={name: as_text(value) for name, value in config.to_hyperparameters().items()},
        metrics=metrics | guessing_metrics(answered, len(progress.history)),
        data_fingerprint=data_fingerprint,
        versions=program_versions(),
        ranges=measured.ranges,
        gates=measured.gates,
        reference=sight.reference(temperature),
        temperature=temperature,
        abstain_below=limit,
    )
    result = {
        "outcome": "completed",
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.history),
        "metrics": {name: value for name, value in metrics.items() if ":" in name},
        "classes": len(folders.classes),
        "images": {split.name: len(split) for split in folders.splits},
        "answered": answered,
        "calibration": calibration.to_json(),
        "uncalibrated": uncalibrated,
        "abstain": abstaining,
        "unreadable_images": len(training.bad.found),
        "seconds": round(progress.total_seconds + time.perf_counter() - started, 3),
        "device": training.setup.device_name,
        "bf16": training.setup.bf16,
    }
    RESULT.write(paths.output_data, result)
    log.info("done: best epoch %d of %d, model in %s", progress.best_epoch, len(progress.history), paths.model)


def trial_result(training: Training, folders: ImageFolders) -> dict[str, object]:
    """metrics.json of a trial that is not to be tested: what validation says."""
    progress = training.progress
    best = progress.history[progress.best_epoch - 1]
    return {
        "outcome": TRIED,
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.history),
        "metrics": {name: value for name, value in best.items() if ":" in name},
        "classes": len(folders.classes),
        "images": {split.name: len(split) for split in (folders.train, folders.valid)},
        "answered": {"valid": what_guessing_gets(readable_labels(folders.valid, training.bad.found))},
        "unreadable_images": len(training.bad.found),
        "seconds": round(progress.total_seconds, 3),
        "device": training.setup.device_name,
        "bf16": training.setup.bf16,
    }


def run_test(
    training: Training, hook: Observer, split: Split, extraction: Extraction | None, temperature: float
) -> Evaluation:
    """Answers to the test images as they are served: in float32, with the temperature."""
    setup = replace(training.setup, bf16=False)
    loader: Loader | FeatureLoader
    try:
        model: nn.Module = training.model
        if extraction is not None:
            model, loader = model.get_submodule(HEAD), test_loader(training, split, extraction)
        else:
            loader = evaluation_loader(split, training.config, training.setup, Group())
        hook.begin("test", training.progress.best_epoch, 0)
        with exact_float32():
            return evaluate(model, loader, hook, training.bad, training.stop, setup=setup, temperature=temperature)
    except Interrupted:
        raise training.stopped_at_the_end("testing", "test and write the model") from None


def run_formats(
    training: Training, hook: Observer, folders: ImageFolders, extraction: Extraction | None, temperature: float
) -> Measured:
    """What the number formats of a server would cost this model. Raises JobStopped when a stop is asked for.

    Args:
        extraction: in float32, of a training on features.
    """
    preprocessing = Preprocessing.for_image_size(training.config.image_size)

    def pause() -> None:
        if training.stop:
            raise Interrupted

    on_cpu = training.setup.device.type == "cpu"
    unseen, golden = photos_for_gates(
        folders, training.config.golden_samples, wanted=GATE_PHOTOS if on_cpu else GATE_PHOTOS_ON_GPU
    )
    try:
        if on_cpu:
            in_float32 = extraction or extraction_of(training, replace(training.setup, bf16=False), Group(), hook)
            in_bf16 = extraction_of(training, training.setup, Group(), hook) if training.setup.bf16 else None
            with suppress(PhotosChanged):
                body = body_of(training, (folders.train, unseen), (in_float32, in_bf16), golden, pause)
                return measure_body(training.model, body, temperature)
        model, train = training.model, folders.train
        return measure_formats(model, train, unseen, preprocessing, skip=golden, pause=pause, temperature=temperature)
    except Interrupted:
        raise training.stopped_at_the_end("measuring number formats", "write the model") from None


def photos_for_gates(folders: ImageFolders, golden: int, *, wanted: int) -> tuple[Split, int]:
    """The split on whose images number formats are measured, and how many of its first are golden samples.

    The test images where they are not much fewer: they chose neither the epoch nor the temperature, and a training on
    features has float32's answers to them.

    Args:
        golden: number of golden samples, which are test images where there are any.
        wanted: images.
    """
    if folders.test is None:
        return folders.valid, golden
    if 2 * (len(folders.test) - golden) >= min(wanted, len(folders.valid)):
        return folders.test, golden
    return folders.valid, 0


def body_of(
    training: Training,
    splits: tuple[Split, Split],
    computing: tuple[Extraction, Extraction | None],
    golden: int,
    pause: Callable[[], None],
) -> KeptBody:
    """The training's body for measuring number formats on the CPU.

    Args:
        splits: the training images, and what `photos_for_gates` gives.
        computing: in float32, and in bf16 where the training does.
        golden: the first so many of the latter are golden samples.
    """
    contents = training.checkpoints.contents
    train, unseen = splits
    return KeptBody(
        training.model,
        (train, digests_of(contents, train)),
        (unseen, digests_of(contents, unseen)),
        Preprocessing.for_image_size(training.config.image_size),
        unreadable=training.bad.found,
        skip=golden,
        pause=pause,
        in_float32=computing[0],
        in_bf16=computing[1],
    )


def program_versions() -> dict[str, str]:
    """Name -> version of what makes a model what it is: Python, and packages with a say in its numbers or pixels."""
    decoder = {"simplejpeg": usual_jpeg.VERSION} if usual_jpeg.VERSION else {}
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES} | decoder


def evaluation_loader(split: Split, config: TrainConfig, setup: Setup, group: Group) -> Loader:
    """A split as it is served: no crops, no shuffling; this process's share of it."""
    return Loader(
        ImageDataset(split, Preprocessing.for_image_size(config.image_size), cache=setup.kept.get(split.name)),
        config.batch_size,
        workers=setup.workers,
        pin_memory=setup.device.type == "cuda",
        rank=group.rank,
        size=group.size,
    )
