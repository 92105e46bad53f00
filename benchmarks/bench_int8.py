"""Ways to round a trained model to int8, on the real engine: how often the answer is float32's.

    python deploy.py train --data DATA --weights FILE --fine-tune head --epochs 30 --seed 0    # and other seeds, bodies
    PYTHONPATH=code:. python benchmarks/bench_int8.py --data DATA --model runs/RUN/model runs/RUN/model ...

Ranges are taken anew from 64 training photographs of each model: in the two ways that the end of a training knows
(`training/number_formats.py`), and with the least squared error and biases corrected for what rounding takes from the
mean of a channel (`int8_corrections.py`), which is not built in. The answers are OpenVINO's to all validation and test
photographs. Writes benchmarks/results/int8.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from benchmarks.bench_formats import answers, photographs
from benchmarks.int8_corrections import Correcting, corrections_of, least_error
from benchmarks.record import processor, write_result

from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import OpenVinoEngine, folded_weights
from image_classifier.training.number_formats import RANGE_PHOTOS, RANGES, Folded, observe, photos, to_int8
from image_classifier.vision import network
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.folders import scan
from image_classifier.vision.gate import FLOAT32, INT8, Gate, measure
from image_classifier.vision.model import build_model, load_safetensors

LEAST_ERROR = "range of the least squared error"
Way = tuple[str, Mapping[str, float], Mapping[str, tuple[float, ...]]]


def ways(artifact: Artifact, data: Path) -> Iterator[Way]:
    """(what it is called, ranges, corrections)."""
    model = build_model(len(artifact.classes))
    load_safetensors(model, artifact.weights_path)
    train = scan({name: data / name for name in ("train", "valid", "test")}, valid_fraction=0.0, seed=0).train
    seen = photos(train, artifact.preprocessing, RANGE_PHOTOS)
    folded = Folded(model.state_dict())
    with torch.inference_mode():
        maxima = observe(folded, seen, torch.device("cpu"), lambda: None)
        for name, choose in RANGES.items():
            yield name, {each: choose(values) for each, values in maxima.items()}, {}
        found: dict[str, list[torch.Tensor]] = {}
        signed = network.activations()

        def look(name: str, x: torch.Tensor) -> torch.Tensor:
            found.setdefault(name, []).append(least_error(x, signed[name]))
            return x

        for batch in seen.images:
            folded.logits(batch, look)
        ranges = {name: float(torch.cat(values).mean()) for name, values in found.items()}
        ranges[network.HEAD] = float(maxima[network.HEAD].max())
        yield LEAST_ERROR, ranges, {}
        work = Correcting(folded, folded.rounded(to_int8), ranges)
        rows = np.concatenate([work.rows(batch).numpy() for batch in seen.images])
        yield f"{LEAST_ERROR}, corrected biases", ranges, corrections_of(rows, folded.weights[network.HEAD])


def in_int8(
    artifact: Artifact, ranges: Mapping[str, float], corrections: Mapping[str, tuple[float, ...]]
) -> Classifier:
    """The engine with these ranges, and biases to which the corrections are added."""
    rounded = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, ranges=dict(ranges)))
    weights = folded_weights(rounded)
    for name, more in corrections.items():
        bias = weights.biases[name]
        weights.biases[name] = bias + np.array(more, np.float32).reshape(bias.shape)
    return Classifier(rounded, OpenVinoEngine(rounded, INT8, weights))


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
            given = answers(in_int8(artifact, ranges, corrections), list(images))
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
