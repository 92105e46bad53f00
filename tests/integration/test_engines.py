"""The engines on a real artifact: they compute what torch computed when the golden samples were recorded."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.profiler import ProfilerActivity, profile

from image_classifier.contract.errors import ArtifactError, ConfigError, PlatformError
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import Engine, OpenVinoEngine, TorchEngine, load_engine, torch_network
from image_classifier.serving.openvino_resnet import FoldedWeights, core, rounded
from image_classifier.serving.quiet_openvino import openvino, ops
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.model import build_model, load_safetensors
from image_classifier.vision.preprocess import load


@pytest.fixture(scope="module")
def artifact(model_dir: Path) -> Artifact:
    return load_model(model_dir)


@pytest.fixture(scope="module", params=["openvino", "torch"])
def engine(request: pytest.FixtureRequest, artifact: Artifact) -> Engine:
    return OpenVinoEngine(artifact) if request.param == "openvino" else TorchEngine(artifact, "cpu")


def test_an_engine_reproduces_the_golden_samples_to_five_digits(engine: Engine, artifact: Artifact):
    classifier = Classifier(artifact, engine)
    for sample in artifact.golden:
        assert classifier.probabilities(sample.image) == pytest.approx(sample.probabilities, abs=1e-5)


def test_an_engine_refuses_a_tensor_of_another_size(engine: Engine):
    with pytest.raises(ValueError, match="shape"):
        engine.logits(np.zeros((3, 32, 32), np.float32))


def test_bfloat16_comes_from_the_artifact_and_stays_within_the_tolerance(artifact: Artifact):
    half = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, precision="bfloat16"))
    exact, rounded = (Classifier(a, TorchEngine(a, "cpu")).probabilities(a.golden[1].image) for a in (artifact, half))
    assert 0 < np.abs(exact - rounded).max() < 0.05


def test_weights_are_converted_once_and_not_for_every_image(artifact: Artifact):
    engine = TorchEngine(artifact, "cpu", "bfloat16")
    image = load(artifact.golden[0].image, artifact.preprocessing)
    engine.logits(image)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        engine.logits(image)
    converted = [event for event in seen.events() if event.name == "aten::_to_copy"]
    num_weights = sum(name.endswith("weight") for name in load_file(artifact.weights_path))
    assert 0 < len(converted) < 10 < num_weights


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_converting_once_computes_what_autocast_computes(artifact: Artifact, precision: str):
    model = build_model(len(artifact.classes))
    load_safetensors(model, artifact.weights_path)
    model.eval().to(memory_format=torch.channels_last)
    network = torch_network(artifact, "cpu", precision)
    for sample in artifact.golden:
        image = torch.from_numpy(load(sample.image, artifact.preprocessing))[None]
        with torch.inference_mode(), torch.autocast("cpu", dtype=getattr(torch, precision)):
            expected = model(image.to(memory_format=torch.channels_last)).float()
        with torch.inference_mode():
            assert torch.equal(network(image), expected)


def test_an_unknown_precision_is_refused(artifact: Artifact):
    odd = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, precision="int4"))
    with pytest.raises(ArtifactError, match="int4"):
        OpenVinoEngine(odd)


def test_weights_that_are_not_a_resnet50s_are_refused(artifact: Artifact):
    weights = load_file(artifact.weights_path)
    with pytest.raises(ArtifactError, match=r"fc\.bias is missing"):
        FoldedWeights({name: array for name, array in weights.items() if name != "fc.bias"})
    with pytest.raises(ArtifactError, match="not a ResNet50's"):
        FoldedWeights(weights | {"layer1.0.conv1.weight": np.zeros((64, 63, 1, 1), np.float32)})


def test_weights_are_rounded_as_openvino_rounds_them():
    weight = np.random.default_rng(0).standard_normal((64, 16, 3, 3), dtype=np.float32)
    weight[3] = 0
    weight[5, 0, 0] = [0.5, -0.5, 1.5]
    most = np.abs(weight).max((1, 2, 3), keepdims=True).clip(1e-9)
    image = ops.parameter([1], np.float32)
    expected = ops.add(ops.fake_quantize(ops.constant(weight), -most, most, -most, most, 255), image)
    compiled = core().compile_model(openvino.Model([expected], [image], ""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    levels, step = rounded(weight, np.empty(weight.shape, np.int8))
    assert levels.min() == -127
    assert levels.max() == 127
    assert np.array_equal(np.rint(compiled([np.zeros(1, np.float32)])[0] / step), levels)


def test_the_engine_variable_decides(artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLASSIFIER_ENGINE", "openvino")
    assert load_engine(artifact).name == "openvino"
    monkeypatch.setenv("CLASSIFIER_ENGINE", "tensorrt")
    with pytest.raises(ConfigError, match="tensorrt"):
        load_engine(artifact)
    monkeypatch.setenv("CLASSIFIER_ENGINE", "torch")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PlatformError, match="no usable GPU"):
        load_engine(artifact)


def test_a_cpu_worker_never_imports_torch(model_dir: Path):
    program = (
        "import sys; from pathlib import Path; from image_classifier.serving import handler, engines;"
        "from image_classifier.vision.artifact import load_model;"
        f"engines.OpenVinoEngine(load_model(Path({str(model_dir)!r})));"
        "sys.exit('torch' in sys.modules)"
    )
    code = str(Path(__file__).parents[2] / "code")
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": code}, check=False).returncode == 0


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from image_classifier.serving.engines import OpenVinoEngine
from image_classifier.vision.artifact import load_model
artifact = load_model(Path(sys.argv[1]))
first = OpenVinoEngine(artifact)
second = OpenVinoEngine(artifact)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_process_that_has_tried_several_engines_outlives_a_signal(model_dir: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(model_dir)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "code")}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
