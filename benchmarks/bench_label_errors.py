"""How many planted wrong labels are found, and how many right ones accused, beside cleanlab on the same probabilities.

    PYTHONPATH=code:. python benchmarks/bench_label_errors.py [PHOTOS] [--seeds 3] [--images 75]

The images: a generated set of 8 classes, and PHOTOS, folders of splits and classes. What is judged: features of a
ResNet50 with random weights, as `train --weights none --fine-tune head` has them, by the heads that all other images
have trained. Random features tell the generated classes apart, and hardly tell flowers. To see where a model is too
weak, noise is added to the generated set's features. cleanlab is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.record import write_result
from numpy.typing import NDArray

from image_classifier.training.label_errors import judge
from image_classifier.training.out_of_fold import left_out
from image_classifier.vision.confident_learning import agreement
from image_classifier.vision.folders import Split, image_files
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.sample_data import make_sample_data

SHARES = (0.05, 0.1, 0.2)
FIRST_SEED = 10  # the limits were chosen with lower ones
NOISES = (2.0, 3.0, 4.0, 6.0)  # standard deviations of the features themselves
BATCH = 16
Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


def features_of(paths: Sequence[Path], size: int) -> Rows:
    """(n, 2048): what a head sees of images, with random weights."""
    torch.manual_seed(0)
    model = build_model(2).eval().to(memory_format=torch.channels_last)
    model.fc = torch.nn.Identity()
    preprocessing, found = Preprocessing.for_image_size(size), []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for at in range(0, len(paths), BATCH):
            images = torch.stack([torch.from_numpy(load(path, preprocessing)) for path in paths[at : at + BATCH]])
            found.append(model(images.to(memory_format=torch.channels_last)).float().numpy())
    return np.concatenate(found)


def spoilt(labels: Labels, share: float, seed: int) -> tuple[Labels, set[int]]:
    """Labels of which a share is another class, any with the same chance, and which these are."""
    draw = np.random.default_rng(seed)
    wrong = draw.choice(len(labels), round(share * len(labels)), replace=False)
    changed, classes = labels.copy(), int(labels.max()) + 1
    changed[wrong] = (changed[wrong] + draw.integers(1, classes, len(wrong))) % classes
    return changed, set(wrong.tolist())


def score(found: Sequence[int], wrong: set[int]) -> tuple[float, float]:
    """Recall and precision; a precision of 1 where nobody is accused."""
    right = len(set(found) & wrong)
    return right / len(wrong), right / len(found) if found else 1.0


def cleanlab(probabilities: NDArray[np.float64], labels: Labels) -> list[int] | None:
    """What cleanlab finds as it comes; None without it."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return None
    found: Any = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(index) for index in found]


def shown(values: Sequence[tuple[float, float]]) -> str:
    """Recall and precision: medians with what the seeds span."""
    recall, precision = zip(*values, strict=True)
    return " | ".join(
        f"{100 * median(each):.0f} % ({100 * min(each):.0f} .. {100 * max(each):.0f})" for each in (recall, precision)
    )


def rows_of(name: str, rows: Rows, labels: Labels, seeds: int) -> Iterator[str]:
    """A line of the table a share of wrong labels, and one without any."""
    classes = int(labels.max()) + 1
    split = Split("train", Path(), tuple(Path(f"{index}.jpg") for index in range(len(labels))), tuple(labels.tolist()))
    images = [(split, index) for index in range(len(labels))]
    names = [str(index) for index in range(classes)]

    def accused(given: Labels, probabilities: NDArray[np.float64]) -> tuple[list[int], str]:
        found = judge(images, probabilities, given, names)
        return [int(Path(each["path"]).stem) for each in found["suspects"]], found["silent"]

    clean = left_out(rows, labels, classes)
    found, silent = accused(labels, clean)
    theirs = cleanlab(clean, labels)
    other = "" if theirs is None else f"{len(theirs)} accused"
    knows = f"{100 * agreement(clean, labels):.0f} %"
    yield f"| {name} | none | {knows} | {'silent' if silent else f'{len(found)} accused'} | | {other} | |"
    for share in SHARES:
        ours, reference, quiet, agreed = [], [], 0, []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            given, wrong = spoilt(labels, share, seed)
            probabilities = left_out(rows, given, classes)
            found, silent = accused(given, probabilities)
            agreed.append(agreement(probabilities, given))
            quiet += bool(silent)
            if not silent:
                ours.append(score(found, wrong))
            if (theirs := cleanlab(probabilities, given)) is not None:
                reference.append(score(theirs, wrong))
        mine = shown(ours) if ours else "silent | "
        mine = f"{mine} ({quiet} of {seeds} silent)" if ours and quiet else mine
        beside = shown(reference) if reference else " | "
        yield f"| {name} | {share:.0%} | {100 * median(agreed):.0f} % | {mine} | {beside} |"


def main() -> None:
    """Measures, and writes results/label_errors.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=75, help="of each generated class")
    arguments = parser.parse_args()
    sets: list[tuple[str, Rows, Labels]] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "data")
        make_sample_data(
            root, num_classes=8, train_per_class=arguments.images, valid_per_class=1, test_per_class=1, size=96, seed=1
        )
        sets.append(labelled(f"generated, {8 * arguments.images} images", image_files(root / "train"), 96))
    name, rows, labels = sets[0]
    draw = np.random.default_rng(0)
    for noise in NOISES:
        spoiling = draw.normal(0, noise, rows.shape) * rows.std(0)
        sets.append((f"the same, noise of {noise:g}", (rows + spoiling).astype(np.float32), labels))
    if arguments.photos:
        paths = image_files(arguments.photos)
        sets.append(labelled(f"flowers, {len(paths)} photos", paths, 128))
    lines = [
        "# Labels that are likely wrong",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_label_errors.py PHOTOS --seeds {arguments.seeds}`",
        "",
        "Features of a ResNet50 with random weights; each image judged by a linear head that all others have trained. "
        f"Wrong labels are planted; medians of {arguments.seeds} seeds with what they span. Known: the share of the "
        "labels, as given, that the head answers with. cleanlab: `find_label_issues` as it comes, on the same "
        "probabilities.",
        "",
        "| images | wrong labels | known | found | of those accused wrong | cleanlab: found | of those accused |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows, labels in sets:
        lines += rows_of(name, rows, labels, arguments.seeds)
    write_result("label_errors.md", lines)


def labelled(name: str, paths: Sequence[Path], size: int) -> tuple[str, Rows, Labels]:
    """A set: its name, features, and labels, which are the names of the folders."""
    _, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return name, features_of(paths, size), labels.astype(np.int64)


if __name__ == "__main__":
    main()
