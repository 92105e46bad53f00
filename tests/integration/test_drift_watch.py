"""The drift watch of the real server program, whose workers are forked: asked for pictures that are all too dark."""

from __future__ import annotations

import concurrent.futures
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors.numpy import load_file
from tests.conftest import jpeg
from tests.server_program import PATIENCE_S, WORKERS, Program, free_port, start, wait_until, wait_until_ready

from image_classifier.serving.classifier import Classifier
from image_classifier.serving.drift_watch import MIN_ANSWERS
from image_classifier.serving.engines import OpenVinoEngine
from image_classifier.vision.artifact import load_model, write_model
from image_classifier.vision.drift import picture_statistics, reference_of, sample
from image_classifier.vision.preprocess import load_pixels


@pytest.fixture(scope="module")
def watched(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, str]]:
    """A server with a model that has a reference, and the address of its metrics."""
    artifact = load_model(model_dir)
    classifier = Classifier(artifact, OpenVinoEngine(artifact))
    rows = []
    for seed in range(60):
        answer = classifier.probabilities(jpeg(seed))
        pixels = load_pixels(jpeg(seed), artifact.preprocessing)
        rows.append([answer.argmax(), answer.max(), *picture_statistics(sample(pixels)[None])[0]])
    base = tmp_path_factory.mktemp("watched")
    write_model(
        base / "model",
        weights=load_file(artifact.weights_path),
        classes=artifact.classes,
        preprocessing=artifact.preprocessing,
        golden=artifact.golden,
        config={},
        metrics={},
        data_fingerprint="",
        versions={},
        reference=reference_of(np.array(rows, np.float64)),
    )
    metrics = free_port()
    program = start(base, base / "tmp", CLASSIFIER_METRICS_PORT=str(metrics), CLASSIFIER_ENGINE="openvino")
    try:
        wait_until_ready(program)
        yield program, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        program.process.terminate()
        program.process.wait(PATIENCE_S)


def darker(image: bytes) -> bytes:
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    file = io.BytesIO()
    Image.fromarray(pixels // 5).save(file, "JPEG")
    return file.getvalue()


def test_pictures_that_are_too_dark_are_told_of_once_in_log_and_metrics(watched: tuple[Program, str]) -> None:
    program, metrics = watched
    assert "classifier_drift_answers_total 0.0" in requests.get(metrics, timeout=PATIENCE_S).text
    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda seed: program.post(darker(jpeg(seed))), range(100, 100 + MIN_ANSWERS)))
    assert {answer.status_code for answer in answers} == {200}
    wait_until(lambda: "drift:" in program.output, program)
    assert len(list(program.temporary.glob("ic-*/seen/*"))) == WORKERS
    (line,) = [line for line in program.lines if "drift:" in line]
    assert f"the last {MIN_ANSWERS} answers depart from the model's validation images" in line
    assert "mean_red" in line
    found = requests.get(metrics, timeout=PATIENCE_S).text
    assert f"classifier_drift_answers_total {float(MIN_ANSWERS)}" in found
    assert 'classifier_drift_departed{statistic="mean_green"} 1.0' in found
    assert requests.get(f"{program.url}/ping", timeout=PATIENCE_S).status_code == 200
