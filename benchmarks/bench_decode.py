"""What a photograph costs before the network sees it: our decoding beside what tutorials do, up to 12 megapixels.

    PYTHONPATH=code:. python benchmarks/bench_decode.py [--rounds 15]

One thread, seconds of its core. The photographs are generated: shapes, and noise as sensors have it, which is what
makes a file large. In each round, in turns: Pillow decoding all pixels and torchvision's transform; ours; libjpeg
alone, at the size that ours asks it for. Says as well how far our pixels are from those of the first. Writes
benchmarks/results/decode.md.
"""

from __future__ import annotations

import argparse
import io
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
from benchmarks.record import processor, write_result
from PIL import Image, features
from torchvision import transforms

from image_classifier.vision.preprocess import Preprocessing, load_pixels
from image_classifier.vision.sample_data import make_sample_data

PHOTOGRAPHS = {  # pixels, and levels of noise that a camera's own smoothing has left
    "12 megapixels": (4000, 3000, 3.0),
    "12 megapixels by little light": (4000, 3000, 8.0),
    "2 megapixels": (1632, 1224, 3.0),
    "as in data sets": (500, 375, 3.0),
}
QUALITY = 90
PREPROCESSING = Preprocessing.for_image_size(224)
SIDE = PREPROCESSING.draft_margin * PREPROCESSING.resize_size
TRANSFORM = transforms.Compose(
    [transforms.Resize(PREPROCESSING.resize_size), transforms.CenterCrop(PREPROCESSING.image_size)]
)
RESAMPLES = 2_000
TUTORIAL, OURS, LIBRARY = "all pixels, then the transform", "ours", "libjpeg alone, of ours"


def photograph(base: Image.Image, width: int, height: int, noise: float, seed: int) -> bytes:
    """A JPEG of that size."""
    rng = np.random.default_rng(seed)
    picture = np.asarray(base.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = picture + rng.normal(0, noise, picture.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def tutorial(data: bytes) -> np.ndarray:
    return np.asarray(TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB")))


def ours(data: bytes) -> np.ndarray:
    return load_pixels(data, PREPROCESSING)


def library(data: bytes) -> None:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (SIDE, SIDE))
    image.load()


WAYS: dict[str, Callable[[bytes], object]] = {TUTORIAL: tutorial, OURS: ours, LIBRARY: library}


def measure(photographs: Sequence[bytes], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the core for a photograph, by way: one a round."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds + 1):  # the first warms up
        for name, way in WAYS.items():
            started = time.thread_time()
            for data in photographs:
                way(data)
            found[name].append(1000 * (time.thread_time() - started) / len(photographs))
    return {name: values[1:] for name, values in found.items()}


def interval(values: Sequence[float], digits: int) -> str:
    """The median, and its 95 % interval over rounds drawn again."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = medians[RESAMPLES * 25 // 1000], medians[RESAMPLES * 975 // 1000]
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def row(name: str, photographs: Sequence[bytes], rounds: int) -> str:
    found = measure(photographs, rounds)
    away = [np.abs(tutorial(data).astype(int) - ours(data).astype(int)) for data in photographs]
    times = [one / other for one, other in zip(found[TUTORIAL], found[OURS], strict=True)]
    width, height = Image.open(io.BytesIO(photographs[0])).size
    return (
        f"| {name}, {width} x {height}, {statistics.mean(map(len, photographs)) / 1e6:.2f} MB "
        + "".join(f"| {interval(found[way], 2)} " for way in WAYS)
        + f"| {interval(times, 2)} | {np.mean(away):.2f}, {np.max(away)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--photos", type=int, default=4, help="of each size")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        make_sample_data(Path(folder), train_per_class=options.photos, valid_per_class=0, test_per_class=0, size=192)
        bases = [Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("train/*/*.jpg"))]
    chosen = bases[:: max(1, len(bases) // options.photos)][: options.photos]
    rows = [
        row(name, [photograph(base, *how, seed) for seed, base in enumerate(chosen)], options.rounds)
        for name, how in PHOTOGRAPHS.items()
    ]
    write_result(
        "decode.md",
        [
            "# From a file to the network's pixels",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_decode.py --rounds {options.rounds}`",
            "",
            f"Milliseconds of one core for a photograph, medians of {options.rounds} rounds in which the ways took "
            f"turns, with the 95 % interval over rounds drawn again; {len(chosen)} JPEGs of quality {QUALITY} a size. "
            f"{processor()}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, Python "
            f"{platform.python_version()}. Ours lets libjpeg decode at 1/2, 1/4 or 1/8, no smaller than "
            f"{SIDE} pixels a side, in training as in serving; the rest is the crop, and looking for what no honest "
            "picture has.",
            "",
            f"| photograph | {' | '.join(WAYS)} | times as fast "
            "| away from the first way's pixels, levels: mean, most |",
            "|---" * (len(WAYS) + 3) + "|",
            *rows,
            "",
            "What libjpeg takes at 1/8 grows with the file and not with what is made of it: the Huffman code has to be "
            "read to its end at every size, so that no smaller picture and no crop would cost less.",
        ],
    )


if __name__ == "__main__":
    main()
