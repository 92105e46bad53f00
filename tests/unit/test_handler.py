"""The worker's side, with the model server's own Service and message format around it, and a small engine inside."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import MODEL_CLASSES, jpeg

from image_classifier.contract.errors import ArtifactError
from image_classifier.serving import handler
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.scratch import SCRATCH_VARIABLE, Scratch
from image_classifier.vision.artifact import GoldenSample, check_answer, load_model, write_model
from image_classifier.vision.preprocess import Preprocessing, load

PREPROCESSING = Preprocessing.for_image_size(32)


class MeanEngine:
    """Logits that are the channel means twice: a real function of the whole preprocessed picture."""

    name = "mean"
    precision = "float32"

    def __init__(self):
        self.seen = []

    def logits(self, image):
        self.seen.append(image)
        means = image.mean(axis=(1, 2))
        return np.concatenate([means, -means])


def softmax(logits):
    e = np.exp(np.asarray(logits, dtype=np.float64))
    return e / e.sum()


@pytest.fixture
def artifact(tmp_path):
    image = jpeg(0)
    expected = softmax(MeanEngine().logits(load(image, PREPROCESSING)))
    write_model(
        tmp_path / "model",
        weights={"unused": np.zeros(1, np.float32)},
        classes=MODEL_CLASSES,
        preprocessing=PREPROCESSING,
        golden=[GoldenSample("a.jpg", image, tuple(expected))],
        config={},
        metrics={},
        data_fingerprint="",
        versions={},
    )
    return load_model(tmp_path / "model")


@pytest.fixture
def service(artifact, monkeypatch, tmp_path):
    """The model server's wrapper around our handler, as a worker has it after loading."""
    from mms.service import Service

    scratch = Scratch(tmp_path / "ic-service")
    scratch.root.mkdir()
    scratch.create()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(scratch.root))
    monkeypatch.setattr(handler, "_marks", {})
    monkeypatch.setitem(handler._worker, "classifier", Classifier(artifact, MeanEngine()))
    return Service("model", "", None, handler.handle, None, 1)


def invoke(service, body, headers=()):
    """One request through Service.predict: (status, content type, body), as written for the frontend."""
    message = {
        "requestId": b"request-7",
        "headers": [{"name": name.encode(), "value": value.encode()} for name, value in headers],
        "parameters": [{"name": "body", "contentType": "image/jpeg", "value": bytearray(body)}],
    }
    written = bytes(service.predict([message]))
    status, _ = service.context.get_response_status(0)
    return status, service.context.get_response_content_type(0), written


def test_an_image_is_answered_with_ranked_labels(service, artifact):
    status, content_type, written = invoke(service, jpeg(1), [("X-Top-K", "2")])
    assert (status, content_type) == (200, "application/json")
    document = json.loads(written[written.index(b'{"predictions"') : written.rindex(b"}") + 1])
    expected = softmax(MeanEngine().logits(load(jpeg(1), PREPROCESSING)))
    best = np.argsort(-expected)[:2]
    assert [p["label"] for p in document["predictions"]] == [MODEL_CLASSES[i] for i in best]
    assert [p["probability"] for p in document["predictions"]] == pytest.approx(expected[best], abs=1e-6)
    assert document["model"] == artifact.fingerprint


def test_the_network_sees_the_very_tensor_validation_sees(artifact):
    engine = MeanEngine()
    Classifier(artifact, engine).probabilities(jpeg(3, 640, 360))
    assert engine.seen[0].tobytes() == load(jpeg(3, 640, 360), artifact.preprocessing).tobytes()


def test_more_classes_than_there_are_means_all(service):
    _, _, written = invoke(service, jpeg(1), [("X-Top-K", "1000")])
    assert written.count(b'"label"') == len(MODEL_CLASSES)


def test_a_body_that_is_no_image_is_400(service):
    status, content_type, written = invoke(service, b"no image at all")
    assert (status, content_type) == (400, "application/json")
    assert b'"error"' in written


def test_an_unexpected_failure_is_500_with_the_id_that_is_in_the_log(service, caplog, monkeypatch):
    def explode(*_):
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(handler._worker["classifier"].engine, "logits", explode)
    with caplog.at_level(logging.ERROR, "image_classifier.serving"):
        status, _, written = invoke(service, jpeg(1))
    assert status == 500
    assert b"request-7" in written
    assert b"secret" not in written
    assert "request-7" in caplog.text
    assert "the secret inside" in caplog.text


def test_a_form_without_a_body_is_answered(service):
    service.context.request_ids = {0: "x"}
    message = {"requestId": b"x", "headers": [], "parameters": []}
    assert b"the request has no body" in bytes(service.predict([message]))


def test_golden_samples_that_match_pass_and_others_name_the_difference(artifact):
    Classifier(artifact, MeanEngine()).check_golden()

    class Flipped(MeanEngine):
        def logits(self, image):
            return super().logits(image)[::-1]

    with pytest.raises(ArtifactError, match=r"golden sample a\.jpg: a probability is off by 0\.\d+"):
        Classifier(artifact, Flipped()).check_golden()


def test_an_answer_with_nan_or_missing_labels_does_not_count_as_golden(artifact):
    sample = artifact.golden[0]
    answer = dict(zip(artifact.classes, sample.probabilities, strict=True))
    check_answer(sample, artifact.classes, answer)
    with pytest.raises(ArtifactError):
        check_answer(sample, artifact.classes, answer | {artifact.classes[0]: float("nan")})
    with pytest.raises(ArtifactError, match="other labels"):
        check_answer(sample, artifact.classes, {artifact.classes[0]: 1.0})


def test_a_worker_that_cannot_load_reports_the_first_cause(tmp_path, monkeypatch):
    from mms.context import Context

    scratch = Scratch(tmp_path / "scratch")
    scratch.root.mkdir()
    scratch.create()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(scratch.root))
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError):
        handler.handle(None, Context("model", "", None, 1, None, ""))
    (report,) = scratch.reports().values()
    assert "there is no model in" in report.error
    assert report.engine == ""
    assert Path(report.error.rsplit(" ", 1)[-1]).name == "model"


def test_a_worker_says_since_when_it_is_busy_while_it_answers_and_never_else(service, monkeypatch):
    scratch, seen = Scratch.from_environment(), []
    engine = handler._worker["classifier"].engine
    monkeypatch.setattr(engine, "logits", lambda image: seen.append(scratch.busy_since(os.getpid())) or np.zeros(6))
    before = time.monotonic()
    assert invoke(service, jpeg(1))[0] == 200
    assert before <= seen[0] <= time.monotonic()
    assert scratch.busy_since(os.getpid()) is None
    monkeypatch.setattr(engine, "logits", lambda image: seen.append(scratch.busy_since(os.getpid())) or 1 / 0)
    assert invoke(service, jpeg(1))[0] == 500
    assert seen[1] > seen[0]
    assert scratch.busy_since(os.getpid()) is None


def test_an_answer_names_the_engine_and_the_log_the_request_as_the_client_did(service, monkeypatch, caplog):
    monkeypatch.setattr(handler._worker["classifier"].engine, "logits", lambda image: 1 / 0)
    with caplog.at_level(logging.ERROR, "image_classifier.serving"):
        status, _, written = invoke(service, jpeg(1), [("X-Request-Id", "photo-17")])
    assert (status, service.context.get_response_headers(0)["X-Engine"]) == (500, "mean")
    assert b"look for photo-17" in written
    assert "request photo-17 failed" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_an_answer_that_is_not_a_number_never_leaves(model_dir: Path, value: float) -> None:
    artifact = load_model(model_dir)

    class Broken:
        name = "broken"

        def logits(self, image: np.ndarray) -> np.ndarray:
            return np.full(len(artifact.classes), value, np.float32)

    with pytest.raises(ArtifactError, match="not a number"):
        Classifier(artifact, Broken()).rank(artifact.golden[0].image, 3)
