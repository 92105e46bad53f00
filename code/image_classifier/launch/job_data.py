"""The images of a job: looked at before it starts, split where nothing says how, and kept so for all of its attempts.

A split is made on this machine, once for a run or a search, and goes to every job as a list in a channel of its own: to
processes, to containers and to SageMaker's jobs, which see the same images in the same splits.
"""

from __future__ import annotations

from pathlib import Path

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import DataError
from image_classifier.contract.outputs import SPLIT_FOLDER
from image_classifier.debugging.rules import parse_rules
from image_classifier.launch.progress import Counting
from image_classifier.launch.runs import Run
from image_classifier.launch.view import SILENT, View, tell_findings
from image_classifier.vision.data_set import near_to, open_data
from image_classifier.vision.folders import ImageFolders, find_channels
from image_classifier.vision.image_list import SPLIT_CHANNEL, SPLIT_FILE


def check_data(data: Path, config: TrainConfig, view: View = SILENT, *, run: Run | None = None) -> ImageFolders:
    """Reads the names of the images and the rules before a job is started, and tells `view` what was found.

    Args:
        data: a folder, or a list; see `vision/data_set.py`.
        run: an earlier start of the job, whose split is kept.

    Raises:
        ConfigError: there is no such rule.
        DataError: the data cannot be used.
    """
    parse_rules(config.rules)
    parse_rules(config.stop_on)
    if not data.exists():
        hint = "name one with --data DIR, or make an example with `deploy.py sample-data DIR`"
        near = near_to(data)
        raise DataError(f"there is no data folder {data}", f"did you mean {near}? Else {hint}" if near else hint)
    with view.live() as live:
        found = open_data(
            data,
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            seed=config.seed,
            kept=None if run is None else run.path / SPLIT_FOLDER,
            progress=Counting(live, "images compared").count,
        )
    folders = found.folders
    counts = ", ".join(f"{len(split)} {split.name}" for split in folders.splits)
    view.note(f"data {data}: {len(folders.classes)} classes, {counts} images")
    if folders.valid_split_off:
        view.note(f"there is no valid folder: {len(folders.valid)} of the train images are kept aside for it")
    if folders.plan is not None and run is None:
        view.note(f"the run keeps which image is in which split: {SPLIT_FOLDER}/{SPLIT_FILE}")
    if folders.plan is not None and folders.plan.kept_together:
        view.note(
            f"images that show what another one shows: {folders.plan.kept_together}, always in the split of that one"
        )
    tell_findings(found.findings, view)
    return folders


def data_of(data: Path, folders: ImageFolders) -> Path:
    """What a job's record names as its data: of a list the folder of its images, as the run keeps the rest of it."""
    return (data if folders.plan is None else folders.plan.root).resolve()


def keep_split(run: Run, folders: ImageFolders) -> None:
    """Writes into a run which image is in which split, where the data's folders do not say it. Raises PlatformError."""
    if folders.plan is not None:
        folders.plan.write(run.path / SPLIT_FOLDER)


def channels_for(data: Path, run: Run) -> dict[str, Path]:
    """The folders that a job gets, by channel.

    Args:
        data: as of `data_of`.
        run: the one that kept the split: the job's, or the search's whose trial it is.
    """
    split = run.path / SPLIT_FOLDER
    return {"train": data, SPLIT_CHANNEL: split} if split.is_dir() else find_channels(data)
