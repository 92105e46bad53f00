"""The first part: what machine this is, and the photos that the other parts train on.

The product's sample data knows eight materials. A class here is a material in one of seventeen tints: each photo is a
random piece of a sample picture, mirrored or not, tinted for its class, with noise of its own, as a JPEG of 500 x 375.
"""

from __future__ import annotations

import colorsys
import os
import platform
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gpu.kit import CLASSES, IMAGES, Kit
from PIL import Image

from image_classifier.contract.machine import memory, usable_cores
from image_classifier.vision.sample_data import make_sample_data

MATERIALS = 8
SIZE = (500, 375)  # pixels
BASE = 256  # side of a sample picture, in pixels
NOISE = 6.0  # levels: sensor noise, which is what makes a photograph's file large
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "smdebug", "protobuf", "openvino", "onnxruntime", "nvidia-ml-py")


def run(kit: Kit) -> None:
    """Notes the machine, and makes the photos unless an earlier run has."""
    kit.note("machine", machine())
    done = kit.folder / "photos.done"
    if done.exists():
        kit.note("photos", {"kept": True})
        return
    shutil.rmtree(kit.photos, ignore_errors=True)
    started = time.perf_counter()
    classes = kit.size(CLASSES, 3)
    count = make_photos(
        kit.photos,
        {name: kit.size(images, 8 * classes if name == "train" else classes) for name, images in IMAGES.items()},
        classes=classes,
        bases=kit.size(4, 1),
    )
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in kit.photos.rglob("*.jpg"))
    kit.note(
        "photos", {"count": count, "classes": classes, "seconds": seconds, "megabytes": size / 1e6, "pixels": SIZE}
    )
    done.touch()


def machine() -> dict[str, Any]:
    """Card, driver, versions, cores and memory."""
    import torch

    found: dict[str, Any] = {
        "cores": usable_cores(),
        "memory_gb": memory()[0] / 1e9,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch_cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }
    try:
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
        found["cards"] = [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except Exception as error:  # no library, no driver
        found |= {"driver": f"unknown: {error}", "cards": []}
    if torch.cuda.is_available():
        found["cards"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["capability"] = list(torch.cuda.get_device_capability())
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def make_photos(root: Path, images: dict[str, int], *, classes: int, bases: int) -> int:
    """Writes `root/SPLIT/CLASS/*.jpg` with all cores; returns how many.

    No sample picture is in two splits.

    Args:
        images: split -> number of images, over all classes as evenly as it goes.
        bases: sample pictures a material, process and split.
    """
    processes = usable_cores()
    # not forked: this process may have used CUDA
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        work = [
            pool.submit(
                _make_share,
                root,
                split,
                count=count,
                classes=classes,
                bases=bases if number == 0 else 1,
                share=share,
                of=processes,
                seed=1000 * number + share,
            )
            for number, (split, count) in enumerate(images.items())
            for share in range(processes)
        ]
        return sum(each.result() for each in work)


def _make_share(root: Path, split: str, *, count: int, classes: int, bases: int, share: int, of: int, seed: int) -> int:
    """One process's images of a split: every `of`-th."""
    rng = np.random.default_rng(seed)
    folder = root / f".bases-{os.getpid()}-{seed}"
    make_sample_data(
        folder,
        num_classes=min(MATERIALS, max(2, classes)),
        train_per_class=bases,
        valid_per_class=0,
        test_per_class=0,
        size=BASE,
        seed=seed,
    )
    materials = [
        [Image.open(path).convert("RGB") for path in sorted(each.glob("*.jpg"))]
        for each in sorted((folder / "train").iterdir())
    ]
    shutil.rmtree(folder)
    noise = rng.normal(0, NOISE, (2 * SIZE[1], 2 * SIZE[0], 3)).astype(np.int16)
    made = 0
    for number in range(share, count, of):
        label = number % classes
        base = materials[label % len(materials)][int(rng.integers(bases))]
        path = root / split / f"class_{label:03d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(base, label // len(materials), noise, rng).save(path, quality=90)
        made += 1
    return made


def photo(base: Image.Image, tint: int, noise: Any, rng: np.random.Generator) -> Image.Image:
    """A piece of a sample picture as one of the class's photos."""
    height = int(rng.integers(BASE // 2, BASE * 3 // 4))
    width = height * SIZE[0] // SIZE[1]
    left, top = int(rng.integers(BASE - width + 1)), int(rng.integers(BASE - height + 1))
    piece = base.resize(SIZE, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(piece.convert("RGB", tint_matrix(tint))).astype(np.int16)
    x, y = int(rng.integers(SIZE[0])), int(rng.integers(SIZE[1]))
    return Image.fromarray(np.clip(pixels + noise[y : y + SIZE[1], x : x + SIZE[0]], 0, 255).astype(np.uint8))


def tint_matrix(tint: int) -> tuple[float, ...]:
    """Pillow's 3 x 4 matrix that leaves half of a picture's colours, and moves the other half towards a hue."""
    colour = colorsys.hsv_to_rgb(tint * 0.381966 % 1.0, 0.8, 1.0)  # hues as far apart as the golden ratio puts them
    rows = []
    for channel in range(3):
        own = [0.5 if channel == other else 0.0 for other in range(3)]
        rows += [each + 0.5 * colour[channel] * grey for each, grey in zip(own, (0.299, 0.587, 0.114), strict=True)]
        rows.append(0.0)
    return tuple(rows)
