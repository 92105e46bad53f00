"""The model at work: bytes of an image in, probabilities out, and the proof that they are the right ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import ArtifactError
from image_classifier.serving.codec import Ranking
from image_classifier.serving.engines import Engine
from image_classifier.vision.artifact import Artifact, check_answer
from image_classifier.vision.preprocess import load


class Classifier:
    """An artifact on an engine."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine

    def probabilities(self, image: bytes) -> NDArray[np.float64]:
        """The bytes of one image -> (num_classes,) float64, summing to 1.

        Raises:
            ImageError, TooLarge: the bytes are no picture that can be answered.
            ArtifactError: the network computes something that is not a number.
        """
        logits = self.engine.logits(load(image, self.artifact.preprocessing)).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ArtifactError("the model's answer is not a number", "its weights or the engine are damaged")
        exponentials = np.exp(logits - logits.max())
        result: NDArray[np.float64] = exponentials / exponentials.sum()
        return result

    def rank(self, image: bytes, top_k: int) -> Ranking:
        """The `top_k` most probable labels, or all where there are fewer. Raises ImageError or TooLarge."""
        probabilities = self.probabilities(image)
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [(self.artifact.classes[i], float(probabilities[i])) for i in best]

    def check_golden(self) -> None:
        """Raises ArtifactError when this engine does not answer the golden samples as training did, but for what its
        number format costs."""
        tolerance = self.artifact.manifest.tolerance(self.engine.precision)
        for sample in self.artifact.golden:
            answer = dict(zip(self.artifact.classes, self.probabilities(sample.image), strict=True))
            check_answer(sample, self.artifact.classes, answer, tolerance=tolerance)
