"""What `check` finds of planted faults, what it accuses wrongly, and how long it takes.

    PYTHONPATH=code:. python benchmarks/bench_data_doctor.py PHOTOS [--every 5]
    PYTHONPATH=code:. python benchmarks/bench_data_doctor.py PHOTOS --time 8351

PHOTOS holds photographs of different things, in any folders: each is spoilt in several ways and looked at again. Pairs
that look alike are searched by imagehash as well, where it is installed. `--every 5` spoils every fifth one. `--time`
makes so many pictures of 500 x 375 pixels, in 133 classes, and measures the whole command on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from benchmarks.bench_lookalikes import CHANGES, saved_again
from benchmarks.record import write_result
from PIL import Image, ImageFilter

from image_classifier.vision.decode import decode
from image_classifier.vision.folders import image_files
from image_classifier.vision.lookalikes import alike_pairs, look_at_all
from image_classifier.vision.picture_quality import Quality, quality_findings, quality_of

CORES = 2
LIMIT_BITS = 8  # of imagehash's 64, as its own documents and most users have it
Spoil = Callable[[Image.Image], Image.Image]


def blurred(sigma: float) -> Spoil:
    """A Gaussian blur of so many pixels where the short side has 256."""
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(sigma * min(picture.size) / 256))


def levels(change: Callable[[float], float]) -> Spoil:
    """Each level changed."""
    return lambda picture: picture.point(change)


FAULTS: dict[str, tuple[Spoil, tuple[str, ...]]] = {  # what is done -> how, and the kinds that count as found
    "blurred, sigma 2 of 256 pixels": (blurred(2), ("blurred",)),
    "blurred, sigma 3": (blurred(3), ("blurred",)),
    "blurred, sigma 4": (blurred(4), ("blurred",)),
    "48 pixels made larger": (
        lambda picture: picture.resize((48, 48)).resize(picture.size, Image.Resampling.BICUBIC),
        ("blurred",),
    ),
    "darkened to 30 %": (levels(lambda level: 0.3 * level), ("dark",)),
    "darkened to 15 %": (levels(lambda level: 0.15 * level), ("dark",)),
    "contrast of 20 %": (levels(lambda level: 128 + 0.2 * (level - 128)), ("pale",)),
    "overexposed, 4 % left": (levels(lambda level: 255 - 0.04 * (255 - level)), ("overexposed",)),
    "noise alone": (lambda picture: Image.effect_noise(picture.size, 20).convert("RGB"), ("blank",)),
    "a fifth of the height": (
        lambda picture: picture.crop((0, 0, picture.width, max(1, picture.height // 5))),
        ("odd_shape",),
    ),
    "an eighth of the size": (
        lambda picture: picture.resize((max(1, picture.width // 8), max(1, picture.height // 8))),
        ("odd_size",),
    ),
}


def found_of(
    qualities: dict[str, Quality], pictures: dict[str, Image.Image], spoil: Spoil, kinds: tuple[str, ...]
) -> int:
    """How many of the pictures are accused of one of the kinds when one in twenty is spoilt at a time.

    Args:
        qualities: of the whole set.
        pictures: those to spoil.
    """
    found, names = 0, list(pictures)
    for start in range(20):
        spoilt = {name: quality_of(decode(as_jpeg(spoil(pictures[name])))) for name in names[start::20]}
        warnings, _ = quality_findings(qualities | spoilt)
        found += len({name for each in warnings if each.kind in kinds for name in each.files} & spoilt.keys())
    return found


def as_jpeg(picture: Image.Image) -> bytes:
    """The file that a camera or program would make of it."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def spoilt_table(pictures: list[Image.Image], every: int) -> Iterator[str]:
    """A line a fault, and what is said of the pictures as they are."""
    qualities = {str(index): quality_of(each) for index, each in enumerate(pictures)}
    some = {str(index): each for index, each in enumerate(pictures) if index % every == 0}
    warnings, notes = quality_findings(qualities)
    said = ", ".join(f"{each.kind} {len(each.files)}" for each in (*warnings, *notes)) or "nothing"
    accused = {name for each in warnings for name in each.files}
    yield f"Said of the {len(pictures)} photographs as they are: {said}; {len(accused)} in all."
    yield ""
    yield "| each spoilt | found |"
    yield "|---|---|"
    for name, (spoil, kinds) in FAULTS.items():
        yield f"| {name} | {found_of(qualities, some, spoil, kinds)} of {len(some)} |"


def imagehash_pairs(
    pictures: list[Image.Image], kind: str
) -> Callable[[Callable[[Image.Image], Image.Image]], tuple[int, int]]:
    """A function: how the pictures are changed -> right and false pairs of imagehash's `kind`."""
    import imagehash

    def bits(picture: Image.Image) -> np.ndarray:
        return np.asarray(getattr(imagehash, kind)(picture).hash).ravel()

    originals = np.stack([bits(each) for each in pictures])

    def pairs(change: Callable[[Image.Image], Image.Image]) -> tuple[int, int]:
        both = np.concatenate([originals, np.stack([bits(change(each)) for each in pictures])]).astype(np.int16)
        near = np.triu(np.abs(both[:, None] - both[None]).sum(2) <= LIMIT_BITS, 1)
        right = sum(near[i, i + len(pictures)] for i in range(len(pictures)))
        return int(right), int(near.sum() - right)

    return pairs


def alike_table(paths: list[Path], pictures: list[Image.Image]) -> Iterator[str]:
    """A line a way of saving a picture again: found and false pairs, ours and imagehash's."""
    kinds: list[str] = []
    try:
        import imagehash  # noqa: F401

        kinds = ["dhash", "phash"]
    except ImportError:
        pass
    theirs = [imagehash_pairs(pictures, kind) for kind in kinds]
    yield "| each saved again | check: found | false pairs |" + "".join(
        f" imagehash {k}: found | false |" for k in kinds
    )
    yield "|---|---|---|" + "---|---|" * len(kinds)
    originals = look_at_all(paths)
    for name, (change, quality) in CHANGES.items():
        again = [saved_again(picture, change, quality) for picture in pictures]
        ours = alike_pairs([*originals, *again])
        right = sum(other - one == len(paths) for one, other in ours)
        cells = [f"{right} of {len(paths)}", str(len(ours) - right)]
        for count in theirs:
            good, false = count(lambda picture: decode(jpeg_of(change(picture), quality)))  # noqa: B023
            cells += [f"{good} of {len(paths)}", str(false)]
        yield f"| {name} | {' | '.join(cells)} |"


def jpeg_of(picture: Image.Image, quality: int) -> bytes:
    """A file of that quality."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def speed(pictures: list[Image.Image], count: int) -> Iterator[str]:
    """Seconds of the whole command on a data set of `count` pictures, in lines."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            picture = pictures[number % len(pictures)]
            share = draw.uniform(0.6, 1.0)
            width, height = int(picture.width * share), int(picture.height * share)
            left, top = draw.randint(0, picture.width - width), draw.randint(0, picture.height - height)
            split = "train" if number % 10 < 8 else "valid" if number % 10 == 8 else "test"
            folder = Path(place, "data", split, f"class{number // 10 % 133:03d}")
            folder.mkdir(parents=True, exist_ok=True)
            made = picture.crop((left, top, left + width, top + height)).resize((500, 375))
            made.save(folder / f"{number}.jpg", quality=85)
        cores = sorted(os.sched_getaffinity(0))[:CORES]
        command = [sys.executable, "deploy.py", "check", f"{place}/data", "--json", "--html", f"{place}/check.html"]
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores)), *command], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        work = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        report = json.loads(done.stdout)
        kinds = Counter(each["kind"] for each in (*report["errors"], *report["warnings"]))
        size = Path(place, "check.html").stat().st_size
    busy = os.getloadavg()[0]
    yield f"`check DATA --json --html FILE` of {count} pictures of 500 x 375 pixels, cut out of the photographs,"
    yield f"on {CORES} cores: **{seconds:.0f} s** by the clock (load {busy:.1f}), {work:.0f} s of"
    yield f"processor time, {work / CORES:.0f} s a core (goal: under 180). The page has"
    yield f"{size / 1e6:.1f} MB. Findings: {', '.join(f'{kind} {number}' for kind, number in sorted(kinds.items()))}."


def main() -> None:
    """Measures, and writes results/data_doctor.md, or data_doctor_time.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos_folder", metavar="PHOTOS", type=Path)
    parser.add_argument("--every", type=int, default=1, help="spoil every so many-th photograph")
    parser.add_argument("--time", type=int, default=0, metavar="PICTURES", help="measure the time alone")
    arguments = parser.parse_args()
    paths = image_files(arguments.photos_folder)
    pictures = [decode(path) for path in paths]
    if arguments.time:
        command = f"`PYTHONPATH=code:. python benchmarks/bench_data_doctor.py PHOTOS --time {arguments.time}`"
        found = speed(pictures, arguments.time)
        write_result("data_doctor_time.md", ["# How long check takes", "", command, "", *found])
        return
    lines = [
        "# What check finds",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_data_doctor.py PHOTOS --every {arguments.every}`",
        "",
        f"{len(paths)} photographs of flowers (TensorFlow flower_photos).",
        "",
        "## Bad pictures",
        "",
        "One in twenty is spoilt at a time and saved as a JPEG of quality 90, until each has been.",
        "",
        *spoilt_table(pictures, arguments.every),
        "",
        "## Pictures that look alike",
        "",
        f"imagehash's hashes of 64 bits with up to {LIMIT_BITS} that differ.",
        "",
        *alike_table(paths[:: arguments.every], pictures[:: arguments.every]),
    ]
    write_result("data_doctor.md", lines)


if __name__ == "__main__":
    main()
