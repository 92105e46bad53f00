"""The model in formats that other programs read, each proved by the golden samples before it gets its name.

    python -m image_classifier.serving.exporting MODEL_FOLDER FORMAT FILE

A file is read back by an engine and must answer the golden samples as training did, within what float32 is granted;
one that does not is refused. Beside it stands FILE.json: labels and preprocessing, without which no network answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import image_classifier
from image_classifier.contract.endpoint import EXPORT_FORMATS
from image_classifier.contract.errors import ArtifactError, ClassifierError, ConfigError, PlatformError, describe
from image_classifier.contract.files import replacing, write_text
from image_classifier.contract.installation import how_to_install
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import Engine
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.gate import FLOAT32
from image_classifier.vision.network import HEAD
from image_classifier.vision.temperature import NONE

INPUT = "image"
HEAD_TENSORS = (f"{HEAD}.weight", f"{HEAD}.bias")


@dataclass
class _Reader:
    """What reads an exported file back, as an engine."""

    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (1, 3, H, W) -> (1, classes)
    name: str = "exported"
    precision: str = FLOAT32

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(3, H, W) float32 -> (num_classes,) float32."""
        row: NDArray[np.float32] = self.forward(image[None])[0]
        return row


def export(artifact: Artifact, kind: str, file: Path) -> None:
    """Writes `file` in one of EXPORT_FORMATS, and what belongs to it beside it.

    Raises:
        ArtifactError: the model cannot be written so, or what was written does not answer the golden samples.
        ConfigError: there is no such format.
        PlatformError: a program for it is missing, or the disk is full.
    """
    if kind not in EXPORT_FORMATS:
        raise ConfigError(f"there is no format {kind!r}", f"known: {', '.join(EXPORT_FORMATS)}")
    write, read = {"onnx": (_write_onnx, _read_openvino), "openvino": (_write_openvino, _read_openvino)}.get(
        kind, (_write_torchscript, _read_torchscript)
    )
    unproved = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")  # an IR's weights have its name, too
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(artifact, unproved)
            _prove(artifact, read(unproved))
            for made in (unproved.with_suffix(".bin"), unproved):
                if made.exists():
                    made.replace(file.with_suffix(made.suffix))
        finally:
            for made in (unproved, unproved.with_suffix(".bin")):
                made.unlink(missing_ok=True)
        write_text(
            file.with_name(f"{file.name}.json"), json.dumps(_recipe(artifact), indent=1, ensure_ascii=False) + "\n"
        )
    except OSError as error:
        raise PlatformError(f"cannot write {file}: {error.strerror or describe(error)}") from error


def _prove(artifact: Artifact, reader: Engine) -> None:
    folded = replace(artifact, manifest=replace(artifact.manifest, temperature=NONE))  # it is in the weights
    try:
        Classifier(folded, reader).check_golden()
    except ArtifactError as error:
        raise ArtifactError(f"what was written differs: {error.message}", "it is not kept") from None


def _recipe(artifact: Artifact) -> Mapping[str, Any]:
    """What a program must know besides the network."""
    size = artifact.preprocessing.image_size
    return {
        "labels": list(artifact.classes),
        "input": {"name": INPUT, "shape": ["N", 3, size, size], "layout": "NCHW", "channels": "RGB", "type": "float32"},
        "output": "logits; softmax makes probabilities of them",
        "temperature": {"value": artifact.manifest.temperature, "applied": "the head's weights are divided by it"},
        "preprocessing": artifact.preprocessing.to_json(),
        "model": artifact.fingerprint,
    }


def _weights(artifact: Artifact) -> Mapping[str, NDArray[Any]]:
    """By torchvision's names; those of the head give calibrated logits."""
    from safetensors.numpy import load_file

    found: dict[str, NDArray[Any]] = load_file(artifact.weights_path)
    for name in HEAD_TENSORS:
        found[name] = found[name] / np.float32(artifact.manifest.temperature)
    return found


def _write_onnx(artifact: Artifact, file: Path) -> None:
    from image_classifier.serving.onnx_file import onnx_model

    producer = f"image-classifier {image_classifier.__version__}"
    size = artifact.preprocessing.image_size
    with replacing(file) as stream:
        stream.write(onnx_model(_weights(artifact), image_size=size, producer=producer))


def _write_openvino(artifact: Artifact, file: Path) -> None:
    from image_classifier.serving.openvino_resnet import FoldedWeights, resnet50
    from image_classifier.serving.quiet_openvino import openvino

    size = artifact.preprocessing.image_size
    model = resnet50(FoldedWeights(_weights(artifact)), image_size=size)
    model.reshape([-1, 3, size, size])
    openvino.save_model(model, file, compress_to_fp16=False)


def _read_openvino(file: Path) -> Engine:
    from image_classifier.serving.openvino_resnet import core

    compiled = core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return _Reader(lambda images: compiled(images)[0])


def _write_torchscript(artifact: Artifact, file: Path) -> None:
    try:
        import torch

        from image_classifier.vision.model import build_model, load_safetensors
    except ImportError as error:
        raise PlatformError(
            "torch, which writes TorchScript, is not installed here", f"export onnx, or {how_to_install('train')}"
        ) from error
    model = build_model(len(artifact.classes), drawn=False)
    load_safetensors(model, artifact.weights_path)
    for name in HEAD_TENSORS:
        model.get_parameter(name).data /= artifact.manifest.temperature
    size = artifact.preprocessing.image_size
    with torch.inference_mode():
        torch.jit.trace(model.eval(), torch.zeros(1, 3, size, size)).save(str(file))  # type: ignore[no-untyped-call]


def _read_torchscript(file: Path) -> Engine:
    import torch

    network = torch.jit.load(str(file))  # type: ignore[no-untyped-call]

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
        return answer

    return _Reader(forward)


def main(argv: Sequence[str]) -> int:
    """Exports; an error is a line `error:` and one `hint:` on standard error."""
    folder, kind, file = argv
    try:
        export(load_model(Path(folder)), kind, Path(file))
    except ClassifierError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
