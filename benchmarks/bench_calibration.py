"""What the temperature does to a model's confidence on images that it was not fitted on, and to its accuracy.

    PYTHONPATH=code:. python benchmarks/bench_calibration.py PHOTOS [--image-size 96] [--short]

PHOTOS has train, valid and test. The real job trains heads on a ResNet50 with random weights, for few and for many
epochs, with and without label smoothing: some are surer than they are right, and some less. The temperature is fitted
on valid; what is shown is of test. `--short` tries one of them and leaves the results alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import write_result

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import read_result
from image_classifier.contract.paths import FEATURES_VARIABLE, MlPaths
from image_classifier.training.distributed import Group
from image_classifier.training.job import run_in
from image_classifier.training.stop import StopFlag

HEADS: Mapping[str, dict[str, Any]] = {
    "10 epochs, label smoothing 0.1 (the default)": {"epochs": 10},
    "10 epochs, none": {"epochs": 10, "label_smoothing": 0.0},
    "100 epochs, 0.1": {"epochs": 100, "lr": 0.05},
    "100 epochs, none": {"epochs": 100, "lr": 0.05, "label_smoothing": 0.0},
    "10 epochs, 0.1, class weights balanced": {"epochs": 10, "class_weights": "balanced"},
}


def trained(photos: Path, place: Path, config: TrainConfig) -> dict[str, Any]:
    """metrics.json of a job."""
    paths = MlPaths(base=place)
    paths.data.parent.mkdir(parents=True)
    paths.data.symlink_to(photos.resolve())
    run_in(Group(), config, paths, StopFlag())
    return read_result(paths.output_data)


def main() -> None:
    """Trains, and writes results/calibration.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    images: Mapping[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ[FEATURES_VARIABLE] = str(Path(place, "features"))
        for number, (name, changes) in enumerate(HEADS.items()):
            config = TrainConfig(
                weights="none", fine_tune="head", image_size=arguments.image_size, debug=False, profile=False
            )
            found = trained(arguments.photos, Path(place, str(number)), config.replace(**changes))
            metrics, plain, fitted = found["metrics"], found["uncalibrated"], found["calibration"]
            images = found["images"]
            cells = (
                f"{metrics['test:accuracy']:.1%}",
                f"{fitted['temperature']:.2f}",
                f"{plain['test:loss']:.3f}",
                f"{metrics['test:loss']:.3f}",
                f"{plain['test:calibration_error']:.1%}",
                f"{metrics['test:calibration_error']:.1%}",
                f"{fitted['loss_before']:.3f} -> {fitted['loss_after']:.3f}",
            )
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
            if arguments.short:
                return
    counts = ", ".join(f"{count} {split}" for split, count in images.items())
    lines = [
        "# What the temperature does",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_calibration.py PHOTOS --image-size {arguments.image_size}`",
        "",
        f"Photographs of flowers (TensorFlow flower_photos), five classes: {counts}. Heads on a ResNet50 with random "
        "weights, which see little; one run each. The accuracy is the same with and without a temperature.",
        "",
        "| head | test accuracy | temperature | test loss | with it | calibration error | with it | loss on valid |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("calibration.md", lines)


if __name__ == "__main__":
    main()
