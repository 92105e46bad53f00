"""BentoML with a worker a core: `bentoml serve bento_server:BentoPhotos`, BENCH_WEIGHTS and BENCH_WORKERS set.

Its documentation's image service: a picture as the root of the input, one thread a worker for what computes.
"""

from __future__ import annotations

import os

import bentoml
from photo_model import PhotoModel
from PIL import Image


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), threads=1, traffic={"timeout": 60})
class BentoPhotos:
    """One request, one photograph."""

    def __init__(self) -> None:
        self.model = PhotoModel(os.environ["BENCH_WEIGHTS"])

    @bentoml.api(route="/invocations")
    def classify(self, image: Image.Image, /) -> dict:  # type: ignore[type-arg]  # what BentoML takes
        return self.model.answer(image)
