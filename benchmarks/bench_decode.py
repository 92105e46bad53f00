"""What a photograph costs before the network sees it: our decoding beside what tutorials do, up to 12 megapixels.

    PYTHONPATH=code:. python benchmarks/bench_decode.py [--rounds 15]

One thread, seconds of its core. The photographs are generated: shapes, and noise as sensors have it, which is what
makes a file large. In each round, in turns: Pillow decoding all pixels and torchvision's transform; ours where Pillow
decodes; ours; libjpeg alone, at the size that ours asks it for. Says as well how far our pixels are from those of the
first, and that Pillow's come to the same. Writes benchmarks/results/decode.md: ratios only.
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
from unittest import mock

import numpy as np
import PIL
from benchmarks.record import processor, write_result
from PIL import Image, features
from torchvision import transforms

from image_classifier.vision import usual_jpeg
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
TUTORIAL, BY_PILLOW, OURS, LIBRARY = "all pixels, then the transform", "ours by Pillow", "ours", "libjpeg alone"


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


def by_pillow(data: bytes) -> np.ndarray:
    with mock.patch.object(usual_jpeg, "simplejpeg", None):
        return ours(data)


def library(data: bytes) -> None:
    size = usual_jpeg.plain_size(data)
    assert size is not None
    pixels = usual_jpeg.pixels_of(data, size, usual_jpeg.scaled_down(size, SIDE))
    assert pixels is not None


WAYS: dict[str, Callable[[bytes], object]] = {TUTORIAL: tutorial, BY_PILLOW: by_pillow, OURS: ours, LIBRARY: library}


def measure(photographs: Sequence[bytes], rounds: int) -> dict[str, list[float]]:
    """Seconds of the core for the photographs, by way: one a round."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds + 1):  # the first warms up
        for name, way in WAYS.items():
            started = time.thread_time()
            for data in photographs:
                way(data)
            found[name].append(time.thread_time() - started)
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
    same = all(np.array_equal(by_pillow(data), ours(data)) for data in photographs)

    def ratios(one: str, other: str) -> str:
        return interval([first / second for first, second in zip(found[one], found[other], strict=True)], 2)

    width, height = Image.open(io.BytesIO(photographs[0])).size
    return (
        f"| {name}, {width} x {height}, {statistics.mean(map(len, photographs)) / 1e6:.2f} MB "
        f"| {ratios(TUTORIAL, OURS)} | {ratios(BY_PILLOW, OURS)} | {ratios(LIBRARY, OURS)} "
        f"| {np.mean(away):.2f}, {np.max(away)} | {'the same' if same else 'others'} |"
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
            f"Of one core's time for a photograph, medians of {options.rounds} rounds in which the ways took "
            f"turns, with the 95 % interval over rounds drawn again; {len(chosen)} JPEGs of quality {QUALITY} a size. "
            f"{processor()}, Pillow {PIL.__version__} with libjpeg-turbo {features.version('libjpeg_turbo')}, "
            f"simplejpeg {usual_jpeg.VERSION}, Python {platform.python_version()}. Ours lets libjpeg decode at 1/2, "
            f"1/4 or 1/8, no smaller than {SIDE} pixels a side, in training as in serving; the rest is the crop, and "
            "looking for what no honest picture has.",
            "",
            f"| photograph | times as fast as {TUTORIAL} | as {BY_PILLOW} | {LIBRARY}, of ours "
            "| away from the first way's pixels, levels: mean, most | Pillow's pixels |",
            "|---" * 6 + "|",
            *rows,
            "",
            "What libjpeg takes at 1/8 grows with the file and not with what is made of it: the Huffman code has to be "
            "read to its end at every size, so that no smaller picture and no crop would cost less.",
        ],
    )


if __name__ == "__main__":
    main()
