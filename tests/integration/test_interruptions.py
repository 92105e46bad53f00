"""Kills and full disks at random moments cost time, never the result: it is, bit for bit, the undisturbed one's.

Here a few of them, always the same; `make endure` tries many more, of its own seed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests import search_program
from tests.interruptions import DEPLOY, Disturbed, run_disturbed, searched, timed, trained

from image_classifier.launch.runs import Run, list_runs
from image_classifier.vision.sample_data import make_sample_data

TIMES = int(os.environ.get("INTERRUPTIONS", "0"))  # of each command, a few in each run; 0: the sample
SEED = os.environ.get("INTERRUPTIONS_SEED", "1")
IN_A_RUN = 4
LARGEST_CHECKPOINT = 300e6  # bytes
SETTINGS = """
data = "{data}"

[train]
weights = "none"
image_size = 32
batch_size = 8
epochs = 3
augment = "light"
log_interval = 1
workers = 1
golden_samples = 2

[tune]
trials = 2
epochs = 2

[tune.search]
lr = {{ low = 0.005, high = 0.05, log = true }}
batch_size = [4, 8]
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a deploy.toml, with data of two classes: one image is unreadable, one is black."""
    data = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(data, num_classes=2, train_per_class=14, valid_per_class=0, test_per_class=3, size=40)
    first = min((data / "train").iterdir())
    (first / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (40, 40)).save(first / "black.png")
    return SETTINGS.format(data=data)


def folder_with(settings: str, folder: Path) -> Path:
    folder.mkdir()
    (folder / "deploy.toml").write_text(settings)
    return folder


def disturbed_as_straight(
    folder: Path, settings: str, what: Disturbed, result_of: Callable[[Run], object], times: int
) -> None:
    straight = folder_with(settings, folder / "straight")
    what = timed(straight, what)
    expected = result_of(list_runs(straight / "runs")[-1])
    shutil.rmtree(straight)
    number = 0
    while times > 0:
        place = folder_with(settings, folder / f"disturbed{number}")
        chance = random.Random(f"{SEED} {what.program.stem} {what.command} {number}")
        run, done = run_disturbed(place, what, chance, min(times, IN_A_RUN))
        print(f"{what.program.stem} {what.command} {number}: {done}")
        assert result_of(run) == expected, done
        shutil.rmtree(place)
        number, times = number + 1, times - len(done)


def test_a_training_ends_the_same_whatever_came_between(tmp_path: Path, settings: str) -> None:
    what = Disturbed(program=DEPLOY, command="train", largest_file=LARGEST_CHECKPOINT)
    disturbed_as_straight(tmp_path, settings, what, trained, TIMES or 2)


def test_a_search_proposes_judges_and_keeps_the_same_whatever_came_between(tmp_path: Path, settings: str) -> None:
    search = settings.replace("trials = 2", "trials = 7").replace("epochs = 2", "epochs = 3")
    what = Disturbed(program=Path(search_program.__file__), command="tune", largest_file=100_000)
    disturbed_as_straight(tmp_path, search, what, searched, TIMES or 4)


@pytest.mark.skipif(not TIMES, reason="takes long: make endure")
def test_a_search_of_real_trainings_ends_the_same_whatever_came_between(tmp_path: Path, settings: str) -> None:
    what = Disturbed(program=DEPLOY, command="tune", largest_file=LARGEST_CHECKPOINT)
    disturbed_as_straight(tmp_path, settings, what, searched, TIMES)
