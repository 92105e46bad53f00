"""The model at work: bytes of an image in, probabilities out, and the proof that they are the right ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import ArtifactError
from image_classifier.serving.codec import Ranking
from image_classifier.serving.engines import Engine
from image_classifier.vision.artifact import Artifact, check_answer
from image_classifier.vision.preprocess import load_pixels, normalise
from image_classifier.vision.temperature import probabilities_of

Noted = Callable[[NDArray[np.uint8], NDArray[np.float64]], None]
"""(what the network sees, (S, S, 3)), (its probabilities, (num_classes,)) -> nothing."""


class Classifier:
    """An artifact on an engine. `note` is called with everything that is ranked; it raises nothing."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine
        self.note: Noted = _ignore

    def probabilities(self, image: bytes) -> NDArray[np.float64]:
        """The bytes of one image -> (num_classes,) float64, summing to 1.

        Raises:
            ImageError, TooLarge: the bytes are no picture that can be answered.
            ArtifactError: the network computes something that is not a number.
        """
        return self._answer(self._see(image))

    def _see(self, image: bytes) -> NDArray[np.uint8]:
        return load_pixels(image, self.artifact.preprocessing)

    def _answer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        logits = self.engine.logits(normalise(pixels, self.artifact.preprocessing)).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ArtifactError("the model's answer is not a number", "its weights or the engine are damaged")
        return probabilities_of(logits, self.artifact.manifest.temperature)

    def rank(self, image: bytes, top_k: int) -> Ranking:
        """The `top_k` most probable labels, or all where there are fewer. Raises ImageError or TooLarge."""
        pixels = self._see(image)
        probabilities = self._answer(pixels)
        self.note(pixels, probabilities)
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [(self.artifact.classes[i], float(probabilities[i])) for i in best]

    def check_golden(self) -> None:
        """Raises ArtifactError when this engine does not answer the golden samples as training did, but for what its
        number format costs."""
        tolerance = self.artifact.manifest.tolerance(self.engine.precision)
        for sample in self.artifact.golden:
            answer = dict(zip(self.artifact.classes, self.probabilities(sample.image), strict=True))
            check_answer(sample, self.artifact.classes, answer, tolerance=tolerance)


def _ignore(pixels: NDArray[np.uint8], probabilities: NDArray[np.float64]) -> None:
    pass
