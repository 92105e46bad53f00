"""Ways to round a trained model to int8, on the real engine: how often the answer is float32's.

    python deploy.py train --data DATA --weights FILE --fine-tune head --epochs 30 --seed 0    # and other seeds, bodies
    PYTHONPATH=code:. python benchmarks/bench_int8.py --data DATA --model runs/RUN/model runs/RUN/model ...

Ranges and corrections are taken anew from 64 training photographs of each model, in every way that the end of a
training knows (`training/number_formats.py`), and by the mean of the photographs' largest values, an earlier one. The
answers are OpenVINO's to all validation and test photographs. Writes benchmarks/results/int8.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from benchmarks.bench_formats import answers, photographs
from benchmarks.record import processor, write_result

from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import OpenVinoEngine
from image_classifier.training.number_formats import RANGE_PHOTOS, Body, Photos, photos, ways_to_int8
from image_classifier.vision import network
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.folders import scan
from image_classifier.vision.gate import FLOAT32, INT8, Gate, measure
from image_classifier.vision.model import build_model, load_safetensors

MEAN = "mean of the photos' largest values"
Way = tuple[str, Mapping[str, float], Mapping[str, tuple[float, ...]]]


def ways(artifact: Artifact, data: Path) -> Iterator[Way]:
    """(what it is called, ranges, corrections)."""
    model = build_model(len(artifact.classes))
    load_safetensors(model, artifact.weights_path)
    train = scan({name: data / name for name in ("train", "valid", "test")}, valid_fraction=0.0, seed=0).train
    seen = photos(train, artifact.preprocessing, RANGE_PHOTOS)
    body = Body(model.eval(), seen, Photos(images=(), labels=np.empty(0, np.int64)), lambda: None)
    with torch.inference_mode():
        yield MEAN, {name: float(values.mean()) for name, values in body.maxima().items()}, {}
        yield from ways_to_int8(body, model.get_submodule(network.HEAD).state_dict()["weight"])


def row(number: int, way: str, found: Gate) -> str:
    return (
        f"| {number} | {way} | {100 * found.agreement:.1f} % | {found.accuracy_before:.3f} -> "
        f"{found.accuracy_after:.3f} | {found.largest:.4f} | {found.median:.5f} | {found.refusal or 'passes'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, nargs="+", help="model folders")
    parser.add_argument("--data", type=Path, required=True, help="the folders they were trained on")
    options = parser.parse_args()
    rows = []
    for number, folder in enumerate(options.model, start=1):
        artifact = load_model(folder)
        images, labels = zip(*photographs(options.data, artifact), strict=True)
        exact = answers(Classifier(artifact, OpenVinoEngine(artifact, FLOAT32)), list(images))
        for way, ranges, corrections in ways(artifact, options.data):
            manifest = dataclasses.replace(artifact.manifest, ranges=dict(ranges), corrections=dict(corrections))
            rounded = dataclasses.replace(artifact, manifest=manifest)
            given = answers(Classifier(rounded, OpenVinoEngine(rounded, INT8)), list(images))
            rows.append(row(number, way, measure(exact, given, np.array(labels))))
            print(rows[-1], flush=True)
    text = [
        "# Ways to int8",
        "",
        "`PYTHONPATH=code:. python benchmarks/bench_int8.py --data DATA --model runs/RUN/model ...`",
        "",
        f"Answers of OpenVINO in int8 against those in {FLOAT32} to {len(labels)} validation and test photographs, "
        f"{len(options.model)} models of {len(artifact.classes)} classes ({processor()}). Ranges and corrections are "
        f"of {RANGE_PHOTOS} training photographs.",
        "",
        "| model | way | same answer | accuracy | largest change of a probability | median | gate |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("int8.md", text)


if __name__ == "__main__":
    main()
