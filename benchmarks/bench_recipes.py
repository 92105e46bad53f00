"""What cheaper ways of training the whole network cost in accuracy, and save in arithmetic; over seeds, paired.

    PYTHONPATH=code:. python benchmarks/bench_recipes.py [--data FOLDER] [--weights FILE] [--seeds 3] [--epochs 6]
        [--image-size 128] [--recipes grows smaller ...] [--lr 0.01] [--batch-size 16] [--photos 0] [--go-on]

FOLDER holds train, valid and test; without it, pictures are generated. With --photos N a class is trained on N of its
pictures, and tested on the others, too: a test of more pictures tells smaller differences. Without --weights all start
from the same seeded random weights, as in bench_training.py. Every training is a job of ours, a process of its own,
with fine_tune=full and default settings but for its recipe's; for each seed the recipes take turns. Compared with crops
of full size and the same seed is test accuracy, and with theirs the multiplications of all training steps, which
follow from the settings: nothing is timed, and a busy machine changes nothing. The rules that fired are named. Writes
benchmarks/results/recipes_SIZE.md and .json after each seed, SIZE being --image-size; with --go-on, what the .json
holds of the same settings is not trained again. --quick tries the script on a few generated pictures and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.bench_training import PASSES, generated, random_weights
from benchmarks.processes import ROOT, run
from benchmarks.record import RESULTS, write_result

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes
from image_classifier.contract.outputs import RESULT, RULES
from image_classifier.contract.paths import MlPaths
from image_classifier.training.frozen_body import input_shapes
from image_classifier.vision import network
from image_classifier.vision.sample_data import make_sample_data

FULL_SIZE = "full-size"
LAYERS = {layer.name: layer for layer in network.convolutions()}
RECIPES: Mapping[str, Mapping[str, object]] = {
    FULL_SIZE: {"start_scale": 1.0},
    "grows": {"start_scale": 0.57},
    "smaller": {"start_scale": 1.0, "train_scale": 0.75},
    "grows-smaller": {"start_scale": 0.5, "train_scale": 0.75},
    "frozen-1": {"start_scale": 1.0, "frozen_stages": 1},
    "frozen-2": {"start_scale": 1.0, "frozen_stages": 2},
    "grows-frozen-1": {"start_scale": 0.57, "frozen_stages": 1},
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One training: test accuracy, the rules that fired."""

    accuracy: float
    fired: Sequence[str]


def multiplications(config: TrainConfig) -> float:
    """Of the convolutions in all training steps, for a picture: forward once, and backward twice where they learn."""
    total = 0.0
    frozen = {f"layer{stage}" for stage in range(1, config.frozen_stages + 1)}
    for side in training_sizes(config):
        for name, (_, inputs, size, _) in input_shapes([1, 3, side, side]).items():
            layer = LAYERS[name]
            once = layer.outputs * inputs * layer.kernel**2 * ((size + layer.stride - 1) // layer.stride) ** 2
            fixed = config.frozen_stages and (name == network.STEM.name or name.partition(".")[0] in frozen)
            total += once * (1 if fixed else 3)
    return total


def divided(data: Path, folder: Path, count: int) -> Path:
    """The same pictures, as links: `count` of each class to train on, the rest of these beside those to test on."""
    for path in sorted(data.glob("*/*/*")):
        split, name = path.relative_to(data).parts[:2]
        taken = folder / split / name
        if split == "train" and taken.is_dir() and len(list(taken.iterdir())) >= count:
            taken = folder / "test" / name
        taken.mkdir(parents=True, exist_ok=True)
        (taken / path.name).symlink_to(path.resolve())
    return folder


def train(folder: Path, data: Path, settings: Mapping[str, object]) -> Tried:
    """A job with these settings."""
    words = [ROOT / "deploy.py", "--runs-dir", folder, "train", "--name", "one", "--data", data]
    words += [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    run(words, {})
    (job,) = folder.glob("train-*-one")
    output = MlPaths(base=job).output_data
    return Tried(
        accuracy=RESULT.read_object(output)["metrics"]["test:accuracy"],
        fired=[rule["rule"] for rule in RULES.read(output) if rule["verdict"] == "IssuesFound"],
    )


def earlier(settings: Mapping[str, object], photos: Mapping[str, int]) -> dict[str, list[Tried]]:
    """What an earlier run left. Raises RuntimeError when it is of other settings or data; weights it does not know."""
    path = RESULTS / f"{file_name(settings)}.json"
    record = json.loads(path.read_text())
    known = {name: value for name, value in settings.items() if name != "weights"}
    if (record["settings"], record["photos"]) != (known, photos):
        raise RuntimeError(f"{path.name} is of other settings or data")
    return {recipe: [Tried(**each) for each in tried] for recipe, tried in record["found"].items()}


def file_name(settings: Mapping[str, object]) -> str:
    """Of the results, without its ending."""
    return f"recipes_{settings['image_size']}"


def spread(values: Sequence[float], form: str) -> str:
    """Mean, least and most."""
    return "{} ({} .. {})".format(*(format(each, form) for each in (statistics.mean(values), min(values), max(values))))


def table_row(recipe: str, found: Sequence[Tried], plain: Sequence[Tried], config: TrainConfig) -> str:
    """Accuracy and what it is beside crops of full size with the same seed, and the share of its arithmetic."""
    fired = sorted({rule for each in found for rule in each.fired})
    ours, theirs = (config.replace(**RECIPES[each]) for each in (recipe, FULL_SIZE))  # type: ignore[arg-type]
    share = multiplications(ours) / multiplications(theirs)
    cells = [
        ", ".join(f"{name}={value}" for name, value in RECIPES[recipe].items()),
        spread([each.accuracy for each in found], ".3f"),
        spread([ours.accuracy - theirs.accuracy for ours, theirs in zip(found, plain, strict=True)], "+.3f"),
        f"{share:.2f}",
        ", ".join(fired) or "none",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--photos", type=int, default=0, help="of a class to train on, 0 for all")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--go-on", action="store_true", help="add to an earlier run with the same settings and data")
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    options = parser.parse_args()
    recipes = [FULL_SIZE, *(each for each in options.recipes if each != FULL_SIZE)]
    with TemporaryDirectory() as temporary:
        folder, data = Path(temporary), options.data
        if options.quick:
            options.seeds, options.epochs, options.image_size, options.batch_size = 1, 2, 64, 4
            data, recipes = folder / "data", [FULL_SIZE, "grows-frozen-1"]
            make_sample_data(data, num_classes=2, train_per_class=4, valid_per_class=2, test_per_class=2, size=64)
        data = data or generated(folder / "data")
        data = divided(data, folder / "divided", options.photos) if options.photos else data
        weights = options.weights or folder / "random.pth"
        if options.weights is None:
            random_weights(data, weights, passes=2 if options.quick else PASSES)
        photos = {split: sum(path.is_file() for path in (data / split).rglob("*")) for split in ("train", "test")}
        settings = {name: getattr(options, name) for name in ("epochs", "image_size", "batch_size", "lr")}
        settings |= {"weights": str(weights.resolve()), "fine_tune": "full"}
        found: dict[str, list[Tried]] = {recipe: [] for recipe in recipes}
        if options.go_on:
            found |= earlier(settings, photos)
            recipes = list(found)
        for seed in range(options.seeds):
            for recipe in recipes:
                if len(found[recipe]) > seed:
                    continue
                runs = folder / f"{recipe}-{seed}"
                found[recipe].append(train(runs, data, settings | RECIPES[recipe] | {"seed": seed}))
                shutil.rmtree(runs)
                print(seed, recipe, found[recipe][-1], flush=True)
            whole = len(set(map(len, found.values()))) == 1
            if whole and not options.quick:
                publish(options, photos, found, TrainConfig(**settings))


def publish(
    options: argparse.Namespace, photos: Mapping[str, int], found: Mapping[str, Sequence[Tried]], config: TrainConfig
) -> None:
    """Writes the results of the seeds so far."""
    seeds = len(found[FULL_SIZE])
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    numbers = "".join(
        f" --{name.replace('_', '-')} {getattr(options, name)}"
        for name in ("epochs", "image_size", "batch_size", "lr", "photos")
    )
    only = f" --recipes {' '.join(list(found)[1:])}" if len(found) < len(RECIPES) else ""
    text = [
        "# Cheaper ways of training the whole network",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_recipes.py{given} --seeds {seeds}{numbers}{only}`",
        "",
        f"{photos['train']} {'photographs' if options.data else 'generated pictures'} to train on, {photos['test']} to "
        f"test, from {'given' if options.weights else 'seeded random'} weights; torch {torch.__version__}, Python "
        f"{platform.python_version()}. Mean (smallest .. largest) over {seeds} seeds; differences are from crops of "
        "full size with the same seed. The share is that of their multiplications in training steps.",
        "",
        "| recipe | test accuracy | difference | share of the arithmetic | rules that fired |",
        "|---|---|---|---|---|",
        *(table_row(recipe, tried, found[FULL_SIZE], config) for recipe, tried in found.items()),
    ]
    settings = {name: getattr(config, name) for name in ("epochs", "image_size", "batch_size", "lr", "fine_tune")}
    write_result(f"{file_name(settings)}.md", text)
    record = {recipe: [asdict(each) for each in tried] for recipe, tried in found.items()}
    (RESULTS / f"{file_name(settings)}.json").write_text(
        json.dumps({"settings": settings, "photos": photos, "found": record}, indent=1, default=str)
    )


if __name__ == "__main__":
    main()
