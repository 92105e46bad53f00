"""How fast a frozen ResNet50 can see photographs, by who computes, and whether its features are still torch's.

    PYTHONPATH=code:. python benchmarks/bench_forwards.py [--data FOLDER] [--weights FILE] [--photos 32] [--rounds 3]

Without --weights: the seeded random weights of bench_training.py. Pictures lie in memory, decoded, of 224 pixels; every
way has all cores. "As in tutorials" is torch's network in float32, 32 pictures at once, as stock_training.py calls it.
A distance is that of a picture's features from torch's in float32, over their length; int8 has ranges of other photos.
From the speeds follows the most that a first job with a head could be faster than the tutorials' script if it had no
fixed cost and nothing but the forwards that it needs, on 500 + 100 + 100 photographs in two views over ten epochs, as
bench_training.py measures it. Writes benchmarks/results/forwards.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from benchmarks.bench_training import generated, random_weights
from benchmarks.record import processor, write_result
from numpy.typing import NDArray

from image_classifier.serving.openvino_resnet import FoldedWeights, core, resnet50
from image_classifier.training.frozen_body import CPU_BATCH, TOLERANCE, FrozenBody
from image_classifier.training.int8_kernels import Int8Kernels, has_int8_kernels
from image_classifier.training.number_formats import Folded, Photos, in_batches, observe
from image_classifier.training.setup import Setup
from image_classifier.vision import network
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing, load, load_pixels
from image_classifier.vision.resnet import ResNet

SIZE = 224
STOCK_BATCH = 32
Features = NDArray[np.float32]
TRAIN, VALID, TEST, VIEWS, EPOCHS, RANGES = 500, 100, 100, 2, 10, 64
STOCK, EXACT, HALF, INT8 = "as in tutorials", "ours, float32", "ours, bfloat16", "ours, int8 kernels"


class Ways:
    """Each takes all pictures and gives their features."""

    def __init__(self, model: ResNet, paths: Sequence[Path], seen: Sequence[Path]) -> None:
        self._preprocessing = Preprocessing.for_image_size(SIZE)
        self._model = model
        self._pixels = np.stack([load_pixels(path, self._preprocessing) for path in paths])
        self._images = torch.stack([torch.from_numpy(load(path, self._preprocessing)) for path in paths])
        self._folded = Folded(model.state_dict())
        others = in_batches([torch.from_numpy(load(path, self._preprocessing)) for path in seen])
        with torch.inference_mode():
            photos = Photos(images=others, labels=np.zeros(len(seen), np.int64))
            maxima = observe(self._folded, photos, torch.device("cpu"), lambda: None)
        self._ranges = {name: max(1e-6, float(values.max())) for name, values in maxima.items()}
        self._pool = ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))

    def all(self) -> dict[str, Callable[[], Features]]:
        ways = {STOCK: self._stock(), EXACT: self._body(bf16=False), HALF: self._body(bf16=True)}
        if has_int8_kernels():
            ways[INT8] = self._int8()
        for name, hint in (("float32", "f32"), ("bfloat16", "bf16"), ("int8", "f32")):
            ways[f"OpenVINO, {name}"] = self._openvino(hint, self._ranges if name == "int8" else None)
        return ways

    def _stock(self) -> Callable[[], Features]:
        body = torch.nn.Sequential(*list(self._model.children())[:-1], torch.nn.Flatten(1))

        def run() -> Features:
            with torch.inference_mode():
                batches = torch.split(self._images, STOCK_BATCH)
                return torch.cat([body(batch) for batch in batches]).numpy()

        return run

    def _body(self, *, bf16: bool) -> Callable[[], Features]:
        setup = Setup(device=torch.device("cpu"), bf16=bf16)
        body = FrozenBody(self._model, self._preprocessing, setup, self._pixels[:2])
        return lambda: np.concatenate(list(self._pool.map(lambda part: body.features(part)[0], self._parts())))

    def _parts(self) -> list[NDArray[np.uint8]]:
        return [self._pixels[at : at + CPU_BATCH] for at in range(0, len(self._pixels), CPU_BATCH)]

    def _int8(self) -> Callable[[], Features]:
        kernels = Int8Kernels(self._folded.weights, self._folded.biases, self._ranges, [CPU_BATCH, 3, SIZE, SIZE])

        def some(batch: torch.Tensor) -> Features:
            with torch.inference_mode():
                return kernels(batch).numpy()

        return lambda: np.concatenate(list(self._pool.map(some, torch.split(self._images, CPU_BATCH))))

    def _openvino(self, hint: str, ranges: dict[str, float] | None) -> Callable[[], Features]:
        """With a stream for each core, and a head that gives back what it sees."""
        state = {name: value.numpy() for name, value in self._model.state_dict().items()}
        state |= {
            "fc.weight": np.eye(network.FEATURES, dtype=np.float32),
            "fc.bias": np.zeros(network.FEATURES, np.float32),
        }
        graph = resnet50(FoldedWeights(state), image_size=SIZE, ranges=ranges)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": os.cpu_count(),
            "INFERENCE_NUM_THREADS": os.cpu_count(),
            "INFERENCE_PRECISION_HINT": hint,
        }
        requests = core().compile_model(graph, "CPU", settings)
        pool = ThreadPoolExecutor(os.cpu_count())
        images = self._images.numpy()

        def run() -> Features:
            made = pool.map(lambda image: requests.create_infer_request().infer([image[None]])[0][0], images)
            return np.stack(list(made))

        return run


def distances(found: Features, exact: Features) -> NDArray[np.float64]:
    """Of each picture."""
    return np.linalg.norm((found - exact).astype(np.float64), axis=1) / np.linalg.norm(exact.astype(np.float64), axis=1)


def limits(speed: dict[str, float]) -> list[str]:
    """What the speeds leave for a first job, as sentences."""
    stock = (EPOCHS * (TRAIN + VALID) + TEST) / speed[STOCK]
    exact = (VALID + TEST + RANGES) / speed[EXACT]
    coarse = speed.get(INT8, speed[EXACT])
    as_is = (VIEWS * TRAIN + VALID) / speed[HALF] + exact + VALID / coarse
    bare = (VIEWS * TRAIN + VALID) / speed[HALF] + TEST / speed[EXACT]
    in_int8 = (VIEWS * TRAIN + VALID) / coarse + exact
    forwards = f"{EPOCHS * (TRAIN + VALID) + TEST:,} forwards"
    return [
        f"The tutorials' script makes {forwards}. Ours: {VIEWS * TRAIN + VALID:,} in bfloat16 for features, "
        f"{VALID + TEST + RANGES} in float32 for the test and the number formats, {VALID} in int8. At these speeds "
        f"that is **{stock / as_is:.1f} times** less time for forwards alone; without measuring number formats "
        f"{stock / bare:.1f} times; with features for training in int8, which are not torch's, "
        f"{stock / in_int8:.1f} times.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, weights = options.data or generated(folder / "data"), options.weights or folder / "random.pth"
        if options.weights is None:
            random_weights(data, weights)
        model = build_model(1000)
        model.load_state_dict(torch.load(weights, weights_only=True))
        photos, others = (sorted((data / split).glob("*/*.jpg")) for split in ("valid", "train"))
        taken = [some[:: max(1, len(some) // options.photos)][: options.photos] for some in (photos, others)]
        ways = Ways(model.eval(), *taken).all()
        features = {name: run() for name, run in ways.items()}  # each has warmed up
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                speeds[name].append(len(taken[0]) / (time.perf_counter() - started))
    for name, found in speeds.items():
        print(name, *(f"{each:.1f}" for each in found), "images/s")
    off = {name: distances(found, features[STOCK]) for name, found in features.items()}
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    rows = [
        f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f}) | "
        f"{np.median(off[name]):.2g} | {off[name].max():.2g} |"
        for name, found in speeds.items()
        for ratios in [[ours / theirs for ours, theirs in zip(found, speeds[STOCK], strict=True)]]
    ]
    text = [
        "# How fast a frozen body can see photographs",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_forwards.py{given} --photos {options.photos} "
        f"--rounds {options.rounds}`",
        "",
        f"{options.photos} {'photographs' if options.data else 'generated pictures'} of {SIZE} pixels in memory, "
        f"{'given' if options.weights else 'seeded random'} weights, {os.cpu_count()} cores ({processor()}), torch "
        f"{torch.__version__}, Python {platform.python_version()}. Speed is times that of torch's network in float32 "
        f"called as in tutorials, median (smallest .. largest) of {options.rounds} rounds in turns. Features for a "
        f"training may be off by {TOLERANCE[True]}.",
        "",
        "| who computes | speed | distance, median | largest |",
        "|---|---|---|---|",
        *rows,
        "",
        *limits({name: statistics.median(found) for name, found in speeds.items()}),
    ]
    write_result("forwards.md", text)


if __name__ == "__main__":
    main()
