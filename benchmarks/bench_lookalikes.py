"""How many pictures that were saved again are found, and how many different ones are taken for the same.

    PYTHONPATH=code:. python benchmarks/bench_lookalikes.py PHOTOS

PHOTOS holds photographs of different things, in any folders. Each is saved again in several ways, and all are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

from benchmarks.record import write_result
from PIL import Image

from image_classifier.vision.decode import decode
from image_classifier.vision.folders import image_files
from image_classifier.vision.lookalikes import DRAFT_SIDE, Looks, alike_pairs, look_at_all, looks_of

Change = Callable[[Image.Image], Image.Image]
CHANGES: dict[str, tuple[Change, int]] = {  # how -> what is done to the picture, JPEG's quality
    "as a JPEG of quality 85": (lambda picture: picture, 85),
    "as a JPEG of quality 30": (lambda picture: picture, 30),
    "at half the size": (lambda picture: picture.resize((picture.width // 2, picture.height // 2)), 80),
    "at 224 x 224 pixels": (lambda picture: picture.resize((224, 224)), 85),
    "a tenth brighter": (lambda picture: picture.point(lambda level: min(255, level * 1.1)), 85),
    "without 2 % at each side": (
        lambda picture: picture.crop(
            (picture.width // 50, picture.height // 50, picture.width * 49 // 50, picture.height * 49 // 50)
        ),
        85,
    ),
}


def saved_again(picture: Image.Image, change: Change, quality: int) -> Looks:
    """The looks of the picture after a change, as a file would have them."""
    stream = io.BytesIO()
    change(picture).save(stream, "JPEG", quality=quality)
    data = stream.getvalue()
    return looks_of(decode(data, min_side=DRAFT_SIDE), hashlib.sha256(data).hexdigest())


def main() -> None:
    """Compares, and writes results/lookalikes.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    paths = image_files(parser.parse_args().photos)
    originals = look_at_all(paths)
    lines = [
        "# Pictures that look alike",
        "",
        "`PYTHONPATH=code:. python benchmarks/bench_lookalikes.py PHOTOS`",
        "",
        f"{len(paths)} photographs of flowers (TensorFlow flower_photos). Pairs among them, which are all false: "
        f"{len(alike_pairs(originals))}.",
        "",
        "| each saved again | found | false pairs beside |",
        "|---|---|---|",
    ]
    for name, (change, quality) in CHANGES.items():
        again = [saved_again(decode(path), change, quality) for path in paths]
        pairs = alike_pairs([*originals, *again])
        right = sum(other - one == len(paths) for one, other in pairs)
        lines.append(f"| {name} | {right} of {len(paths)} | {len(pairs) - right} |")
    write_result("lookalikes.md", lines)


if __name__ == "__main__":
    main()
