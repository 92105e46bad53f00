"""What a number format costs: the figures, the verdict on them, and how far an answer may be off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_artifact import edit_manifest, write

from image_classifier.contract.errors import ArtifactError
from image_classifier.vision import network
from image_classifier.vision.artifact import load_model, pack, unpack
from image_classifier.vision.gate import FLOAT32_TOLERANCE, MAX_TOLERANCE, Gate, measure

GOOD = Gate(
    photos=100,
    agreement=1.0,
    accuracy_before=0.9,
    accuracy_after=0.9,
    largest=0.04,
    median=0.002,
    calibration_before=0.05,
    calibration_after=0.06,
    method="largest value of all photos",
)
RANGES = dict.fromkeys(network.activations(), 2.5)


def answers(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float64)


def test_figures_are_those_of_the_answers() -> None:
    exact = answers((0.7, 0.3), (0.6, 0.4), (0.2, 0.8), (0.55, 0.45))
    rounded = answers((0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.45, 0.55))
    found = measure(exact, rounded, np.array([0, 0, 1, 0]))
    assert (found.photos, found.agreement) == (4, 0.75)
    assert (found.accuracy_before, found.accuracy_after) == (1.0, 0.75)
    assert found.largest == pytest.approx(0.1)
    assert found.median == pytest.approx(0.1)


def test_an_answer_that_is_not_a_number_counts_as_wrong_and_not_as_equal() -> None:
    exact = answers((0.1, 0.9), (0.2, 0.8))
    found = measure(exact, answers((np.nan, np.nan), (0.2, 0.8)), np.array([1, 1]))
    assert found.agreement == 0.5
    assert found.accuracy_after == 0.5
    assert found.largest == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("labels", "error"),
    [([0] * 9 + [1], 0.0), ([0] * 10, 0.1), ([1] * 10, 0.9)],
    ids=["as sure as right", "less", "more"],
)
def test_calibration_error_is_the_distance_of_confidence_from_accuracy(labels: list[int], error: float) -> None:
    sure = np.tile([0.9, 0.1], (10, 1))
    found = measure(sure, sure, np.array(labels))
    assert found.calibration_before == found.calibration_after == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"photos": 19}, "measured on 19 photos, 20 are needed"),
        ({"agreement": 0.98}, "98.0% of 100 photos (93.0% .. 99.8%) have float32's answer, 99% are needed"),
        ({"agreement": 0.9, "photos": 5000}, "90.0% of 5000 photos have float32's answer, 99% are needed"),
        ({"accuracy_after": 0.89}, "accuracy falls by 1.0 points (0.0 .. 5.4) on 100 photos, 0.5 are allowed"),
    ],
)
def test_what_is_refused_is_refused_with_the_figure(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in dataclasses.replace(GOOD, **changes).refusal


def test_what_costs_nothing_or_even_helps_is_allowed() -> None:
    assert GOOD.refusal == ""
    assert dataclasses.replace(GOOD, agreement=0.99, accuracy_after=0.92).refusal == ""
    assert dataclasses.replace(GOOD, accuracy_after=0.895).refusal == ""


def test_the_tolerance_belongs_to_the_format_and_comes_from_its_gate(tmp_path: Path) -> None:
    wild = dataclasses.replace(GOOD, agreement=0.5, largest=0.9)
    write(tmp_path / "model", ranges=RANGES, gates={"int8": wild, "bfloat16": GOOD})
    manifest = load_model(tmp_path / "model").manifest
    assert manifest.tolerance("float32") == FLOAT32_TOLERANCE
    assert manifest.tolerance("bfloat16") == pytest.approx(0.061)
    assert manifest.tolerance("int8") == MAX_TOLERANCE
    assert manifest.widest_tolerance == pytest.approx(0.061)  # int8 is not to be served
    assert manifest.refusal("float32") == ""
    assert manifest.refusal("float16") == "the model does not say what it costs"


def test_ranges_and_gates_travel_with_the_model(tmp_path: Path) -> None:
    write(tmp_path / "model", ranges=RANGES, gates={"int8": GOOD})
    pack(tmp_path / "model", tmp_path / "a.tar.gz")
    manifest = unpack(tmp_path / "a.tar.gz", tmp_path / "b").manifest
    assert (manifest.ranges, manifest.gates) == (RANGES, {"int8": GOOD})


def test_an_older_model_has_neither_and_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path / "model")
    text = (tmp_path / "model" / "manifest.json").read_text(encoding="utf-8")
    assert not {"ranges", "gates"} & json.loads(text).keys()
    edit_manifest(tmp_path / "model", lambda values: values["preprocessing"].pop("draft_margin"))
    values = json.loads((tmp_path / "model" / "manifest.json").read_text(encoding="utf-8"))
    artifact = load_model(tmp_path / "model")
    assert artifact.fingerprint == values["checksum"]
    assert artifact.preprocessing.draft_margin == 2  # it goes on seeing what it was trained on
    assert artifact.manifest.widest_tolerance == FLOAT32_TOLERANCE


@pytest.mark.parametrize(
    ("member", "name", "value"),
    [
        ("ranges", "conv1", 0),
        ("ranges", "conv1", -1),
        ("ranges", "conv1", float("nan")),
        ("ranges", "conv1", "much"),
        ("ranges", "another", 1),
        ("gates", "int8", {}),
        ("gates", "int8", None),
        ("gates", "int8", dataclasses.asdict(GOOD) | {"agreement": 1.5}),
        ("gates", "int8", dataclasses.asdict(GOOD) | {"largest": float("nan")}),
        ("gates", "int8", dataclasses.asdict(GOOD) | {"photos": 0}),
        ("gates", "int8", dataclasses.asdict(GOOD) | {"photos": True}),
        ("gates", "int8", dataclasses.asdict(GOOD) | {"method": 1}),
    ],
)
def test_a_manifest_with_other_figures_is_refused(tmp_path: Path, member: str, name: str, value: object) -> None:
    write(tmp_path / "model", ranges=RANGES, gates={"int8": GOOD})
    edit_manifest(tmp_path / "model", lambda values: values[member].update({name: value}))
    with pytest.raises(ArtifactError):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("member", ["ranges", "gates"])
def test_ranges_without_what_they_cost_are_refused(tmp_path: Path, member: str) -> None:
    write(tmp_path / "model", ranges=RANGES, gates={"int8": GOOD})
    edit_manifest(tmp_path / "model", lambda values: values.pop(member))
    with pytest.raises(ArtifactError, match="without what they cost"):
        load_model(tmp_path / "model")
