"""Training a head, from the command to the model: ours beside what most tutorials do, on the same starting weights.

    PYTHONPATH=code:. python benchmarks/bench_training.py [--data FOLDER] [--weights FILE] [--rounds 3] [--epochs 10]

FOLDER holds train, valid and test; without it, pictures are generated. Without --weights both start from the same
seeded random weights, their batch norms fitted to the pictures. In each round, in turns: the baseline
(stock_training.py); ours with nothing kept; ours again on the same pictures; ours without features (feature_views=0,
left out with --short). Times are of whole processes. Writes benchmarks/results/training.md and training.json. --quick
tries the script on a few generated pictures and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.record import RESULTS, write_result
from torch import nn

from image_classifier.contract.outputs import RESULT
from image_classifier.contract.paths import MlPaths
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.sample_data import make_sample_data

ROOT = Path(__file__).parents[1]
WAYS = {
    "stock": "as in tutorials",
    "first": "ours",
    "second": "ours, a second job on the same pictures",
    "images": "ours, feature_views=0",
}
PASSES = 20  # of these photographs through the network: the running statistics have settled
SPREAD_PHOTOS = 24  # on which the random weights' batch norms are fitted


class Trainings:
    """One training of each way; each is a process of its own, and leaves a model."""

    def __init__(self, data: Path, weights: Path, epochs: int, folder: Path, flags: Sequence[str]) -> None:
        self._data, self._weights, self._epochs, self._folder, self._flags = data, weights, epochs, folder, flags

    def stock(self, number: int) -> tuple[float, dict[str, float]]:
        """Seconds, and the accuracies."""
        output = self._folder / f"stock-{number}.pth"
        words = [str(Path(__file__).parent / "stock_training.py"), self._data, self._weights, self._epochs, output]
        seconds, text = run(words, {})
        output.unlink()
        return seconds, json.loads(text.splitlines()[-1])

    def first(self, number: int) -> tuple[float, dict[str, float]]:
        return self._ours(number, "first", [])

    def second(self, number: int) -> tuple[float, dict[str, float]]:
        return self._ours(number, "second", [])

    def images(self, number: int) -> tuple[float, dict[str, float]]:
        return self._ours(number, "images", ["--feature-views", "0"])

    def _ours(self, number: int, name: str, flags: Sequence[str]) -> tuple[float, dict[str, float]]:
        runs = self._folder / f"runs-{number}"  # with a store of its own
        words = [ROOT / "deploy.py", "--runs-dir", runs, "train", "--name", name, "--data", self._data]
        words += ["--weights", self._weights, "--fine-tune", "head", "--epochs", self._epochs, *flags, *self._flags]
        seconds, _ = run(words, {"CLASSIFIER_FEATURES": ""})
        (job,) = runs.glob(f"train-*-{name}")
        if not (job / "model.tar.gz").is_file():
            raise RuntimeError(f"{job} holds no model")
        metrics = RESULT.read_object(MlPaths(base=job).output_data)["metrics"]
        return seconds, {split: metrics[f"{split}:accuracy"] for split in ("validation", "test")}


def run(words: Sequence[object], changes: dict[str, str]) -> tuple[float, str]:
    """Seconds of a Python program, from its start to its end, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code"), **changes}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=ROOT, check=False, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return seconds, done.stdout


def random_weights(data: Path, path: Path, *, passes: int = PASSES) -> None:
    """Seeded random weights whose batch norms know pictures: features that differ from picture to picture."""
    torch.manual_seed(1)
    model = build_model(1000).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
    photos = sorted((data / "train").rglob("*.jpg"))
    photos = photos[:: max(1, len(photos) // SPREAD_PHOTOS)]
    preprocessing = Preprocessing.for_image_size(128)
    with torch.no_grad():
        for _ in range(passes):
            model(torch.stack([torch.from_numpy(load(photo, preprocessing)) for photo in photos]))
    torch.save(model.state_dict(), path)


def generated(folder: Path) -> Path:
    """Pictures for who names none: as many as a small set of photographs."""
    make_sample_data(folder, num_classes=5, train_per_class=100, valid_per_class=20, test_per_class=20, size=320)
    return folder


def measure(trainings: Trainings, ways: Sequence[str], rounds: int) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """Way -> seconds and accuracies of each round."""
    found: dict[str, list[tuple[float, dict[str, float]]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            train: Callable[[int], tuple[float, dict[str, float]]] = getattr(trainings, way)
            found[way].append(train(number))
            print(number, way, found[way][-1], flush=True)
    return found


def table_row(way: str, found: dict[str, list[tuple[float, dict[str, float]]]]) -> str:
    """Ratios to the baseline of the same round, and accuracies."""
    ratios = [stock[0] / mine[0] for mine, stock in zip(found[way], found["stock"], strict=True)]
    accuracies = [
        " .. ".join(f"{value:.2f}" for value in sorted({each[1][split] for each in found[way]}))
        for split in ("validation", "test")
    ]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} .. {max(ratios):.1f})"
    return f"| {WAYS[way]} | {spread} | {' | '.join(accuracies)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--short", action="store_true", help="leave out ours without features")
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    options, flags = parser.parse_known_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, rounds, epochs = options.data, options.rounds, options.epochs
        if options.quick:
            data, rounds, epochs = folder / "data", 1, 2
            make_sample_data(data, num_classes=2, train_per_class=6, valid_per_class=2, test_per_class=2, size=64)
        data = data or generated(folder / "data")
        weights = options.weights or folder / "random.pth"
        if options.weights is None:
            random_weights(data, weights, passes=2 if options.quick else PASSES)
        ways = [way for way in WAYS if way != "images" or not options.short]
        found = measure(Trainings(data, weights.resolve(), epochs, folder, flags), ways, rounds)
        photos = {split: len(list((data / split).rglob("*.jpg"))) for split in ("train", "valid", "test")}
    if options.quick:
        return
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    command = f"bench_training.py{given} --rounds {rounds}"
    kind = "photographs" if options.data else "generated pictures"
    text = [
        "# Training a head, from the command to the model",
        "",
        f"`PYTHONPATH=code:. python benchmarks/{command} --epochs {epochs}`",
        "",
        f"{', '.join(f'{count} {split}' for split, count in photos.items())} {kind}, {epochs} epochs, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}, starting from "
        f"{'given' if options.weights else 'seeded random'} weights, the same for all. Whole processes in turns; speed "
        f"is how many times faster than the baseline of the same round, median (smallest .. largest) of {rounds}.",
        "",
        "| training | speed | validation accuracy | test accuracy |",
        "|---|---|---|---|",
        *(table_row(way, found) for way in ways),
    ]
    write_result("training.md", text)
    (RESULTS / "training.json").write_text(json.dumps({"photos": photos, "epochs": epochs, "found": found}, indent=1))


if __name__ == "__main__":
    main()
