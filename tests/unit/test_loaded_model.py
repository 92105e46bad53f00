"""The door for Python programs: a model in this process answers as the endpoint does."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from image_classifier import load
from image_classifier.contract.errors import ArtifactError, ConfigError, ImageError
from image_classifier.vision.artifact import load_model, pack


@pytest.fixture(scope="module")
def archive(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a training leaves it."""
    path = tmp_path_factory.mktemp("run") / "model.tar.gz"
    pack(model_dir, path)
    return path


def test_a_path_bytes_and_several_are_answered_as_training_did(archive: Path, model_dir: Path, tmp_path: Path) -> None:
    artifact, model = load_model(model_dir), load(archive)
    assert (model.labels, model.fingerprint) == (artifact.classes, artifact.fingerprint)
    for sample in artifact.golden:
        (tmp_path / sample.name).write_bytes(sample.image)
    paths = [tmp_path / sample.name for sample in artifact.golden]
    answers = [model.predict(path) for path in paths]
    assert answers == model.predict(paths) == model.predict(sample.image for sample in artifact.golden)
    assert answers[0] == model.predict(str(paths[0]))
    for sample, answer in zip(artifact.golden, answers, strict=True):
        expected = dict(zip(artifact.classes, sample.probabilities, strict=True))
        assert answer.probabilities == pytest.approx(expected, abs=1e-3)
        assert list(answer.probabilities.values()) == sorted(answer.probabilities.values(), reverse=True)
        assert (answer.label, answer.probability) == next(iter(answer.probabilities.items()))
    assert model.predict([]) == []


def test_a_run_and_a_model_folder_are_loaded_too(archive: Path, model_dir: Path) -> None:
    fingerprint = load_model(model_dir).fingerprint
    assert load(archive.parent).fingerprint == load(str(model_dir)).fingerprint == fingerprint


def test_threads_get_the_answers_to_their_own_pictures(archive: Path, model_dir: Path) -> None:
    model, golden = load(archive), load_model(model_dir).golden
    expected = [model.predict(sample.image) for sample in golden]
    wrong = []

    def ask(turn: int) -> None:
        for number in range(3):
            index = (number + turn) % len(golden)
            if model.predict(golden[index].image) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bad_pictures_and_models_are_sentences_that_name_them(archive: Path, tmp_path: Path) -> None:
    model = load(archive)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.jpg is not an image"):
        model.predict(tmp_path / "text.jpg")
    for missing in (tmp_path / "nowhere.jpg", tmp_path, "a\0b"):
        with pytest.raises(ImageError, match="cannot read"):
            model.predict(missing)
    for missing in (tmp_path / "nowhere.tar.gz", tmp_path):
        with pytest.raises(ArtifactError, match="there is no model") as caught:
            load(missing)
        assert caught.value.hint
    with pytest.raises(ArtifactError):
        load(tmp_path / "text.jpg")
    with pytest.raises(ConfigError, match="no precision 'int4'"):
        load(archive, precision="int4")
    with pytest.raises(ConfigError, match="does not allow int8"):
        load(archive, precision="int8")


def test_no_torch_is_loaded_for_it(archive: Path) -> None:
    program = "import sys; from image_classifier import load; load(sys.argv[1]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", program, str(archive)]
    subprocess.run(command, env={"PYTHONPATH": "code"}, check=True, cwd=Path(__file__).parents[2])
