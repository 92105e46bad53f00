"""Feeding the accelerator: our loader against the pipeline everybody writes, ImageFolder and torchvision's transforms.

    PYTHONPATH=code:. python benchmarks/bench_data.py [--data FOLDER] [--rounds 5] [--workers 0 2] [--pace 160]

Generated photographs, 500 x 375 and 4000 x 3000 pixels, as JPEG files in the page cache, and those of FOLDER/train as
they are. In each round every pipeline starts fresh; they take turns epoch by epoch. Each epoch is read as fast as it
goes, and then once more for a consumer that takes so long over a batch as an accelerator of `--pace` images a second
would: a sleep, in which the loading processes have the machine to themselves. Writes benchmarks/results/data.md: ratios
only.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
import psutil
import torch
from benchmarks.record import processor, write_result
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from image_classifier.training.cache import PixelCache
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.stop import end_workers
from image_classifier.vision.folders import scan
from image_classifier.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from image_classifier.vision.sample_data import make_sample_data

IMAGE_SIZE = 224
LATER_EPOCHS = 2
CACHE_BYTES = 2 * 1024**3
NOISE = 6.0  # levels: sensor noise, which is what makes a photograph's file large
BASELINE = "ImageFolder"
CPU = torch.device("cpu")

Epoch = Callable[[int], Iterator[object]]  # number -> its batches, as the network sees them


@dataclass(frozen=True, kw_only=True)
class Photos:
    """A data set of the benchmark."""

    name: str
    width: int
    height: int
    count: int
    batch_size: int


SETS = (
    Photos(name="500 x 375", width=500, height=375, count=256, batch_size=32),
    Photos(name="4000 x 3000", width=4000, height=3000, count=32, batch_size=8),
)


@dataclass
class Measured:
    """One value a round and epoch of one pipeline; `first` of epoch 1, `later` of the following."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)

    def add(self, epoch: int, value: float) -> None:
        (self.first if epoch == 1 else self.later).append(value)


@dataclass
class Pipeline:
    """What was measured of one: seconds and processor seconds an epoch, and the share of it spent waiting."""

    seconds: Measured = field(default_factory=Measured)
    cpu_seconds: Measured = field(default_factory=Measured)
    waiting: Measured = field(default_factory=Measured)


def make_photos(root: Path, photos: Photos) -> None:
    """Sample pictures, enlarged, each with noise of its own."""
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_sample_data(base, train_per_class=2, valid_per_class=0, test_per_class=0, size=1024)
        scenes = sorted(base.glob("train/*/*.jpg"))
        for number in range(photos.count):
            source = scenes[number % len(scenes)]
            picture = Image.open(source).resize((photos.width, photos.height), Image.Resampling.BICUBIC)
            noise = rng.normal(0, NOISE, (photos.height, photos.width, 3)).astype(np.float32)
            noisy = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
            path = root / "train" / source.parent.name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path, quality=90)


def given_photos(data: Path, root: Path) -> Photos:
    """Links to the photographs of a folder, and what they are: the width and height that half of them exceed."""
    (root / "train").parent.mkdir(parents=True)
    (root / "train").symlink_to((data / "train").resolve())
    sizes = [Image.open(path).size for path in (root / "train").glob("*/*")]
    width, height = (int(statistics.median(sides)) for sides in zip(*sizes, strict=True))
    name = f"of DATA, {width} x {height} in the middle"
    return Photos(name=name, width=width, height=height, count=len(sizes), batch_size=32)


def everybodys(root: Path, photos: Photos, workers: int) -> Epoch:
    """The training pipeline of torchvision's tutorials; its processes are kept between epochs, as ours are."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    folder = ImageFolder(str(root / "train"), transform)
    loader: Iterable[object] = DataLoader(
        folder, photos.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda _: iter(loader)


def ours(root: Path, photos: Photos, workers: int, *, cached: bool, normalised: bool) -> Epoch:
    """Our loader. `normalised`: what the device does to a batch, normalising it, is done here as well."""
    split = scan({"train": root / "train"}, valid_fraction=0.01, seed=0).train
    dataset = ImageDataset(
        split,
        Preprocessing.for_image_size(IMAGE_SIZE),
        augment="standard",
        cache=PixelCache(len(split), CACHE_BYTES, processes=workers > 0) if cached else None,
    )
    loader = Loader(dataset, photos.batch_size, workers=workers, shuffle_seed=0)
    if not normalised:
        return loader.epoch
    return lambda epoch: (loader.on_device(batch, CPU) for batch in loader.epoch(epoch))


def pipelines(root: Path, photos: Photos, workers: int, *, normalised: bool) -> dict[str, Epoch]:
    """All of them, fresh."""
    return {
        BASELINE: everybodys(root, photos, workers),
        "ours, cache=none": ours(root, photos, workers, cached=False, normalised=normalised),
        "ours, cache=decoded": ours(root, photos, workers, cached=True, normalised=normalised),
    }


def measure(root: Path, photos: Photos, workers: int, rounds: int, pace: float) -> dict[str, Pipeline]:
    """Every pipeline's measurements, by its name."""
    results: dict[str, Pipeline] = {}
    for _ in range(rounds):
        for paced in (False, True):
            for epoch_number, (name, epoch) in turns(pipelines(root, photos, workers, normalised=not paced)):
                result = results.setdefault(name, Pipeline())
                if paced:
                    result.waiting.add(epoch_number, waiting_share(epoch(epoch_number), photos.batch_size / pace))
                else:
                    seconds, cpu_seconds = drain(epoch(epoch_number))
                    result.seconds.add(epoch_number, seconds)
                    result.cpu_seconds.add(epoch_number, cpu_seconds)
    return results


def turns(fresh: Mapping[str, Epoch]) -> Iterator[tuple[int, tuple[str, Epoch]]]:
    """Epoch 1 of each, epoch 2 of each, ..."""
    for epoch_number in range(1, 2 + LATER_EPOCHS):
        for item in fresh.items():
            yield epoch_number, item


def drain(batches: Iterator[object]) -> tuple[float, float]:
    """Reads an epoch as fast as it goes: seconds, and seconds of all processors."""
    started, busy = time.perf_counter(), cpu_seconds()
    for _ in batches:
        pass
    return time.perf_counter() - started, cpu_seconds() - busy


def cpu_seconds() -> float:
    """Of this process and of its loading processes."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children())]
    return sum(each.user + each.system for each in times)


def waiting_share(batches: Iterator[object], step_s: float) -> float:
    """The share of an epoch in which a consumer of so many seconds a batch has nothing to do."""
    waited, steps = 0.0, 0
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return waited / (waited + steps * step_s)
        waited += time.perf_counter() - started
        steps += 1
        time.sleep(step_s)


def rows(photos: Photos, workers: int, results: Mapping[str, Pipeline]) -> list[str]:
    """The lines of the table that belong to one data set and number of processes."""
    plain = results[BASELINE]
    return [
        f"| {photos.name} | {workers} | {name} "
        f"| {times(plain.seconds.first, each.seconds.first)} | {times(plain.seconds.later, each.seconds.later)} "
        f"| {times(each.cpu_seconds.first, plain.cpu_seconds.first)} "
        f"| {times(each.cpu_seconds.later, plain.cpu_seconds.later)} "
        f"| {shares(each.waiting.first)} | {shares(each.waiting.later)} |"
        for name, each in results.items()
    ]


def times(ones: Sequence[float], others: Sequence[float]) -> str:
    """one / other in pairs that were measured in the same round: median (smallest .. largest)."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


def shares(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0%} ({min(values):.0%} .. {max(values):.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/CLASS/*.jpg")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--pace", type=float, default=160.0, help="images a second of the accelerator")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the two pipelines' threads would only fight over the cores
    table: list[str] = []
    with TemporaryDirectory() as folder:
        given = [options.data] if options.data else []
        for made in (*SETS, *given):
            root = Path(folder) / f"{len(table)}"
            photos = given_photos(made, root) if isinstance(made, Path) else made
            if isinstance(made, Photos):
                make_photos(root, photos)
            for workers in options.workers:
                results = measure(root, photos, workers, options.rounds, options.pace)
                table += rows(photos, workers, results)
                end_workers()  # ours ignore SIGTERM: this process would wait for them at its end
    text = [
        "# Feeding the accelerator",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_data.py{' --data DATA' * bool(options.data)} "
        f"--rounds {options.rounds} --workers "
        f"{' '.join(map(str, options.workers))} --pace {options.pace:g}`",
        "",
        f"Training batches of {IMAGE_SIZE} x {IMAGE_SIZE}, {os.cpu_count()} cores ({processor()}), "
        f"torch {torch.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}. {BASELINE}: "
        "RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize and a DataLoader with as many processes, kept "
        "between epochs. Speed and processor time an image are ratios to it, median (smallest .. largest) of "
        f"{options.rounds} rounds that took turns epoch by epoch. "
        "Normalising, which the device does for ours, is counted for speed and processor time.",
        "",
        f"Waiting: the share of an epoch in which an accelerator of {options.pace:g} images a second has no batch, the "
        "epoch's start included. There was no GPU: a sleep stands for its step, normalising included. A machine with a "
        "faster one has more cores to load images with.",
        "",
        "| photographs | processes | pipeline | speed, first epoch | speed, later | processor time, first epoch "
        "| processor time, later | waiting, first epoch | waiting, later |",
        "|---|---|---|---|---|---|---|---|---|",
        *table,
    ]
    write_result("data.md", text)


if __name__ == "__main__":
    main()
