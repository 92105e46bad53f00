"""The temperature: it finds what is wrong with the confidence, keeps every answer, and is held where photos are few."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import jpeg
from tests.head_training import CONFIG
from tests.unit.test_artifact import edit_manifest, write
from tests.unit.test_head_jobs import job

from image_classifier import load
from image_classifier.cli import show_answers
from image_classifier.contract.errors import ArtifactError
from image_classifier.contract.outputs import RESULT, TEST_PREDICTIONS, read_result
from image_classifier.launch.client import Answer, read_answer
from image_classifier.report import gather, render
from image_classifier.report.calibration import calibration
from image_classifier.report.facts import to_text
from image_classifier.serving.codec import encode
from image_classifier.serving.exporting import export
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.manifest import Manifest
from image_classifier.vision.model import build_model, load_safetensors
from image_classifier.vision.preprocess import load as load_picture
from image_classifier.vision.temperature import (
    HIGHEST,
    LOWEST,
    MIN_PHOTOS,
    abstain_below,
    calibrate,
    parse_calibration,
    probabilities_of,
)


def drawn(count: int, num_classes: int = 5, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that are as sure as they are right: the labels are drawn from the probabilities."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, num_classes))
    cumulated = probabilities_of(logits).cumsum(1)
    return logits, (random.uniform(size=(count, 1)) > cumulated).sum(1).clip(0, num_classes - 1)


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.5, 4.0])
def test_logits_that_are_too_large_or_too_small_are_put_right(factor: float) -> None:
    logits, labels = drawn(4000)
    found = calibrate(factor * logits, labels)
    assert found.temperature == pytest.approx(factor, rel=0.06)
    assert found.loss_after <= found.loss_before
    assert found.error_after < 0.03
    assert found.photos == 4000


def test_it_is_where_torch_finds_the_least_loss() -> None:
    logits, labels = drawn(300, seed=3)
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], line_search_fn="strong_wolfe", max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = torch.from_numpy(3 * logits) / log.exp()
        prior = log.square() / (2 * math.log(2) ** 2)
        value = torch.nn.functional.cross_entropy(scaled, torch.from_numpy(labels), reduction="sum") + prior
        value.backward()
        return value

    optimizer.step(loss)
    assert calibrate(3 * logits, labels).temperature == pytest.approx(log.exp().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.eye(3)[np.arange(60) % 3] * 4.0, np.arange(60) % 3),
        (np.eye(3)[np.arange(60) % 3] * 400.0, np.arange(60) % 3),
        (np.eye(3)[np.arange(60) % 3] * 400.0, (np.arange(60) + 1) % 3),
        (np.zeros((60, 3)), np.arange(60) % 3),
        (np.full((60, 3), 3e38), np.arange(60) % 3),
        (np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3),
    ],
    ids=["all right", "all right and sure", "all wrong and sure", "no answer", "huge", "guessing"],
)
def test_it_is_bounded_and_never_makes_the_loss_worse(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    found = calibrate(logits, labels)
    assert LOWEST <= found.temperature <= HIGHEST
    assert found.loss_after <= found.loss_before
    assert (probabilities_of(logits, found.temperature).argmax(1) == logits.argmax(1)).all()


def test_few_photos_and_numbers_that_are_none_change_nothing() -> None:
    logits, labels = drawn(MIN_PHOTOS - 1)
    assert calibrate(3 * logits, labels).temperature == 1.0
    assert calibrate(np.empty((0, 2)), np.empty(0, np.int64)).temperature == 1.0
    logits, labels = drawn(500)
    with_nan = np.concatenate([2 * logits, np.full((40, 5), np.nan)])
    assert calibrate(with_nan, np.concatenate([labels, np.zeros(40, np.int64)])) == calibrate(2 * logits, labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data and the job of a head that has validation photos enough."""
    place = tmp_path_factory.mktemp("calibrated")
    data = place / "data"
    for split, count in (("train", 8), ("valid", 12), ("test", 4)):
        for label in range(2):
            folder = data / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(jpeg(100 * label + number + 40 * len(split)))
    paths = job(place / "job", data, dataclasses.replace(CONFIG, epochs=6))
    return data, paths.base


@pytest.fixture
def artifact(trained: tuple[Path, Path]) -> Artifact:
    return load_model(trained[1] / "model")


def test_a_training_writes_it_and_all_figures_are_of_it(trained: tuple[Path, Path], artifact: Artifact) -> None:
    folder = trained[1] / "output" / "data"
    result = read_result(folder)
    found = parse_calibration(result["calibration"])
    assert artifact.manifest.temperature == found["temperature"] != 1.0
    assert found["loss_after"] <= found["loss_before"]
    model = build_model(len(artifact.classes)).eval()
    load_safetensors(model, artifact.weights_path)
    rows = TEST_PREDICTIONS.read(folder)
    with torch.inference_mode():
        for path, label, predicted, probability in rows[:3]:
            inputs = torch.from_numpy(load_picture(trained[0] / "test" / path, artifact.preprocessing))[None]
            logits = model(inputs)[0].double()
            expected = (logits / found["temperature"]).softmax(0).max()
            assert float(probability) == pytest.approx(float(expected), abs=2e-4)
            assert artifact.classes[int(logits.argmax())] == predicted
            assert label in artifact.classes
    assert result["uncalibrated"]["test:loss"] != result["metrics"]["test:loss"]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # TorchScript's
def test_the_python_door_and_the_exports_answer_with_it(
    trained: tuple[Path, Path], artifact: Artifact, tmp_path: Path
) -> None:
    sample = artifact.golden[0]
    answer = load(trained[1] / "model").predict(sample.image)
    assert answer.probability == pytest.approx(max(sample.probabilities), abs=1e-3)
    for kind in ("onnx", "torchscript"):
        export(artifact, kind, tmp_path / f"model.{kind}")
    recipe = json.loads((tmp_path / "model.onnx.json").read_text())
    assert recipe["temperature"]["value"] == artifact.manifest.temperature
    network = torch.jit.load(str(tmp_path / "model.torchscript"))  # type: ignore[no-untyped-call]
    logits = network(torch.from_numpy(load_picture(sample.image, artifact.preprocessing))[None])[0]
    assert logits.double().softmax(0).tolist() == pytest.approx(sample.probabilities, abs=1e-3)


def test_the_report_says_what_it_does(trained: tuple[Path, Path]) -> None:
    facts = gather(trained[1])
    assert "The logits are divided by a temperature of" in render(facts)
    assert to_text(facts)
    for damage in ({"temperature": -1}, {}, [], {**facts["scores"]["calibration"], "photos": "many"}):
        values = read_result(trained[1] / "output" / "data") | {"calibration": damage}
        folder = trained[1].parent / "damaged" / "output" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        RESULT.write(folder, values)
        assert "temperature" not in calibration(gather(folder.parents[1]))


def test_a_model_without_one_is_as_it_was(tmp_path: Path) -> None:
    write(tmp_path)
    written = (tmp_path / "manifest.json").read_bytes()
    assert b"temperature" not in written
    assert Manifest.from_bytes(written).temperature == 1.0


@pytest.mark.parametrize(("coverage", "answered"), [(0.0, 300), (0.5, 150), (0.7, 210), (0.901, 271), (1.0, 300)])
def test_so_many_images_are_answered_as_was_asked(coverage: float, answered: int) -> None:
    logits, labels = drawn(300)
    temperature = calibrate(logits, labels).temperature
    limit = abstain_below(logits, temperature, coverage)
    confidence = probabilities_of(logits, temperature).max(1)
    assert (confidence >= limit).sum() == answered
    right = probabilities_of(logits).argmax(1) == labels
    assert right[confidence >= limit].mean() >= right.mean()


@pytest.mark.parametrize(("coverage", "answered"), [(0.5, 150), (1.0, 300)])
def test_the_limit_lies_where_no_rounding_decides(coverage: float, answered: int) -> None:
    """A server's engine comes to the same answers but for rounding."""
    logits, _ = drawn(300)
    limit = abstain_below(logits, 1.0, coverage)
    confidence = probabilities_of(logits, 1.0).max(1)
    for rounded in (confidence * (1 - 1e-6), confidence * (1 + 1e-6)):
        assert (rounded >= limit).sum() == answered


def test_few_photos_are_no_reason_to_abstain() -> None:
    logits, _ = drawn(MIN_PHOTOS - 1)
    assert abstain_below(logits, 1.0, 0.5) == 0.0
    assert abstain_below(np.full((50, 3), np.nan), 1.0, 0.5) == 0.0
    assert abstain_below(np.zeros((50, 2)), 1.0, 0.5) == 0.5  # all are as sure: all are answered


def test_a_model_abstains_at_the_endpoint_and_in_python_where_it_is_not_sure(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    place = tmp_path / "job"
    shutil.copytree(trained[1], place, symlinks=True)
    (place / "input" / "data").unlink()
    shutil.rmtree(place / "model")
    paths = job(place, trained[0], dataclasses.replace(CONFIG, epochs=6, abstain_coverage=0.5))  # it only finishes
    artifact = load_model(paths.model)
    found = read_result(paths.output_data)["abstain"]
    assert artifact.manifest.abstain_below == found["below"] > 0.5
    model = load(paths.model)
    answers = model.predict(sorted((trained[0] / "valid").glob("*/*.jpg")))
    assert sum(not answer.abstain for answer in answers) == 12
    assert all(answer.abstain == (answer.probability < found["below"]) for answer in answers)
    assert "The model abstains where its most probable class has less than" in render(gather(place))
    tested = model.predict(sorted((trained[0] / "test").glob("*/*.jpg")))
    assert found["coverage"] == pytest.approx(sum(not answer.abstain for answer in tested) / len(tested))


def test_an_answer_says_that_the_model_abstains_only_where_it_does() -> None:
    ranking = [("cat", 0.6), ("dog", 0.4)]
    body = encode(ranking, model="f00d", response_type="application/json", abstain=True).body
    assert json.loads(body)["abstain"] is True
    assert read_answer(body) == ((("cat", 0.6), ("dog", 0.4)), "f00d", True)
    body = encode(ranking, model="f00d", response_type="application/json").body
    assert "abstain" not in json.loads(body)
    assert not read_answer(body).abstain
    csv_body = encode(ranking, model="f00d", response_type="text/csv", abstain=True).body
    assert csv_body == b"cat,0.600000\ndog,0.400000\n"


def test_predict_shows_that_the_model_abstains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        Answer(file="a.jpg", predictions=(("cat", 0.6), ("dog", 0.4)), model="f00d", abstain=True),
        Answer(file="b.jpg", predictions=(("dog", 0.9), ("cat", 0.1)), model="f00d"),
        Answer(file="c.jpg", error="the file is empty (zero bytes)"),
    ]
    show_answers.stream(answers, show_answers.writer(as_json=False, csv_file=None, top_k=1, total=3), 3)
    assert capsys.readouterr().out.splitlines()[1:3] == ["a.jpg\tabstains (cat)\t0.6000", "b.jpg\tdog\t0.9000"]
    show_answers.stream(answers, show_answers.writer(as_json=True, csv_file=None, top_k=1, total=3), 3)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("abstain") for line in lines] == [True, None, None]
    for asked, header in ((False, "file,label,probability,error"), (True, "file,label,probability,abstain,error")):
        to = show_answers.writer(as_json=False, csv_file=tmp_path / "a.csv", top_k=1, total=3, with_abstain=asked)
        show_answers.stream(answers, to, 3)
        rows = (tmp_path / "a.csv").read_text().splitlines()
        assert rows[0] == header
        assert {row.count(",") for row in rows} == {header.count(",")}
    assert rows[1:] == [
        "a.jpg,cat,0.600000,true,",
        "b.jpg,dog,0.900000,false,",
        "c.jpg,,,,the file is empty (zero bytes)",
    ]


@pytest.mark.parametrize("value", [-0.1, 1.1, "NaN", None])
def test_a_limit_that_is_no_probability_is_refused(tmp_path: Path, value: object) -> None:
    write(tmp_path)
    edit_manifest(tmp_path, lambda values: values.update(abstain_below=value))
    with pytest.raises(ArtifactError):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [0, -1, 1e9, "NaN", None, "warm"])
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    write(tmp_path)
    edit_manifest(tmp_path, lambda values: values.update(temperature=value))
    with pytest.raises(ArtifactError):
        load_model(tmp_path)
