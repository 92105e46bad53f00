"""A model in this process: what `from image_classifier import load` gives. No server, no torch.

The bytes go the way that they go at the endpoint: the same decoding, preprocessing, engine and labels, and the golden
samples are reproduced before the first answer.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from image_classifier.contract.errors import ArtifactError, ConfigError, ImageError, describe
from image_classifier.contract.installation import require_extra
from image_classifier.contract.text import as_text
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import FORMATS, OpenVinoEngine
from image_classifier.vision.artifact import ARCHIVE, MANIFEST, load_model, unpack
from image_classifier.vision.decode import check_file_size

Picture = str | Path | bytes
"""A file's path, or its bytes."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one picture.

    Args:
        label: the most probable class.
        probability: of that, 0..1.
        probabilities: of every class, the most probable first; they sum to 1.
        abstain: the model was trained to abstain (`abstain_coverage`) from answers as unsure as this one.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    abstain: bool = False


class LoadedModel:
    """A model that answers. Threads may share it; they take turns."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._turn = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the model's outputs."""
        return self._classifier.artifact.classes

    @property
    def fingerprint(self) -> str:
        """Names the model: what the endpoint gives with its answers."""
        return self._classifier.artifact.fingerprint

    @overload
    def predict(self, image: Picture) -> Prediction: ...  # type: ignore[overload-overlap]  # a text is a path here
    @overload
    def predict(self, image: Iterable[Picture]) -> list[Prediction]: ...
    def predict(self, image: Picture | Iterable[Picture]) -> Prediction | list[Prediction]:
        """The answer to a picture, or to each of several.

        Args:
            image: a path, the bytes of a file, or any number of them.

        Raises:
            ImageError, TooLarge: a picture cannot be read; the sentence names its path.
        """
        if isinstance(image, (str, Path, bytes)):
            return self._predict(image)
        return [self._predict(each) for each in image]

    def _predict(self, image: Picture) -> Prediction:
        if isinstance(image, bytes):
            return self._answer(image)
        path = Path(image)
        try:
            check_file_size(path, as_text(path))
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = error.strerror if isinstance(error, OSError) else ""
            raise ImageError(f"cannot read {as_text(path)}: {reason or describe(error)}") from None
        try:
            return self._answer(data)
        except ImageError as error:
            raise ImageError(error.message.replace("the file", as_text(path), 1), error.hint) from None

    def _answer(self, data: bytes) -> Prediction:
        with self._turn:
            ranked = self._classifier.rank(data, len(self.labels))
        label, probability = ranked[0]
        abstain = self._classifier.artifact.manifest.abstains(probability)
        return Prediction(label=label, probability=probability, probabilities=dict(ranked), abstain=abstain)


def load(model: str | Path, *, precision: str = "") -> LoadedModel:
    """Loads a model for this process, on its CPU.

    Args:
        model: a model.tar.gz, the folder of a run, or a model folder.
        precision: the number format to compute in, of float32, bfloat16 and int8; without it that of the weights.

    Raises:
        ArtifactError: there is no model, it is damaged or foreign, or it does not reproduce its golden samples.
        ConfigError: no such number format, or the model's training found that it costs too much.
        PlatformError: OpenVINO is not installed, the processor cannot compute in this format, or the disk is full.
    """
    require_extra("serve", "a model in a program", "openvino")
    if precision and precision not in FORMATS[OpenVinoEngine.name]:
        raise ConfigError(f"there is no precision {precision!r}", f"known: {', '.join(FORMATS[OpenVinoEngine.name])}")
    path = Path(model)
    if path.is_dir():
        for folder in (path, path / "model"):
            if (folder / MANIFEST).is_file():
                return _load(folder, precision)
        path /= ARCHIVE
    if not path.is_file():
        raise ArtifactError(f"there is no model {as_text(path)}", f"name a {ARCHIVE}, or the folder of a finished run")
    with tempfile.TemporaryDirectory(prefix="image-classifier-") as place:
        unpack(path, Path(place) / "model")
        return _load(Path(place) / "model", precision)


def _load(folder: Path, precision: str) -> LoadedModel:
    artifact = load_model(folder)
    if precision and (reason := artifact.manifest.refusal(precision)):
        raise ConfigError(f"the model does not allow {precision}: {reason}", "load it without a precision")
    classifier = Classifier(artifact, OpenVinoEngine(artifact, precision))
    classifier.check_golden()
    return LoadedModel(classifier)
