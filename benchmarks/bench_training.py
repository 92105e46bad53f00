"""Trainings from the command to the model: ours beside what tutorials and experts do, on the same starting weights.

    PYTHONPATH=code:. python benchmarks/bench_training.py [--data FOLDER] [--weights FILE] [--rounds 2] [--photos 40]
        [--parts head full] [--epochs 10] [--stock-epochs 0] [--full-epochs 2] [--full-size 224] [--full-ways grows]
        [--full-start drawn] [--allocator system]

FOLDER holds train, valid and test; without it, pictures are generated. Of each class of a split --photos are used, 0
for all. With --stock-epochs N the baseline of a head makes N of its epochs, and the others count as much as the last
of these: all do the same work. Without --weights all start from the same seeded random weights, their batch norms
fitted to the pictures: features that differ, but a start from which the whole network's gradients explode. With
--full-start drawn the whole network starts as weights=none draws it, each block an identity, the same for all.
In each round, in turns. Of a head: the baseline (stock_training.py); ours with nothing kept; ours again on the same
pictures; ours without features (feature_views=0, left out with --short). Of the whole network, with the same size,
batch and learning rate: competent_training.py; ours; ours with crops that grow, and with smaller ones (left out with
--short); the step of either alone, on a batch that lies in memory; with --full-ways the competent one and those that
are named. Times are of whole processes, all with the same allocator. Writes benchmarks/results/training.md and .json,
or with `--parts full` training_full.md and .json, with --full-ways and --full-start under their names. --quick tries
the script on a few generated pictures and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.full_trainings import ALLOCATORS, FULL_WAYS, FullTrainings, Measured, full_table
from benchmarks.processes import ROOT, run
from benchmarks.record import RESULTS, processor, write_result
from torch import nn

from image_classifier.contract.outputs import RESULT
from image_classifier.contract.paths import MlPaths
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.sample_data import make_sample_data

WAYS = {
    "stock": "as in tutorials",
    "first": "ours",
    "second": "ours, a second job on the same pictures",
    "images": "ours, feature_views=0",
}
STARTS = {"fitted": "", "drawn": "It starts as weights=none draws it: what a block adds is zero at first. "}
PASSES = 20  # of these photographs through the network: the running statistics have settled
SPREAD_PHOTOS = 24  # on which the random weights' batch norms are fitted


class Trainings:
    """One training of each way; each is a process of its own, and leaves a model."""

    def __init__(self, data: Path, weights: Path, epochs: int, folder: Path, allocator: str, *, made: int = 0) -> None:
        self._data, self._weights, self._epochs, self._folder = data, weights, epochs, folder
        self._made = made or epochs  # of the baseline's epochs
        self._allocator = ALLOCATORS[allocator]

    def stock(self, number: int) -> Measured:
        """Seconds, and the accuracies."""
        output = self._folder / f"stock-{number}.pth"
        words = [str(Path(__file__).parent / "stock_training.py"), self._data, self._weights, self._made, output]
        seconds, text = run(words, self._allocator)
        output.unlink()
        told = json.loads(text.splitlines()[-1])
        last = told.pop("epochs")[-1]
        if self._made < self._epochs:
            return seconds + (self._epochs - self._made) * last, {}
        return seconds, told

    def first(self, number: int) -> Measured:
        return self._ours(number, "first", [])

    def second(self, number: int) -> Measured:
        return self._ours(number, "second", [])

    def images(self, number: int) -> Measured:
        return self._ours(number, "images", ["--feature-views", "0"])

    def _ours(self, number: int, name: str, flags: Sequence[str]) -> Measured:
        runs = self._folder / f"runs-{number}"  # with a store of its own
        words = [ROOT / "deploy.py", "--runs-dir", runs, "train", "--name", name, "--data", self._data]
        words += ["--weights", self._weights, "--fine-tune", "head", "--epochs", self._epochs, *flags]
        seconds, _ = run(words, {"CLASSIFIER_FEATURES": ""} | self._allocator)
        (job,) = runs.glob(f"train-*-{name}")
        if not (job / "model.tar.gz").is_file():
            raise RuntimeError(f"{job} holds no model")
        metrics = RESULT.read_object(MlPaths(base=job).output_data)["metrics"]
        return seconds, {split: metrics[f"{split}:accuracy"] for split in ("validation", "test")}


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


def drawn_weights(path: Path) -> None:
    """Seeded random weights as a job with weights=none begins with: what a block adds is zero at first."""
    torch.manual_seed(1)
    torch.save(build_model(1000).state_dict(), path)


def generated(folder: Path) -> Path:
    """Pictures for who names none: as many as a small set of photographs."""
    make_sample_data(folder, num_classes=5, train_per_class=100, valid_per_class=20, test_per_class=20, size=320)
    return folder


def some(data: Path, folder: Path, count: int) -> Path:
    """`count` pictures of each class and split, as links."""
    for path in sorted(data.glob("*/*/*")):
        target = folder / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if len(list(target.parent.iterdir())) < count:
            target.symlink_to(path.resolve())
    return folder


def measure(trainings: Trainings | FullTrainings, ways: Sequence[str], rounds: int) -> dict[str, list[Measured]]:
    """Way -> seconds and what was told, of each round."""
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            train: Callable[[int], Measured] = getattr(trainings, way)
            found[way].append(train(number))
            print(number, way, found[way][-1], flush=True)
    return found


def table_row(way: str, found: dict[str, list[Measured]]) -> str:
    """Ratios to the baseline of the same round, and accuracies."""
    ratios = [stock[0] / mine[0] for mine, stock in zip(found[way], found["stock"], strict=True)]
    accuracies = [
        " .. ".join(f"{value:.2f}" for value in sorted({each[1][split] for each in found[way] if split in each[1]}))
        for split in ("validation", "test")
    ]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} .. {max(ratios):.1f})"
    return f"| {WAYS[way]} | {spread} | {' | '.join(accuracies)} |"


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--photos", type=int, default=40, help="of a class and split, 0 for all")
    parser.add_argument("--parts", nargs="+", choices=("head", "full"), default=["head", "full"])
    parser.add_argument("--epochs", type=int, default=10, help="of a head")
    parser.add_argument("--stock-epochs", type=int, default=0, help="of the baseline, that are made; 0 for all")
    parser.add_argument("--short", action="store_true", help="leave out a head without features, and smaller crops")
    parser.add_argument("--full-epochs", type=int, default=2, help="of the whole network")
    parser.add_argument("--full-size", type=int, default=224, help="side of the pictures for the whole network")
    parser.add_argument("--full-batch", type=int, default=32)
    parser.add_argument("--full-lr", type=float, default=0.01)
    parser.add_argument(
        "--full-ways", nargs="+", choices=list(FULL_WAYS), help="of training it, beside the competent one"
    )
    parser.add_argument("--full-start", choices=list(STARTS), default="fitted", help="its weights")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loading processes of the competent one")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="system")
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.photos, options.epochs = 1, 0, 2
        options.stock_epochs = 1
        options.full_size, options.full_batch, options.workers, options.full_start = 64, 4, 1, "drawn"
    return options


def head_part(found: dict[str, list[Measured]], epochs: int, made: int) -> list[str]:
    """What is said of the head. `made`: of the baseline's epochs; 0 for all."""
    shorter = f" It made {made} of its epochs; each that is left counts as much as the last." if made else ""
    return [
        "",
        f"## A head, {epochs} epochs",
        "",
        f"Speed is how many times faster than the baseline of the same round.{shorter}",
        "",
        "| training | speed | validation accuracy | test accuracy |",
        "|---|---|---|---|",
        *(table_row(way, found) for way in found),
    ]


def full_part(found: dict[str, list[Measured]], options: argparse.Namespace) -> list[str]:
    """What is said of the whole network."""
    return [
        "",
        f"## The whole network, {options.full_epochs} epochs at {options.full_size} pixels, "
        f"batch {options.full_batch}, lr {options.full_lr:g}",
        "",
        f"{STARTS[options.full_start]}The competent one has {options.workers} loading processes. Images a second are "
        "those of the fastest epoch. "
        "Each round has another seed, the same for all; accuracies are means (smallest .. largest), and differences "
        "those with the same seed.",
        "",
        *full_table(found),
    ]


def main() -> None:
    options = asked()
    found: dict[str, dict[str, list[Measured]]] = {}
    with TemporaryDirectory() as temporary:
        folder, data = Path(temporary), options.data
        if options.quick:
            data = folder / "data"
            make_sample_data(data, num_classes=2, train_per_class=6, valid_per_class=2, test_per_class=2, size=64)
        data = data or generated(folder / "data")
        data = some(data, folder / "some", options.photos) if options.photos else data
        weights = (options.weights or folder / "random.pth").resolve()
        if options.weights is None:
            random_weights(data, weights, passes=2 if options.quick else PASSES)
        if "head" in options.parts:
            ways = [way for way in WAYS if way != "images" or not options.short]
            made = options.stock_epochs
            heads = Trainings(data, weights, options.epochs, folder, options.allocator, made=made)
            found["head"] = measure(heads, ways, options.rounds)
        if "full" in options.parts:
            start = weights
            if options.full_start == "drawn":
                start = folder / "drawn.pth"
                drawn_weights(start)
            whole = FullTrainings(
                data=data,
                weights=start,
                folder=folder,
                epochs=options.full_epochs,
                size=options.full_size,
                batch=options.full_batch,
                lr=options.full_lr,
                workers=options.workers,
                allocator=options.allocator,
            )
            chosen = options.full_ways or [way for way in FULL_WAYS if way != "smaller" or not options.short]
            ways = [way for way in FULL_WAYS if way in ("competent", *chosen)]
            found["full"] = measure(whole, ways, options.rounds)
        photos = {split: len(list((data / split).glob("*/*"))) for split in ("train", "valid", "test")}
    if not options.quick:
        publish(options, photos, found)


def publish(options: argparse.Namespace, photos: dict[str, int], found: dict[str, dict[str, list[Measured]]]) -> None:
    """Writes the results."""
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    numbers = "".join(
        f" --{name.replace('_', '-')} {getattr(options, name)}"
        for name in (
            "rounds",
            "photos",
            "epochs",
            "stock_epochs",
            "full_epochs",
            "full_size",
            "full_batch",
            "full_lr",
            "allocator",
        )
        if "full" in options.parts or not name.startswith("full")
    )
    numbers += f" --full-ways {' '.join(options.full_ways)}" if options.full_ways else ""
    numbers += f" --full-start {options.full_start}" if options.full_start != "fitted" else ""
    numbers += " --short" if options.short else ""
    text = [
        "# Trainings, from the command to the model",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_training.py{given} --parts {' '.join(found)}{numbers}`",
        "",
        f"{', '.join(f'{count} {split}' for split, count in photos.items())} "
        f"{'photographs' if options.data else 'generated pictures'}, {os.cpu_count()} cores ({processor()}), torch "
        f"{torch.__version__}, Python {platform.python_version()}, starting from "
        f"{'given' if options.weights else 'seeded random'} weights, the same for all. Whole processes in turns; "
        f"median (smallest .. largest) of {options.rounds} rounds.",
    ]
    if "head" in found:
        text += head_part(found["head"], options.epochs, options.stock_epochs)
    if "full" in found:
        text += full_part(found["full"], options)
    start = [options.full_start] * (options.full_start != "fitted")
    name = "training" if "head" in found else "_".join(["training", *(options.full_ways or ["full"]), *start])
    write_result(f"{name}.md", text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"photos": photos, "found": found}, indent=1))


if __name__ == "__main__":
    main()
