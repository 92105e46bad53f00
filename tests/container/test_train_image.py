"""`docker run IMAGE train` with the standard /opt/ml mounts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.container.conftest import NO_NETWORK, TRAIN, container, make_job, train_flags

from image_classifier.contract.metrics import parse_metric_line
from image_classifier.contract.paths import MlPaths
from image_classifier.vision.artifact import load_model


def test_train_writes_model_and_metrics(trained: tuple[MlPaths, str]) -> None:
    paths, log = trained
    assert load_model(paths.model).classes == tuple(sorted(folder.name for folder in paths.channel("train").iterdir()))
    metrics = json.loads((paths.output_data / "metrics.json").read_text())
    assert [parsed[0] for parsed in map(parse_metric_line, log.splitlines()) if parsed] == [1, 2, metrics["best_epoch"]]
    assert not paths.failure.exists()
    assert "Traceback" not in log


def test_failure_file_holds_first_cause(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data, max_bad_images="0")
    bad = next(paths.channel("train").glob("*/*.jpg"))
    bad.write_text("not an image")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        assert job.wait() == 1
        assert "Traceback" not in job.log
    failure = paths.failure.read_text()
    assert failure.startswith("1 images cannot be read, more than max_bad_images=0")
    assert bad.name in failure


def test_sigterm_saves_a_checkpoint_that_another_container_resumes(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data, epochs="500")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        job.wait_for("epoch=2/500 step=2/4")
        assert job.stop(20) == 143, job.log  # 137 if it had not ended by itself
        assert paths.failure.read_text().startswith("stopped by SIGTERM in epoch ")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        job.wait_for("step=")
        assert "epoch=1/500" not in job.log
        job.stop(20)


def test_unreachable_weights_are_a_sentence(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data, weights="imagenet")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        assert job.wait() == 1
    assert paths.failure.read_text().startswith("the ImageNet weights cannot be had from ")
