"""A search of hyperparameters, from the command to the best model, beside one training as most tutorials do it.

    PYTHONPATH=code:. python benchmarks/bench_tuning.py [--data FOLDER] [--weights FILE] [--rounds 3] [--trials 8]

FOLDER holds train, valid and test; without it, pictures are generated. Without --weights all start from the same seeded
random weights, as in bench_training.py. In each round, in turns: the baseline (stock_training.py, one training); a
search of learning rate and batch size with fine_tune=head and nothing kept; one with fine_tune=full, of --full-trials
trials of --full-epochs epochs at --full-size pixels (0 trials leave it out). Pruning is off. The first search is
compared with the baseline, the second with the seconds that its trials' own epochs took. Times are of whole processes.
Writes benchmarks/results/tuning.md and tuning.json. --quick tries the script on a few generated pictures and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.bench_training import PASSES, generated, random_weights
from benchmarks.processes import ROOT, run
from benchmarks.record import RESULTS, write_result

from image_classifier.contract.outputs import BEST, HISTORY, RESULT
from image_classifier.contract.paths import MlPaths
from image_classifier.vision.sample_data import make_sample_data


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is searched with: the flags of `tune`, and how many trials of how many epochs."""

    name: str
    trials: int
    epochs: int
    flags: Sequence[str] = ()


def search(kind: Kind, data: Path, weights: Path, runs: Path) -> dict[str, float]:
    """Seconds of a search, seconds in the epochs of its trials, and the best trial's test accuracy."""
    words = [ROOT / "deploy.py", "--runs-dir", runs, "tune", "--data", data, "--weights", weights, *kind.flags]
    words += ["--fine-tune", kind.name, "--trials", kind.trials, "--epochs", kind.epochs, "--no-prune"]
    seconds, _ = run(words, {"CLASSIFIER_FEATURES": ""})
    (tuning,) = runs.glob("tune-*")
    trials = [MlPaths(base=folder) for folder in sorted((tuning / "trials").iterdir())]
    epochs = [row["seconds"] for paths in trials for row in HISTORY.read(paths.output_data)]
    best = trials[BEST.read_object(tuning)["trial"] - 1]
    if len(epochs) != kind.trials * kind.epochs or not (best.model / "manifest.json").is_file():
        raise RuntimeError(f"{tuning} is not whole")
    metrics = RESULT.read_object(best.output_data)["metrics"]
    return {"seconds": seconds, "epochs": sum(epochs), "test accuracy": metrics["test:accuracy"]}


def measure(
    data: Path, weights: Path, kinds: Sequence[Kind], folder: Path, *, rounds: int, epochs: int
) -> dict[str, list[dict[str, float]]]:
    """Name -> what each round found; "stock" is the baseline."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("stock", *(kind.name for kind in kinds))}
    for number in range(rounds):
        output = folder / "stock.pth"
        words = [str(Path(__file__).parent / "stock_training.py"), data, weights, epochs, output]
        seconds, text = run(words, {})
        found["stock"].append({"seconds": seconds, "test accuracy": json.loads(text.splitlines()[-1])["test"]})
        for kind in kinds:
            found[kind.name].append(search(kind, data, weights, folder / f"runs-{number}-{kind.name}"))
        print(number, {name: rows[-1] for name, rows in found.items()}, flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """Median (smallest .. largest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def table(found: dict[str, list[dict[str, float]]], kinds: Sequence[Kind]) -> list[str]:
    """A row a search."""
    lines = ["| search | time / the baseline's | time / its epochs' | test accuracy |", "|---|---|---|---|"]
    for kind in kinds:
        rows = found[kind.name]
        pairs = zip(rows, found["stock"], strict=True)
        cells = [
            spread([mine["seconds"] / stock["seconds"] for mine, stock in pairs]) if kind.name == "head" else "",
            spread([row["seconds"] / row["epochs"] for row in rows]) if kind.name == "full" else "",
            spread([row["test accuracy"] for row in rows]),
        ]
        what = " ".join(("fine_tune=" + kind.name, *kind.flags))
        lines.append(f"| {kind.trials} trials of {kind.epochs} epochs, {what} | {' | '.join(cells)} |")
    stock = spread([row["test accuracy"] for row in found["stock"]])
    return [*lines, f"| the baseline, one training | 1 | | {stock} |"]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--full-trials", type=int, default=3)
    parser.add_argument("--full-epochs", type=int, default=3)
    parser.add_argument("--full-size", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, rounds, epochs, trials = options.data, options.rounds, options.epochs, options.trials
        full = (options.full_trials, options.full_epochs, options.full_size)
        if options.quick:
            data, rounds, epochs, trials, full = folder / "data", 1, 1, 2, (0, 0, 0)
            make_sample_data(data, num_classes=2, train_per_class=12, valid_per_class=2, test_per_class=2, size=64)
        data = data or generated(folder / "data")
        weights = (options.weights or folder / "random.pth").resolve()
        if options.weights is None:
            random_weights(data, weights, passes=2 if options.quick else PASSES)
        kinds = [Kind(name="head", trials=trials, epochs=epochs, flags=("--image-size", "64") if options.quick else ())]
        if full[0]:
            kinds.append(Kind(name="full", trials=full[0], epochs=full[1], flags=("--image-size", str(full[2]))))
        found = measure(data, weights, kinds, folder, rounds=rounds, epochs=epochs)
        photos = {split: len(list((data / split).rglob("*.jpg"))) for split in ("train", "valid", "test")}
    text = table(found, kinds)
    if options.quick:
        print("\n".join(text))
        return
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    write_result(
        "tuning.md",
        [
            "# A search, from the command to the best model",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_tuning.py{given} --rounds {rounds} --trials {trials} "
            f"--epochs {epochs} --full-trials {full[0]} --full-epochs {full[1]} --full-size {full[2]}`",
            "",
            f"{', '.join(f'{count} {split}' for split, count in photos.items())} "
            f"{'photographs' if options.data else 'generated pictures'}, {os.cpu_count()} cores, "
            f"torch {torch.__version__}, Python {platform.python_version()}, starting from "
            f"{'given' if options.weights else 'seeded random'} weights, the same for all. Whole processes in turns; "
            f"each figure is a ratio of the same round, median (smallest .. largest) of {rounds}. The baseline is one "
            f"training of {epochs} epochs.",
            "",
            *text,
        ],
    )
    (RESULTS / "tuning.json").write_text(json.dumps({"photos": photos, "found": found}, indent=1))


if __name__ == "__main__":
    main()
