"""What each number format of the endpoint costs a trained model, on the real engine; and which one a server takes here.

    python deploy.py train --data DATA --weights FILE --fine-tune head
    PYTHONPATH=code:. python benchmarks/bench_formats.py --model runs/RUN/model --data DATA

The answers of OpenVINO in each format are held against torch's in float32, on all validation and test photographs,
beside what the end of the training measured on some of them with a simulation. Then a process is started for each cap
on the processor's instructions, and chooses as a server does. Writes benchmarks/results/formats.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from benchmarks.record import processor, write_result
from numpy.typing import NDArray

from image_classifier.contract.errors import ClassifierError
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import FORMATS, OpenVinoEngine, TorchEngine
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.folders import scan
from image_classifier.vision.gate import FLOAT32, Gate, measure

CAPS = {"as it is": "", "capped to AVX512_CORE_VNNI": "AVX512_CORE_VNNI"}
TRAINED = {"full": "trained", "head": "its head alone trained, on a body that has seen other pictures,"}
CHOOSE = """
import json, sys
from pathlib import Path
from image_classifier.serving.choice import choose
from image_classifier.vision.artifact import load_model
print(json.dumps(choose(load_model(Path(sys.argv[1])))[1].to_json()))
"""


def photographs(data: Path, artifact: Artifact) -> Iterator[tuple[bytes, int]]:
    """(file, index of its class) of the validation and test images."""
    folders = scan({name: data / name for name in ("train", "valid", "test")}, valid_fraction=0.0, seed=0)
    for split in folders.splits[1:]:
        for path, label in zip(split.paths, split.labels, strict=True):
            yield path.read_bytes(), artifact.classes.index(folders.classes[label])


def answers(classifier: Classifier, images: list[bytes]) -> NDArray[np.float64]:
    return np.stack([classifier.probabilities(image) for image in images])


def row(precision: str, where: str, gate: Gate) -> str:
    return (
        f"| {precision} | {where} | {gate.photos} | {100 * gate.agreement:.1f} % | "
        f"{gate.accuracy_before:.3f} -> {gate.accuracy_after:.3f} | {gate.largest:.4f} | {gate.median:.5f} | "
        f"{gate.calibration_before:.3f} -> {gate.calibration_after:.3f} | {gate.refusal or 'passes'} |"
    )


def choice(model: Path, cap: str) -> str:
    environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": cap} if cap else {})
    done = subprocess.run([sys.executable, "-c", CHOOSE, str(model)], env=environment, check=True, capture_output=True)
    found = json.loads(done.stdout)
    slowest = max(found["forward_ms"].values())
    speeds = ", ".join(f"{name} {slowest / ms:.2f}" for name, ms in found["forward_ms"].items())
    refused = "; ".join(f"{name}: {why}" for name, why in found["refused"].items())
    return f"{found['engine']}/{found['precision']}; speeds as multiples of the slowest: {speeds}" + (
        f"; refused {refused}" if refused else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--data", type=Path, required=True, help="the folders it was trained on")
    options = parser.parse_args()
    artifact = load_model(options.model)
    images, labels = zip(*photographs(options.data, artifact), strict=True)
    exact = answers(Classifier(artifact, TorchEngine(artifact, "cpu")), list(images))
    rows = []
    for precision in FORMATS["openvino"]:
        if (known := artifact.manifest.gates.get(precision)) is not None:
            rows.append(row(precision, "the training's simulation", known))
        try:
            classifier = Classifier(artifact, OpenVinoEngine(artifact, precision))
            found = measure(exact, answers(classifier, list(images)), np.array(labels))
            rows.append(row(precision, "OpenVINO", found))
        except ClassifierError as error:
            rows.append(f"| {precision} | OpenVINO | {error.message} |")
    method = artifact.manifest.gates["int8"].method if "int8" in artifact.manifest.gates else "none"
    write_result(
        "formats.md",
        [
            "# Number formats",
            "",
            "`PYTHONPATH=code:. python benchmarks/bench_formats.py --model runs/RUN/model --data DATA`",
            "",
            f"A ResNet50 of {len(artifact.classes)} classes ({', '.join(artifact.classes)}), "
            f"{TRAINED[artifact.manifest.config['fine_tune']]} at {artifact.preprocessing.image_size} pixels for "
            f"{artifact.manifest.config['epochs']} epochs. "
            f"Answers in each format against torch's in {FLOAT32} "
            f"({processor()}, OpenVINO {version('openvino')}, torch {torch.__version__}). The ranges for int8 are the "
            f"{method}.",
            "",
            "| format | on | photos | same answer | accuracy | largest change of a probability | median | "
            "calibration error | gate |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "What a server takes on this processor:",
            "",
            *(f"- {name}: {choice(options.model, cap)}" for name, cap in CAPS.items()),
        ],
    )


if __name__ == "__main__":
    main()
