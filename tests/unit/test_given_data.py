"""A process of its own looks at a job's images while the job imports torch; what it finds is what the job would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.head_training import make_pictures

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import DataError
from image_classifier.contract.paths import MlPaths
from image_classifier.training.given_data import GivenData

BEGINNING = """
import multiprocessing, sys, time
from pathlib import Path
from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import MlPaths
from image_classifier.training import given_data
from image_classifier.training.given_data import GivenData

given_data.usable_cores = lambda: 2
config, paths = TrainConfig(), MlPaths(base=Path(sys.argv[1]))
assert "torch" not in sys.modules
"""


@pytest.fixture
def paths(tmp_path: Path) -> MlPaths:
    """Of a job with images in its channels."""
    found = MlPaths(base=tmp_path / "ml")
    found.data.mkdir(parents=True)
    for split in make_pictures(tmp_path / "data").iterdir():
        found.channel(split.name).symlink_to(split, target_is_directory=True)
    return found


def run(paths: MlPaths, script: str) -> str:
    """What a process that has no torch prints."""
    command = [sys.executable, "-c", BEGINNING + script, str(paths.base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_other_process_finds_what_this_one_would(paths: MlPaths) -> None:
    script = """
given = GivenData(config, paths, ahead=True)
(child,) = multiprocessing.active_children()
given._look = lambda pause: 1 / 0  # not here
folders, contents = given.take()
assert not multiprocessing.active_children()
assert (folders, contents) == GivenData(config, paths).take()
print(len(folders.train), all(len(digest) == 64 for digest in contents["train"]))
"""
    folders, contents = GivenData(TrainConfig(), paths).take()
    assert set(contents) >= {"train", "valid"}
    assert run(paths, script) == f"{len(folders.train)} True\n"


def test_where_the_other_one_is_killed_this_one_looks(paths: MlPaths) -> None:
    script = """
class Slow(GivenData):
    def _send(self, pipe):
        time.sleep(60)

given = Slow(config, paths, ahead=True)
multiprocessing.active_children()[0].kill()
print(given.take() == GivenData(config, paths).take())
"""
    assert run(paths, script) == "True\n"


def test_what_is_wrong_is_said_by_the_job_itself(paths: MlPaths) -> None:
    paths.channel("train").unlink()
    script = """
from image_classifier.contract.errors import DataError
try:
    GivenData(config, paths, ahead=True).take()
except DataError as error:
    print(error.message)
"""
    with pytest.raises(DataError) as caught:
        GivenData(TrainConfig(), paths).take()
    assert run(paths, script) == f"{caught.value.message}\n"


def test_a_stop_ends_the_waiting_and_the_other_process(paths: MlPaths) -> None:
    script = """
class Slow(GivenData):
    def _look(self, pause):
        time.sleep(60)

def stop():
    raise KeyboardInterrupt

begun = time.monotonic()
given = Slow(config, paths, ahead=True)
try:
    given.take(stop)
except KeyboardInterrupt:
    print(multiprocessing.active_children(), time.monotonic() - begun < 30)
"""
    assert run(paths, script) == "[] True\n"


def test_a_process_that_nobody_waits_for_any_more_ends_by_itself(paths: MlPaths) -> None:
    """Its job was killed: nobody reads what it sends."""
    script = """
import os
class Slow(GivenData):
    def _look(self, pause):
        time.sleep(1)
        return bytes(10_000_000)  # more than a pipe holds

given = Slow(config, paths, ahead=True)
print(multiprocessing.active_children()[0].pid, flush=True)
os._exit(0)
"""
    pid = int(run(paths, script))
    for _ in range(600):
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("it is still there")


def test_with_torch_or_on_one_core_there_is_no_other_process(paths: MlPaths) -> None:
    assert torch.__name__ in sys.modules
    given = GivenData(TrainConfig(), paths, ahead=True)
    assert given._process is None
    assert given.take() == GivenData(TrainConfig(), paths).take()
    script = """
given_data.usable_cores = lambda: 1
given = GivenData(config, paths, ahead=True)
print(multiprocessing.active_children())
"""
    assert run(paths, script) == "[]\n"
