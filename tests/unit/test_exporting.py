"""Models for other programs: written, read back, and held against the golden samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from image_classifier.cli.main import main
from image_classifier.contract.endpoint import EXPORT_FORMATS
from image_classifier.contract.errors import ArtifactError
from image_classifier.serving.exporting import export
from image_classifier.serving.quiet_openvino import openvino
from image_classifier.vision.artifact import load_model, pack
from image_classifier.vision.preprocess import load


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # TorchScript's
def test_a_model_is_written_with_its_labels_and_nothing_else_is_left(
    kind: str, model_dir: Path, tmp_path: Path
) -> None:
    artifact = load_model(model_dir)
    file = tmp_path / f"model{EXPORT_FORMATS[kind]}"
    export(artifact, kind, file)
    weights = {"model.bin"} if kind == "openvino" else set()
    assert {path.name for path in tmp_path.iterdir()} == {file.name, f"{file.name}.json", *weights}
    recipe = json.loads((tmp_path / f"{file.name}.json").read_text(encoding="utf-8"))
    assert recipe["labels"] == list(artifact.classes)
    assert recipe["preprocessing"]["image_size"] == 64


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_another_program_gets_the_same_answers_to_many_images_at_once(
    kind: str, model_dir: Path, tmp_path: Path
) -> None:
    artifact = load_model(model_dir)
    file = tmp_path / f"model{EXPORT_FORMATS[kind]}"
    export(artifact, kind, file)
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    batch = np.stack([load(sample.image, artifact.preprocessing) for sample in artifact.golden])
    logits = compiled(batch)[0].astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    expected = [sample.probabilities for sample in artifact.golden]
    assert shares / shares.sum(1, keepdims=True) == pytest.approx(np.array(expected), abs=1e-3)


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_what_answers_otherwise_is_refused_and_not_kept(kind: str, model_dir: Path, tmp_path: Path) -> None:
    artifact = load_model(model_dir)
    first, *others = artifact.golden
    turned = dataclasses.replace(first, probabilities=tuple(reversed(first.probabilities)))
    file = tmp_path / f"model{EXPORT_FORMATS[kind]}"
    with pytest.raises(ArtifactError, match="what was written differs: the model does not reproduce"):
        export(dataclasses.replace(artifact, golden=(turned, *others)), kind, file)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_and_what_is_wrong(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(model_dir, tmp_path / "model.tar.gz")
    assert main(["export", "model.tar.gz"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "model\tmodel.onnx"
    assert (tmp_path / "model.onnx").stat().st_size > 90_000_000
    assert main(["export", "model.tar.gz", "--out", "model.bin"]) == 2
    (tmp_path / "file").touch()
    assert main(["export", "model.tar.gz", "--out", "file/model.onnx"]) == 1
    said = capsys.readouterr().err
    assert "error: cannot write " in said
    assert "Traceback" not in said
