"""What a training step costs the thread that launches it, besides the network: the loop and those who watch it.

    PYTHONPATH=code:. python benchmarks/bench_launch.py [--rounds 5] [--steps 1000] [--before FOLDER]

On a GPU the host launches a step while the device computes the one before: what the host does in Python is free as
long as it is done first. Here the network is replaced by one that does nothing, so that the rest is seen alone: our
loop, the learning rate, the sums, the progress lines, recorder, system sampler, rules and smdebug's files, at their
defaults, with statistics every 100 steps. The batch is always the same small one. CPU time is of the launching thread
until the last step, and of the whole process, whose other threads it shares the interpreter with, until all is written.

--before: the `code` folder of another version, which takes turns with this one. Writes benchmarks/results/launch.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.record import write_result
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoints, Progress, identity
from image_classifier.training.data import Batch, ImageDataset, Loader
from image_classifier.training.loop import train_epoch
from image_classifier.training.observe import Watched, make_hook
from image_classifier.training.optim import make_optimizer
from image_classifier.training.setup import Setup
from image_classifier.training.state import Training
from image_classifier.training.stop import StopFlag
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

CLASSES = 133
SIZE = 32  # pixels: what is done to them is the device's work
BATCH = 32
WARM_UP = 60  # steps: the many records of the first ones are over
STEP_MS = 11.0  # of a ResNet50 at batch 32 on a GPU such as an H100, for comparison only
WAYS = ("not watched", "our defaults")


class Nothing(nn.Module):
    """A network of one parameter, whose answers do not depend on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.new_ones((len(images), 1)))  # type: ignore[no-any-return]


class SameBatch(Loader):
    """A loader whose batches cost nothing."""

    batch: Batch
    steps = 0

    @property
    def num_steps(self) -> int:
        return self.steps

    def epoch(self, epoch: int = 0, *, first_step: int = 0, stop: StopFlag | None = None) -> Iterator[Batch]:
        for _ in range(first_step, self.steps):
            yield self.batch


def make_training(folder: Path, config: TrainConfig, steps: int) -> Training:
    """A training as a job makes one, but for the network and the pictures."""
    split = Split("train", folder, (folder / "none.jpg",) * BATCH, tuple(i % CLASSES for i in range(BATCH)))
    train = SameBatch(ImageDataset(split, Preprocessing.for_image_size(SIZE)), BATCH, workers=0)
    train.steps = steps
    images = torch.zeros((BATCH, SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    train.batch = Batch(images, torch.tensor(split.labels), torch.arange(BATCH), {}, {})
    model = Nothing()
    return Training(
        config=config,
        model=model,
        optimizer=make_optimizer(model, config),
        setup=Setup(device=torch.device("cpu"), device_name="CPU"),
        train=train,
        valid=train,
        bad=BadImages(0),
        checkpoints=Checkpoints(folder / "checkpoints", identity(config, "data")),
        stop=StopFlag(),
        progress=Progress(),
        on_epoch=lambda _: None,
    )


class Stopwatch(Observer):
    """Passes everything on to the observers of a job, and reads the clocks after WARM_UP steps and at the last."""

    def __init__(self, inner: Observer, steps: int) -> None:
        self._inner, self._last = inner, steps
        self._steps = 0
        self.read: list[tuple[float, float, float]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in {"read", "end_step", "phase"}:
            return super().__getattribute__(name)
        return getattr(self._inner, name)

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._inner.end_step(loss, logits, labels)
        self._steps += 1
        if self._steps in (WARM_UP, self._last):
            self.read.append((time.thread_time(), time.process_time(), time.perf_counter()))


def measure(way: str, steps: int) -> list[float]:
    """Milliseconds a step: CPU of the launching thread, CPU of the process, and by the clock on the wall."""
    torch.set_num_threads(1)
    watched = way != "not watched"
    config = TrainConfig(
        weights="none", image_size=SIZE, batch_size=BATCH, trace_steps=0, debug=watched, profile=watched
    )
    with TemporaryDirectory() as folder:
        training = make_training(Path(folder), config, steps)
        hook = make_hook(
            Watched(
                config=config,
                model=training.model,
                classes=tuple(str(index) for index in range(CLASSES)),
                images={},
                steps_per_epoch=steps,
                begun=time.time(),
                done={"train": 0, "eval": 0, "test": 0},
                setup=training.setup,
            ),
            MlPaths(base=Path(folder)),
            StopFlag(),
            on_hang=print,
        )
        stopwatch = Stopwatch(hook, steps)
        train_epoch(training, stopwatch)
        hook.close()
        first, (thread, _, wall) = stopwatch.read
        last = (thread, time.process_time(), wall)
    return [1000 * (after - before) / (steps - WARM_UP) for before, after in zip(first, last, strict=True)]


def run(code: Path, way: str, steps: int) -> list[float]:
    """`measure` in a process of its own, with the code of some version."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{root}", "SMDEBUG_LOG_LEVEL": "error"}
    command = [sys.executable, __file__, "--one", way, "--steps", str(steps)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, rounds: list[list[float]]) -> str:
    """Medians, and the smallest and largest round."""
    cells = [
        f"{statistics.median(column):.2f} ({min(column):.2f} .. {max(column):.2f})"
        for column in zip(*rounds, strict=True)
    ]
    share = statistics.median(each[0] for each in rounds) / STEP_MS
    return f"| {name} | {' | '.join(cells)} | {share:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--before", type=Path, help="the code folder of another version")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        logging.disable()
        print(json.dumps(measure(options.one, options.steps)))
        return
    versions = {"": Path(__file__).resolve().parents[1] / "code"}
    if options.before:
        versions = {", before": options.before.resolve(), ", now": versions[""]}
    found: dict[str, list[list[float]]] = {}
    for _ in range(options.rounds):
        for way in WAYS:
            for version, code in versions.items():
                found.setdefault(way + version, []).append(run(code, way, options.steps))
    text = [
        "# What a step costs the thread that launches it",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_launch.py --rounds {options.rounds} --steps {options.steps}"
        f"{' --before FOLDER' if options.before else ''}`",
        "",
        f"No network, batch {BATCH}, torch {torch.__version__}, Python {platform.python_version()}, one thread, "
        f"{options.rounds} rounds of {options.steps - WARM_UP} steps in processes of their own that took turns. "
        "Milliseconds a step, median (smallest .. largest round); the last column compares the launching thread's "
        f"with a step of {STEP_MS:g} ms.",
        "",
        "| | launching thread, CPU | whole process, CPU | wall | of a step |",
        "|---|---|---|---|---|",
        *(row(name, rounds) for name, rounds in found.items()),
    ]
    write_result("launch.md", text)


if __name__ == "__main__":
    main()
