"""Golden samples: a few images that travel with the model, and what it must answer to them wherever it is served."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import RequestError
from image_classifier.contract.image_formats import JPEG
from image_classifier.contract.text import as_text
from image_classifier.vision.artifact import GoldenSample
from image_classifier.vision.decode import decode
from image_classifier.vision.folders import Split
from image_classifier.vision.network import HEAD
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.temperature import NONE

MAX_BYTES = 128 * 1024  # a larger file is stored as a smaller JPEG: the samples are no ballast
JPEG_QUALITY = 90
MARGIN = 2  # times the size that preprocessing makes of it: enough to tell one way of scaling from another


def golden_samples(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    count: int,
    *,
    features: Callable[[bytes], NDArray[np.float32]] | None = None,
    temperature: float = NONE,
) -> list[GoldenSample]:
    """Takes `count` readable images, of as many classes as there are, with the probabilities `model` gives them.

    The probabilities are those of the stored bytes, computed in float32 on the CPU, one image at a time: the reference
    every other engine and precision is held against. `model` is moved to the CPU.

    Args:
        features: what the head sees of a file's bytes, (FEATURES,), in float32; raises what `decode` raises. Without
            it the whole network computes.
        temperature: what the logits are divided by.
    """
    model = model.cpu().eval()
    network = model if features is None else model.get_submodule(HEAD)
    samples: list[GoldenSample] = []
    for path in by_turns(split):
        if len(samples) == count:
            break
        name = path.relative_to(split.root)
        try:
            image = path.read_bytes()
            if len(image) > MAX_BYTES:
                name, image = name.with_suffix(JPEG.suffixes[0]), smaller_jpeg(image, preprocessing)
            seen = load(image, preprocessing) if features is None else features(image)
        except (RequestError, OSError):  # counted and named when it was evaluated
            continue
        with torch.inference_mode():
            inputs = torch.from_numpy(seen)[None]  # (1, 3, H, W) or (1, FEATURES) float32
            if features is None:
                inputs = inputs.to(memory_format=torch.channels_last)
            probabilities = (network(inputs).double() / temperature).softmax(1)[0].tolist()
        samples.append(GoldenSample(as_text(name), image, tuple(probabilities)))
    return samples


def by_turns(split: Split) -> Iterator[Path]:
    """The images of a split, one of each class, then a second of each, and so on."""
    taken: dict[int, int] = {}
    turns = []
    for path, label in zip(split.paths, split.labels, strict=True):
        taken[label] = taken.get(label, 0) + 1
        turns.append((taken[label], label, path))
    return (path for _, _, path in sorted(turns))


def smaller_jpeg(source: bytes, preprocessing: Preprocessing) -> bytes:
    """The picture as a JPEG with hardly more pixels than preprocessing makes use of. Raises ImageError."""
    side = MARGIN * preprocessing.resize_size
    image = decode(source, min_side=side)
    scale = min(1.0, side / min(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, JPEG.pillow, quality=JPEG_QUALITY)
    return buffer.getvalue()
