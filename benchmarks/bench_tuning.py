"""A search of hyperparameters, from the command to the best model, beside one training as most tutorials do it.

    PYTHONPATH=code:. python benchmarks/bench_tuning.py [--data FOLDER] [--weights FILE] [--parts head full]
        [--rounds 2] [--trials 8] [--epochs 10] [--stock-epochs 0] [--full-trials 3] [--full-epochs 3] [--full-size 128]

FOLDER holds train, valid and test; without it, pictures are generated. Without --weights all start from the same seeded
random weights, as in bench_training.py. `head`: in each round, in turns, the baseline (stock_training.py, one training)
and a search of learning rate and batch size with fine_tune=head and nothing kept, which are compared. With
--stock-epochs N the baseline makes N of its epochs, and the others count as much as the last of these: all do the same
work. `full`: a search with fine_tune=full, compared with the seconds that its trials' own epochs took, training and
validation. Pruning is off. Times are of whole processes. Writes benchmarks/results/tuning.md for `head` and
tuning_full.md for `full`, and the same as .json. --quick tries the script on a few generated pictures and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.bench_training import PASSES, generated, random_weights
from benchmarks.processes import ROOT, run
from benchmarks.record import RESULTS, processor, write_result

from image_classifier.contract.outputs import BEST, HISTORY, RESULT, STEPS
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
    epochs = sum(len(HISTORY.read(paths.output_data)) for paths in trials)
    steps = [row for paths in trials for row in STEPS.read(paths.output_data) if row["mode"] in ("train", "eval")]
    best = trials[BEST.read_object(tuning)["trial"] - 1]
    if epochs != kind.trials * kind.epochs or not (best.model / "manifest.json").is_file():
        raise RuntimeError(f"{tuning} is not whole")
    metrics = RESULT.read_object(best.output_data)["metrics"]
    return {
        "seconds": seconds,
        "epochs": sum(row["seconds"] for row in steps),
        "test accuracy": metrics["test:accuracy"],
    }


def stock(data: Path, weights: Path, epochs: int, made: int, output: Path) -> dict[str, float]:
    """Seconds of the baseline: `made` of its epochs, and the last of them for each that is left."""
    words = [str(Path(__file__).parent / "stock_training.py"), data, weights, made, output]
    seconds, text = run(words, {})
    told = json.loads(text.splitlines()[-1])
    whole = seconds + (epochs - made) * told["epochs"][-1]
    return {"seconds": whole, "made": seconds, "test accuracy": told["test"] if made == epochs else float("nan")}


def spread(values: Sequence[float]) -> str:
    """Median (smallest .. largest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def head_table(found: dict[str, list[dict[str, float]]], kind: Kind, made: int) -> list[str]:
    """The search beside the baseline of the same round."""
    rows = found["head"]
    ratios = [mine["seconds"] / stock["seconds"] for mine, stock in zip(rows, found["stock"], strict=True)]
    accuracy = spread([row["test accuracy"] for row in found["stock"]]) if made == kind.epochs else ""
    return [
        "| what | time / the baseline's | test accuracy |",
        "|---|---|---|",
        f"| {kind.trials} trials of {kind.epochs} epochs, fine_tune=head | {spread(ratios)} | "
        f"{spread([row['test accuracy'] for row in rows])} |",
        f"| the baseline, one training | 1 | {accuracy} |",
    ]


def full_table(rows: list[dict[str, float]], kind: Kind) -> list[str]:
    """The search beside its own epochs."""
    return [
        "| what | time / its epochs' | test accuracy |",
        "|---|---|---|",
        f"| {kind.trials} trials of {kind.epochs} epochs, fine_tune=full {' '.join(kind.flags)} | "
        f"{spread([row['seconds'] / row['epochs'] for row in rows])} | "
        f"{spread([row['test accuracy'] for row in rows])} |",
    ]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--parts", nargs="+", choices=("head", "full"), default=["head", "full"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--stock-epochs", type=int, default=0, help="of the baseline, that are made; 0 for all")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--full-trials", type=int, default=3)
    parser.add_argument("--full-epochs", type=int, default=3)
    parser.add_argument("--full-size", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    options = parser.parse_args()
    if options.quick:
        options.parts, options.rounds, options.epochs, options.trials = ["head"], 1, 2, 2
        options.stock_epochs = 1
    return options


def main() -> None:
    options = parsed()
    made = options.stock_epochs or options.epochs
    flags = ("--image-size", "64") if options.quick else ()
    head = Kind(name="head", trials=options.trials, epochs=options.epochs, flags=flags)
    full_flags = ("--image-size", str(options.full_size))
    full = Kind(name="full", trials=options.full_trials, epochs=options.full_epochs, flags=full_flags)
    found: dict[str, list[dict[str, float]]] = {"stock": [], "head": [], "full": []}
    with TemporaryDirectory() as temporary:
        folder, data = Path(temporary), options.data
        if options.quick:
            data = folder / "data"
            make_sample_data(data, num_classes=2, train_per_class=12, valid_per_class=2, test_per_class=2, size=64)
        data = data or generated(folder / "data")
        weights = (options.weights or folder / "random.pth").resolve()
        if options.weights is None:
            random_weights(data, weights, passes=2 if options.quick else PASSES)
        for number in range(options.rounds):
            if "head" in options.parts:
                found["stock"].append(stock(data, weights, options.epochs, made, folder / "stock.pth"))
            for kind in (head, full):
                if kind.name in options.parts:
                    runs = folder / f"runs-{number}-{kind.name}"
                    found[kind.name].append(search(kind, data, weights, runs))
                    shutil.rmtree(runs)
            print(number, {name: rows[-1] for name, rows in found.items() if rows}, flush=True)
        photos = {split: len(list((data / split).glob("*/*"))) for split in ("train", "valid", "test")}
    if options.quick:
        print("\n".join(head_table(found, head, made)))
        return
    if "head" in options.parts:
        words = f"--parts head --rounds {options.rounds} --trials {head.trials} --epochs {head.epochs}"
        rest = f" The baseline made {made} of them; each that is left counts as much as the last." * (
            made < head.epochs
        )
        said = f"The baseline is one training of {head.epochs} epochs.{rest}"
        rows = {name: found[name] for name in ("stock", "head")}
        words = f"{words} --stock-epochs {made}"
        table = head_table(found, head, made)
        publish("tuning", options, photos=photos, words=words, said=said, table=table, found=rows)
    if "full" in options.parts:
        words = f"--parts full --rounds {options.rounds} --full-trials {full.trials} --full-epochs {full.epochs}"
        said = "The sum of its epochs is that of all trials' training and validation."
        words = f"{words} --full-size {options.full_size}"
        table, rows = full_table(found["full"], full), {"full": found["full"]}
        publish("tuning_full", options, photos=photos, words=words, said=said, table=table, found=rows)


def publish(
    name: str,
    options: argparse.Namespace,
    *,
    photos: dict[str, int],
    words: str,
    said: str,
    table: list[str],
    found: dict[str, list[dict[str, float]]],
) -> None:
    """Writes a page of results."""
    given = "".join(f" --{option} {option.upper()}" for option in ("data", "weights") if getattr(options, option))
    write_result(
        f"{name}.md",
        [
            "# A search, from the command to the best model",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_tuning.py{given} {words}`",
            "",
            f"{', '.join(f'{count} {split}' for split, count in photos.items())} "
            f"{'photographs' if options.data else 'generated pictures'}, {os.cpu_count()} cores ({processor()}), "
            f"torch {torch.__version__}, Python {platform.python_version()}, starting from "
            f"{'given' if options.weights else 'seeded random'} weights, the same for all. Whole processes in turns; "
            f"each figure is a ratio of the same round, median (smallest .. largest) of {options.rounds}. {said}",
            "",
            *table,
        ],
    )
    (RESULTS / f"{name}.json").write_text(json.dumps({"photos": photos, "found": found}, indent=1))


if __name__ == "__main__":
    main()
