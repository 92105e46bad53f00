"""`train` of sagemaker-training with our module, as a container runs it: real program, real signals, real files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tests.other_values import other_value

from image_classifier.contract.config import format_value, parameters
from image_classifier.contract.image_formats import FORMATS, JPEG
from image_classifier.contract.metrics import parse_metric_line
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import as_text
from image_classifier.contract.wire import JSON_TYPE
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.codec import encode
from image_classifier.serving.engines import OpenVinoEngine
from image_classifier.vision import usual_jpeg
from image_classifier.vision.artifact import load_model
from image_classifier.vision.check import check_dataset
from image_classifier.vision.findings import parse_levels
from image_classifier.vision.model import build_model, load_safetensors
from image_classifier.vision.preprocess import load
from image_classifier.vision.sample_data import make_sample_data

LEAVE_WITHIN_S = 20  # SageMaker and docker kill what is still there after 30 s
CODE = Path(__file__).parents[2] / "code"
TRAIN = Path(sys.executable).parent / "train"
HYPERPARAMETERS = {
    "weights": "none", "image_size": "32", "epochs": "3", "batch_size": "4", "lr": "0.01", "augment": "light",
    "log_interval": "1", "valid_fraction": "0.25", "seed": "7",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes without a valid split, in every accepted format; one train image is a text, one is empty, one is
    black; and beside them what is no image at all."""
    root = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(root, num_classes=2, train_per_class=13, valid_per_class=0, test_per_class=3, size=48)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        image_format = FORMATS[number % len(FORMATS)]
        if image_format is not JPEG:
            with Image.open(path) as image:
                image.save(path.with_suffix(image_format.suffixes[0]), image_format.pillow)
            path.unlink()
    first, second = sorted((root / "train").iterdir())
    (first / "empty.jpg").touch()
    (second / os.fsdecode(b"br\xe8ve.jpg")).write_text("not an image")  # names from a time before UTF-8
    black = sorted(first.glob("*.png"))[0]
    Image.new("RGB", (48, 48)).save(black)
    black.rename(first / "black.png")
    (root / "train" / "@eaDir").mkdir()
    (root / "train" / "owl").symlink_to("/nowhere")
    (first / "a.heic").touch()
    tested = min((root / "test" / first.name).iterdir())
    tested.rename(tested.with_name(os.fsdecode(b"caf\xe9") + tested.suffix))
    return root


class Job:
    """A /opt/ml below a folder, and the `train` program in it."""

    def __init__(self, base: Path, data: Path, **hyperparameters: str) -> None:
        self.paths = MlPaths(base=base)
        shutil.copytree(CODE, self.paths.code, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(data, self.paths.data, symlinks=True)
        self.paths.config.mkdir()
        self._write(self.paths.hyperparameters, HYPERPARAMETERS | hyperparameters)
        self._write(self.paths.input_data_config, {folder.name: {} for folder in self.paths.data.iterdir()})
        self._write(self.paths.resource_config, {"current_host": "localhost", "hosts": ["localhost"]})

    @staticmethod
    def _write(path: Path, value: Mapping[str, object]) -> None:
        path.write_text(json.dumps(value))

    def start(self, **variables: str) -> subprocess.Popen[str]:
        environment = (
            os.environ
            | variables
            | {
                "SAGEMAKER_BASE_DIR": str(self.paths.base),
                "SAGEMAKER_PROGRAM": "train.py",
                "SAGEMAKER_TRAINING_MODULE": "image_classifier.training.toolkit_module:main",
                "PYTHONPATH": str(self.paths.code),
                "OMP_NUM_THREADS": "1",
            }
        )
        return subprocess.Popen(
            [TRAIN], env=environment, cwd=self.paths.base, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, **variables: str) -> tuple[int, str]:
        """Exit code and log of a whole run."""
        with self.start(**variables) as train:
            log, _ = train.communicate(timeout=300)
        return train.returncode, log

    def run_until(self, line: str, interrupt: signal.Signals, *, to: str) -> tuple[int, str]:
        """Signals `train`, its supervisor or the script when `line` appears in the log; waits for the end of all."""
        with self.start() as train:
            assert train.stdout is not None
            seen = []
            for text in train.stdout:
                seen.append(text)
                if line in text:
                    break
            family = psutil.Process(train.pid).children(recursive=True)
            supervisor, program = family[:2]
            os.kill({"train": train, "supervisor": supervisor, "script": program}[to].pid, interrupt)
            seen.append(train.communicate(timeout=LEAVE_WITHIN_S)[0])
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, "a process outlived the job"
        assert line in "".join(seen), "".join(seen)
        return train.returncode, "".join(seen)

    @property
    def failure(self) -> str:
        return self.paths.failure.read_text()

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return load_file(load_model(self.paths.model).weights_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Job, str]:
    """A job that ran through, and its log."""
    job = Job(tmp_path_factory.mktemp("job") / "ml", data, workers="0")
    code, log = job.run()
    assert code == 0, log
    return job, log


def test_train_writes_model_metrics_and_tables(finished: tuple[Job, str], data: Path) -> None:
    job, log = finished
    output = job.paths.output_data
    lines = [parsed for parsed in map(parse_metric_line, log.splitlines()) if parsed]
    history = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    result = json.loads((output / "metrics.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [epoch for epoch, _ in lines] == [1, 2, 3, result["best_epoch"]]
    assert lines[0][1]["validation:loss"] == pytest.approx(history[0]["validation:loss"], rel=1e-4)
    assert result["best_epoch"] == 1 + int(
        np.lexsort([[row["validation:loss"] for row in history], [-row["validation:accuracy"] for row in history]])[0]
    )
    assert "split off" in log
    assert not job.paths.failure.exists()
    bad = json.loads((output / "bad_images.json").read_text())
    assert sorted(Path(path).name for path in bad) == ["br\\xe8ve.jpg", "empty.jpg"]
    assert all(log.count(f"skipped: {reason}") == 1 for reason in bad.values())
    confusion = list(csv.reader((output / "confusion.csv").read_text().splitlines()))
    assert sum(int(cell) for row in confusion[1:] for cell in row[1:]) == 6
    assert [row["class"] for row in csv.DictReader((output / "per_class.csv").read_text().splitlines())] == confusion[
        0
    ][1:]
    assert result["metrics"]["test:accuracy"] * 6 == sum(int(confusion[i][i]) for i in (1, 2))
    assert "Traceback" not in log


def test_what_is_no_image_or_shows_nothing_is_said_in_the_log_the_files_and_the_report(
    finished: tuple[Job, str], data: Path
) -> None:
    job, log = finished
    output = job.paths.output_data
    lines = [
        "files passed over: 1 .heic (train/bricks/a.heic)",
        "class folders that are links to nowhere: 1 (train/owl)",
        "pictures that are one colour all over: 1 (train/bricks/black.png)",
    ]
    note = "left there by systems and programs, passed over: 1 @eaDir (train/@eaDir)"
    assert all(log.count(f"warning: {line}") == 1 for line in lines)
    assert log.count(note) == 1
    found = parse_levels(json.loads((output / "findings.json").read_text()))
    assert {finding.line for finding in found} == {*lines, note}
    report = check_dataset(data, valid_fraction=0.25, seed=7)
    assert {*lines, note} <= {finding.line for finding in (*report.warnings, *report.notes)}
    page = (output / "report.html").read_text()
    assert all(name in page for name in ("train/bricks/black.png", "train/owl", "train/bricks/a.heic", "@eaDir"))


def test_artifact_reproduces_golden_samples_and_test_predictions(finished: tuple[Job, str]) -> None:
    job, _ = finished
    artifact = load_model(job.paths.model)
    model = build_model(len(artifact.classes)).eval()
    load_safetensors(model, artifact.weights_path)

    def answer(source: bytes | Path) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(load(source, artifact.preprocessing))[None]
            return (model(pixels) / artifact.manifest.temperature).softmax(1)[0].numpy()

    decoders = {"pillow", "simplejpeg"} if usual_jpeg.VERSION else {"pillow"}
    assert {"python", "torch", "torchvision", "numpy", "safetensors"} | decoders == artifact.manifest.versions.keys()
    assert len(artifact.golden) == 4
    for sample in artifact.golden:
        np.testing.assert_allclose(answer(sample.image), sample.probabilities, atol=1e-4)
    rows = list(csv.DictReader((job.paths.output_data / "test_predictions.csv").read_text().splitlines()))
    test = job.paths.channel("test")
    files = {as_text(path.relative_to(test)): path for path in test.rglob("*.*")}
    assert sorted(row["path"] for row in rows) == sorted(files)
    for row in rows:
        probabilities = answer(files[row["path"]])
        assert row["predicted"] == artifact.classes[probabilities.argmax()]
        assert float(row["probability"]) == pytest.approx(probabilities.max(), abs=1e-4)


@pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023
def test_recorded_losses_are_readable_by_smdebug(finished: tuple[Job, str]) -> None:
    from smdebug.pytorch import modes
    from smdebug.trials import create_trial

    trial = create_trial(str(finished[0].paths.tensors / "attempt-1"))
    (name,) = trial.tensor_names(collection="losses")
    losses = trial.tensor(name)
    assert len(losses.steps(mode=modes.TRAIN)) == 15  # 3 epochs of 20 images in batches of 4
    assert len(losses.steps(mode=modes.EVAL)) == 3 * 2
    assert len(losses.steps(mode=modes.PREDICT)) == 2  # the test
    assert all(np.isfinite(losses.value(step, mode=modes.TRAIN)) for step in losses.steps(mode=modes.TRAIN))


def test_interrupted_and_killed_job_ends_as_the_uninterrupted_one(
    finished: tuple[Job, str], tmp_path: Path, data: Path
) -> None:
    job = Job(tmp_path / "ml", data, workers="2")  # another number of workers must not matter either
    code, log = job.run_until("epoch=2/3 step=2/5", signal.SIGTERM, to="train")
    assert code == 143, log
    assert job.failure.startswith("stopped by SIGTERM in epoch 2 of 3, step ")
    code, log = job.run_until("epoch=3/3 step=2/5", signal.SIGKILL, to="script")
    assert code == 137, log
    assert "killed by SIGKILL" in job.failure
    assert "epoch=1/3" not in log
    assert "epoch=2/3 step=1/5" not in log
    code, log = job.run()
    assert code == 0, log
    assert "epoch=1/3" not in log
    assert not job.paths.failure.exists()
    expected, got = finished[0].weights, job.weights
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    assert sorted(folder.name for folder in job.paths.tensors.iterdir()) == ["attempt-1", "attempt-2", "attempt-3"]


LATIN = os.fsdecode(b"caf\xe9")


def with_latin_names(data: Path, target: Path) -> Path:
    """The data with a valid folder, a class and an image of it in each split whose names are not UTF-8."""
    shutil.copytree(data, target, symlinks=True)
    shutil.copytree(target / "test", target / "valid")
    for split in ("train", "valid", "test"):
        first = min(folder for folder in (target / split).iterdir() if any(folder.glob("*.jpg")))
        image = min(first.glob("*.jpg"))
        image.rename(image.with_name(f"a{LATIN}.jpg"))
        first.rename(first.with_name(LATIN))
    return target


def test_names_that_are_not_utf_8_cost_nothing_not_even_when_they_are_changed_in_between(
    tmp_path: Path, data: Path
) -> None:
    images = with_latin_names(data, tmp_path / "latin")
    straight, broken = Job(tmp_path / "one", images, workers="0"), Job(tmp_path / "two", images, workers="0")
    code, log = straight.run()
    assert code == 0, log
    code, log = broken.run_until("epoch=2/3 step=2/", signal.SIGTERM, to="train")
    assert code == 143, log
    renamed = [path for path in broken.paths.data.rglob("*.*") if path.is_file()]
    for number, path in enumerate(renamed):  # to names that sort in another order
        path.rename(path.with_name(f"{number * 7919 % 1009:04}é{path.suffix}"))
    code, log = broken.run()
    assert code == 0, log
    assert "epoch=1/3" not in log
    assert all(np.array_equal(straight.weights[name], array) for name, array in broken.weights.items())
    artifact = load_model(straight.paths.model)
    assert "caf\\xe9" in artifact.classes
    assert artifact.fingerprint != load_model(broken.paths.model).fingerprint  # the golden samples have other names
    assert artifact.manifest.data_fingerprint == load_model(broken.paths.model).manifest.data_fingerprint
    assert "caf\\xe9/acaf\\xe9.jpg" in [sample.name for sample in artifact.golden]
    for table in (
        "per_class.csv",
        "confusion.csv",
        "test_predictions.csv",
        "bad_images.json",
        "dataset.json",
        "report.json",
    ):
        assert "caf\\xe9" in straight.paths.output_data.joinpath(table).read_text(encoding="utf-8").replace(
            "\\\\", "\\"
        )
    classifier = Classifier(artifact, OpenVinoEngine(artifact))
    classifier.check_golden()
    reply = encode(classifier.rank(artifact.golden[0].image, 2), model="m", response_type=JSON_TYPE)
    assert {each["label"] for each in json.loads(reply.body)["predictions"]} == set(artifact.classes)


def test_settings_said_to_change_no_result_change_no_weight(
    finished: tuple[Job, str], tmp_path: Path, data: Path
) -> None:
    harmless = {known.name: format_value(other_value(known)) for known in parameters() if not known.changes_result}
    job = Job(tmp_path / "ml", data, **harmless | {"workers": "1", "rules": "Overfit", "stop_on": "LowGPUUtilization"})
    code, log = job.run()
    assert code == 0, log
    expected, got = finished[0].weights, job.weights
    assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_training_stops_and_saves_its_state_when_train_is_killed_and_dies_with_its_supervisor(
    tmp_path: Path, data: Path
) -> None:
    job = Job(tmp_path / "ml", data, workers="1")
    code, log = job.run_until("epoch=1/3 step=2/5", signal.SIGKILL, to="train")
    assert code == -signal.SIGKILL
    assert "stopped by SIGTERM in epoch " in log
    assert job.failure.startswith("stopped by SIGTERM in epoch ")
    code, log = job.run_until("epoch=2/3 step=2/5", signal.SIGKILL, to="supervisor")
    assert code == 137, log
    assert "killed by SIGKILL" in job.failure


def test_a_process_that_the_script_left_in_a_session_of_its_own_ends_with_the_script(
    tmp_path: Path, data: Path
) -> None:
    job = Job(tmp_path / "ml", data)
    (job.paths.code / "train.py").write_text(
        "import subprocess, sys\n"
        "print('left', subprocess.Popen(['/bin/sleep', '600'], start_new_session=True).pid, flush=True)\n"
        "sys.exit(3)\n"
    )
    code, log = job.run()
    assert code == 3, log
    (left,) = [int(line.split()[1]) for line in log.splitlines() if line.startswith("left ")]
    assert not psutil.pid_exists(left)


def test_finished_job_started_again_writes_the_model_without_training(finished: tuple[Job, str]) -> None:
    job, _ = finished
    before = job.weights
    shutil.rmtree(job.paths.model)
    code, log = job.run()
    assert code == 0, log
    assert "step=" not in log
    assert all(np.array_equal(before[name], array) for name, array in job.weights.items())


def test_failure_file_holds_first_cause(tmp_path: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    job = Job(tmp_path / "ml", data, max_bad_images="1", workers="1")  # which must not keep the job from ending
    temporary = tmp_path_factory.mktemp("t")  # a short path: sockets come into it
    code, log = job.run(TMPDIR=str(temporary))
    assert not list(temporary.glob("pymp-*")), "folders of data loading processes stay behind"
    assert code == 1
    assert job.failure.startswith("2 images cannot be read, more than max_bad_images=1; the last: ")
    assert "hint: " in job.failure
    assert len(json.loads((job.paths.output_data / "bad_images.json").read_text())) == 2
    assert "Traceback" not in log
    job = Job(tmp_path / "other", data, lr="fast")
    code, log = job.run()
    assert (code, job.failure) == (2, "lr must be a number, not 'fast'")
    assert "Traceback" not in log
