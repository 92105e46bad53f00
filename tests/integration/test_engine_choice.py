"""Which number format serves: measured costs, measured speed, a setting that overrules both, and proof by samples."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.conftest import MODEL_CLASSES, jpeg

from image_classifier.contract.errors import ArtifactError, ConfigError
from image_classifier.serving import choice as choosing
from image_classifier.serving.choice import choose
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import OpenVinoEngine, TorchEngine
from image_classifier.training import number_formats
from image_classifier.training.number_formats import Folded, Half, Int8, Measured, measure_formats, to_int8
from image_classifier.vision import network
from image_classifier.vision.artifact import Artifact, load_model, write_model
from image_classifier.vision.folders import Split
from image_classifier.vision.gate import Gate
from image_classifier.vision.model import build_model, load_safetensors
from image_classifier.vision.preprocess import load

FINE = Gate(
    photos=100,
    agreement=1.0,
    accuracy_before=1.0,
    accuracy_after=1.0,
    largest=0.1,
    median=0.01,
    calibration_before=0.0,
    calibration_after=0.0,
)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> torch.nn.Module:
    artifact = load_model(model_dir)
    found = build_model(len(MODEL_CLASSES))
    load_safetensors(found, artifact.weights_path)
    return found.eval()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    root = tmp_path_factory.mktemp("photos")
    paths, labels = [], []
    for number in range(24):
        label = number % len(MODEL_CLASSES)
        path = root / str(label) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(100 + number))
        paths.append(path)
        labels.append(label)
    return Split(name="valid", root=root, paths=tuple(paths), labels=tuple(labels))


@pytest.fixture(scope="module")
def measured(model: torch.nn.Module, split: Split, model_dir: Path) -> Measured:
    return measure_formats(model, split, split, load_model(model_dir).preprocessing)


@pytest.fixture
def artifact(model_dir: Path, measured: Measured) -> Artifact:
    """The untrained model, said to cost nothing in any format."""
    return with_gates(load_model(model_dir), measured, int8=FINE, bfloat16=FINE)


def with_gates(artifact: Artifact, measured: Measured, **gates: Gate) -> Artifact:
    manifest = dataclasses.replace(artifact.manifest, ranges=measured.ranges, gates=gates)
    return dataclasses.replace(artifact, manifest=manifest)


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_ranges_are_of_the_tensors_that_torch_computes(
    model: torch.nn.Module, split: Split, artifact: Artifact, measured: Measured
) -> None:
    """Hooks on the network itself, not on the folded one that the ranges came from."""
    seen: dict[str, float] = {}

    def note(name: str, tensor: torch.Tensor) -> None:
        seen[name] = max(seen.get(name, 0.0), float(tensor.abs().max()))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name in network.layers()
    ]
    for block in network.blocks():
        if (layer := block.shortcut) is not None:
            name = network.shortcut_output(layer)
            norm = model.get_submodule(layer.norm)
            hooks.append(norm.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
    with torch.inference_mode():
        for path in split.paths:
            model(torch.from_numpy(load(path, artifact.preprocessing))[None])
    for hook in hooks:
        hook.remove()
    assert seen.keys() == network.activations().keys()
    if measured.gates["int8"].method == "largest value of all photos":
        assert measured.ranges == pytest.approx(seen, rel=1e-3)
    assert all(measured.ranges[name] <= seen[name] * 1.001 for name in seen)


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_the_simulation_rounds_as_the_engine_does(
    model: torch.nn.Module, artifact: Artifact, measured: Measured, precision: str
) -> None:
    folded, engine = Folded(model.state_dict()), OpenVinoEngine(artifact, precision)
    half = Half(torch.bfloat16)
    work = folded.rounded(to_int8 if precision == "int8" else half.weight)
    errors, changes = [], []
    for seed in range(12):
        image = load(jpeg(200 + seed), artifact.preprocessing)
        with torch.inference_mode():
            batch = torch.from_numpy(image)[None]
            exact = probabilities(model(batch)[0].numpy())
            rounded = Int8(measured.ranges) if precision == "int8" else half
            simulated = probabilities(work.logits(batch, rounded)[0].numpy())
        found = probabilities(engine.logits(image))
        errors.append(np.abs(found - exact).max())
        changes.append(np.abs(simulated - exact).max())
    assert 0 < np.median(errors) < 3 * np.median(changes) + 0.01
    assert np.max(errors) < 3 * np.max(changes) + 0.01


def test_the_fastest_allowed_format_serves_and_says_so(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    for winner in ("int8", "bfloat16", "float32"):
        speeds = {"int8": 3.0, "bfloat16": 3.0, "float32": 3.0} | {winner: 2.0}
        monkeypatch.setattr(choosing, "_forward_ms", lambda each, _, known=speeds: known[each.engine.precision])
        with caplog.at_level(logging.INFO, "image_classifier.serving"):
            classifier, choice = choose(artifact)
        assert classifier.engine.precision == choice.precision == winner
        assert choice.forward_ms == speeds
        assert choice.header == f"openvino/{winner}; forward_ms=2.0"
        assert f"engine: openvino/{winner}" in caplog.text
        assert choice.to_json()["forward_ms"][winner] == 2.0


class Waiting:
    """An engine that is kept from its work, as on a machine that is busy with other things."""

    precision = "float32"

    def __init__(self, name: str) -> None:
        self.name = name

    def logits(self, image: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return np.zeros(len(image), np.float32)


def test_waiting_for_a_busy_processor_counts_only_where_another_one_computes(artifact: Artifact) -> None:
    on_cpu, on_gpu = (
        choosing._forward_ms(Classifier(artifact, Waiting(name)), np.inf) for name in ("openvino", "torch")
    )
    assert on_cpu < 25 < 50 <= on_gpu


def test_a_format_that_costs_too_much_is_not_even_loaded_and_named_with_its_figure(
    artifact: Artifact, measured: Measured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    costly = with_gates(artifact, measured, int8=dataclasses.replace(FINE, agreement=0.5))
    with caplog.at_level(logging.INFO, "image_classifier.serving"):
        _, choice = choose(costly)
    assert choice.precision == "float32"
    assert "50.0% of 100 photos" in choice.refused["int8"]
    assert choice.refused["bfloat16"] == "the model does not say what it costs"
    assert "openvino/int8 is not considered: 50.0% of 100 photos" in caplog.text


def test_a_format_that_fails_its_golden_samples_is_refused_and_the_next_serves(
    artifact: Artifact, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    tight = dataclasses.replace(FINE, largest=0.0)
    wrong = dict.fromkeys(measured.ranges, 1e-3)  # every activation is cut off
    broken = with_gates(artifact, Measured(ranges=wrong, gates={}), int8=tight)
    _, choice = choose(broken)
    assert choice.precision == "float32"
    assert "does not reproduce its golden sample" in choice.refused["int8"]


def test_the_setting_overrules_speed_and_gate_but_not_the_golden_samples(
    artifact: Artifact, measured: Measured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    monkeypatch.setenv("CLASSIFIER_SERVE_PRECISION", "float32")
    _, choice = choose(artifact)
    assert (choice.precision, choice.asked_for, set(choice.forward_ms)) == ("float32", True, {"float32"})
    monkeypatch.setenv("CLASSIFIER_SERVE_PRECISION", "int8")
    costly = with_gates(artifact, measured, int8=dataclasses.replace(FINE, agreement=0.5, largest=0.9))
    _, choice = choose(costly)
    assert choice.precision == "int8"
    assert "serves because CLASSIFIER_SERVE_PRECISION says so: 50.0% of 100 photos" in caplog.text
    wrong = Measured(ranges=dict.fromkeys(measured.ranges, 1e-3), gates={})
    with pytest.raises(ArtifactError, match="golden sample"):
        choose(with_gates(artifact, wrong, int8=FINE))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [("int4", "must be one of auto, float32"), ("float16", "openvino does not compute in")],
)
def test_a_format_that_is_none_here_is_a_sentence(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, wanted: str, sentence: str
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    monkeypatch.setenv("CLASSIFIER_SERVE_PRECISION", wanted)
    with pytest.raises(ConfigError, match=sentence):
        choose(artifact)


def test_an_older_model_serves_float32_and_bfloat16_when_asked(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    _, choice = choose(load_model(model_dir))
    assert choice.precision == "float32"
    assert set(choice.refused) == {"int8", "bfloat16"}
    monkeypatch.setenv("CLASSIFIER_SERVE_PRECISION", "int8")
    with pytest.raises(ArtifactError, match="no ranges for int8"):
        choose(load_model(model_dir))


def test_torch_computes_in_each_of_its_formats(artifact: Artifact) -> None:
    image = load(artifact.golden[0].image, artifact.preprocessing)
    exact = TorchEngine(artifact, "cpu", "float32").logits(image)
    for precision in ("float16", "bfloat16"):
        engine = TorchEngine(artifact, "cpu", precision)
        assert engine.precision == precision
        assert 0 < np.abs(engine.logits(image) - exact).max() < 0.1 * np.abs(exact).max()


def test_forgotten_weights_change_no_answer(artifact: Artifact) -> None:
    engine = OpenVinoEngine(artifact, "float32")
    answers = [engine.logits(load(sample.image, artifact.preprocessing)) for sample in artifact.golden]
    again = OpenVinoEngine(artifact, "float32")
    for sample, answer in zip(artifact.golden, answers, strict=True):
        assert again.logits(load(sample.image, artifact.preprocessing)).tobytes() == answer.tobytes()
        assert probabilities(answer) == pytest.approx(sample.probabilities, abs=1e-5)


def test_unreadable_photos_are_left_out_and_a_stop_ends_the_measurement(
    model: torch.nn.Module, split: Split, artifact: Artifact, tmp_path: Path
) -> None:
    broken = tmp_path / "0" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    damaged = dataclasses.replace(split, paths=(broken, *split.paths[1:]))
    found = number_formats.photos(damaged, artifact.preprocessing, 100)
    assert len(found.labels) == sum(map(len, found.images)) == len(split.paths) - 1
    nothing = dataclasses.replace(split, paths=(broken,), labels=(0,))
    assert measure_formats(model, nothing, split, artifact.preprocessing) == Measured(ranges={}, gates={})

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_formats(model, split, split, artifact.preprocessing, pause=stop)


def test_photos_of_the_golden_samples_measure_nothing(split: Split, artifact: Artifact) -> None:
    everything = number_formats.photos(split, artifact.preprocessing, 100)
    rest = number_formats.photos(split, artifact.preprocessing, 100, skip=4)
    assert torch.equal(torch.cat(everything.images)[4:], torch.cat(rest.images))
    assert everything.labels[4:].tolist() == rest.labels.tolist()


def test_a_format_that_the_processor_lacks_kernels_for_is_refused_and_another_serves(
    artifact: Artifact, tmp_path: Path
) -> None:
    """oneDNN is told to be on an older processor, where OpenVINO cannot compute in bfloat16 at all."""
    manifest = artifact.manifest
    write_model(
        tmp_path / "model",
        weights=load_file(artifact.weights_path),
        classes=artifact.classes,
        preprocessing=artifact.preprocessing,
        golden=artifact.golden,
        config={},
        metrics={},
        data_fingerprint="",
        versions={},
        ranges=manifest.ranges,
        gates=manifest.gates,
    )
    program = (
        "from pathlib import Path; from image_classifier.serving.choice import choose;"
        "from image_classifier.vision.artifact import load_model;"
        f"print(choose(load_model(Path({str(tmp_path / 'model')!r})))[1].to_json())"
    )
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[2] / "code"),
        "CLASSIFIER_ENGINE": "openvino",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "'precision': 'int8'" in ended.stdout or "'precision': 'float32'" in ended.stdout
    assert "'float32':" in ended.stdout
