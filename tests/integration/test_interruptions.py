"""Kills and full disks at random moments cost time, never the result: it is, bit for bit, the undisturbed one's.

Here a few of them, always the same; `make endure` tries many more, of its own seed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from PIL import Image
from tests.interruptions import run_disturbed, searched, timed, trained

from image_classifier.launch.runs import list_runs
from image_classifier.vision.sample_data import make_sample_data

TIMES = int(os.environ.get("INTERRUPTIONS", "0"))  # of each command, in runs of a few; 0: the sample
SEED = os.environ.get("INTERRUPTIONS_SEED", "1")
IN_A_RUN = 3
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
trials = 3
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


@pytest.mark.parametrize(("command", "result_of", "sample"), [("train", trained, 3), ("tune", searched, 2)])
def test_interruptions_at_random_moments_change_no_result(
    tmp_path: Path, settings: str, command: str, result_of: object, sample: int
) -> None:
    assert callable(result_of)
    straight = folder_with(settings, tmp_path / "straight")
    seconds = timed(straight, command)
    expected = result_of(list_runs(straight / "runs")[-1])
    left, number = TIMES or sample, 0
    while left > 0:
        folder = folder_with(settings, tmp_path / f"disturbed{number}")
        run, done = run_disturbed(
            folder, command, random.Random(f"{SEED} {command} {number}"), min(left, IN_A_RUN), seconds
        )
        print(f"{command} {number}: {done}")
        assert result_of(run) == expected, f"{command} {number}: {done}"
        left, number = left - IN_A_RUN, number + 1
