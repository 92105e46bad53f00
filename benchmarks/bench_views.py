"""How many views of a training image a head should see: accuracy with each number of them, over seeds.

    PYTHONPATH=code:. python benchmarks/bench_views.py [--data FOLDER] [--weights FILE] [--seeds 5] [--image-size 128]

FOLDER holds train, valid and test; without it, pictures are generated. Every training is a job of ours with its default
settings on the same starting weights, without --weights bench_training.py's random ones; only `feature_views` and the
seed differ. Nothing is timed. Writes benchmarks/results/views.md: test accuracy, and its difference from one view for
the same seed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_training import generated, random_weights
from benchmarks.record import write_result

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import RESULT
from image_classifier.contract.paths import FEATURES_VARIABLE, MlPaths
from image_classifier.training.distributed import Group
from image_classifier.training.job import run_in
from image_classifier.training.stop import StopFlag

VIEWS = (1, 2, 4, 8)


def accuracy(folder: Path, data: Path, config: TrainConfig) -> float:
    """The test accuracy of one training."""
    paths = MlPaths(base=folder)
    paths.data.parent.mkdir(parents=True)
    paths.data.symlink_to(data.resolve())
    run_in(Group(), config, paths, StopFlag())
    return float(RESULT.read_object(paths.output_data)["metrics"]["test:accuracy"])


def table_row(views: int, found: Sequence[float], single: Sequence[float]) -> str:
    """Accuracy and paired difference."""
    differences = [ours - theirs for ours, theirs in zip(found, single, strict=True)]
    return (
        f"| {views} | {statistics.mean(found):.3f} ({min(found):.2f} .. {max(found):.2f}) | "
        f"{statistics.mean(differences):+.3f} ({min(differences):+.2f} .. {max(differences):+.2f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=128)
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ[FEATURES_VARIABLE] = str(folder / "store")
        data = options.data or generated(folder / "data")
        weights = options.weights or folder / "random.pth"
        if options.weights is None:
            random_weights(data, weights)
        config = TrainConfig(
            weights=str(weights.resolve()), fine_tune="head", image_size=options.image_size, debug=False, profile=False
        )
        found: dict[int, list[float]] = {views: [] for views in VIEWS}
        for seed in range(options.seeds):
            for views in VIEWS:
                changed = config.replace(feature_views=views, seed=seed)
                found[views].append(accuracy(folder / f"{views}-{seed}", data, changed))
                print(seed, views, found[views][-1], flush=True)
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    start = "given weights" if options.weights else "seeded random weights, whose features are poor"
    text = [
        "# How many views of a training image a head should see",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_views.py{given} "
        f"--seeds {options.seeds} --image-size {options.image_size}`",
        "",
        f"{'Photographs' if options.data else 'Generated pictures'}, ten epochs with the default settings, "
        f"starting from {start}; mean (smallest .. largest) over {options.seeds} "
        "seeds, which draw the head and the order of the images.",
        "",
        "| feature_views | test accuracy | difference from one view, paired |",
        "|---|---|---|",
        *(table_row(views, found[views], found[VIEWS[0]]) for views in VIEWS),
    ]
    write_result("views.md", text)


if __name__ == "__main__":
    main()
