"""Whole jobs that train the head: on features that are computed once, everything else is as ever."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.conftest import jpeg
from tests.head_training import CONFIG, make_pictures, split_of
from tests.stopping import StopAfter

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobStopped
from image_classifier.contract.metrics import parse_metric_line
from image_classifier.contract.paths import FEATURES_VARIABLE, MlPaths
from image_classifier.training import head_only
from image_classifier.training import job as job_module
from image_classifier.training.distributed import Group
from image_classifier.training.ending import report
from image_classifier.training.job import run_in
from image_classifier.training.stop import StopFlag, end_workers


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data")


def job(base: Path, data: Path, config: TrainConfig = CONFIG, stop: StopFlag | None = None) -> MlPaths:
    """Runs a job's inside; what it leaves."""
    paths = MlPaths(base=base)
    paths.data.parent.mkdir(parents=True, exist_ok=True)
    if not paths.data.exists():
        paths.data.symlink_to(data)
    run_in(Group(), config, paths, StopFlag() if stop is None else stop)
    return paths


def weights_of(paths: MlPaths) -> dict[str, NDArray[np.float32]]:
    return dict(load_file(paths.model / "model.safetensors"))


def equal(left: dict[str, NDArray[np.float32]], right: dict[str, NDArray[np.float32]]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("steps", [1, 4, 9, 17])
def test_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, data: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FEATURES_VARIABLE, str(tmp_path / "store"))
    whole = job(tmp_path / "whole", data)
    shutil.rmtree(tmp_path / "store")  # the features themselves are computed anew
    stop = StopFlag()
    with monkeypatch.context() as patched:
        patched.setattr("image_classifier.training.job.make_hook", lambda *_: StopAfter(stop, steps))
        with pytest.raises(JobStopped, match=r"the state is saved"):
            job(tmp_path / "part", data, stop=stop)
    if steps == 9:
        monkeypatch.delenv(FEATURES_VARIABLE)  # and once more, without what the first attempt kept
    part = job(tmp_path / "part", data)
    assert equal(weights_of(whole), weights_of(part))
    assert (whole.output_data / "test_predictions.csv").read_text() == (
        part.output_data / "test_predictions.csv"
    ).read_text()


def test_an_interrupted_job_of_a_version_without_features_goes_on_with_them(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stop = StopFlag()
    with monkeypatch.context() as patched:
        patched.setattr("image_classifier.training.job.make_hook", lambda *_: StopAfter(stop, 9))
        with pytest.raises(JobStopped, match=r"the state is saved"):
            job(tmp_path / "old", data, CONFIG.replace(feature_views=0), stop=stop)
    file = max((tmp_path / "old" / "checkpoints").glob("*.ckpt"))
    content = torch.load(file, weights_only=True)
    del content["identity"]["feature_views"], content["contents"]
    torch.save(content, file)
    before = content["progress"]["history"]
    caplog.clear()
    paths = job(tmp_path / "old", data)
    history = [json.loads(line) for line in (paths.output_data / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[: len(before)] == before
    assert "features of train: 0 kept from before, 36 computed" in caplog.text
    assert len(weights_of(paths)) == 320


def test_the_next_job_computes_nothing_and_a_change_is_seen(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv(FEATURES_VARIABLE, str(tmp_path / "store"))
    first = job(tmp_path / "first", data)
    caplog.clear()
    second = job(tmp_path / "second", data)
    told = [line for line in caplog.messages if line.startswith("features of ")]
    assert len(told) == 3
    assert all(", 0 computed " in line for line in told), told
    assert equal(weights_of(first), weights_of(second))
    caplog.clear()
    split_of(data).paths[0].write_bytes(jpeg(12345))
    job(tmp_path / "third", data)
    assert "features of train: 34 kept from before, 2 computed" in caplog.text
    caplog.clear()
    job(tmp_path / "fourth", data, CONFIG.replace(seed=1))  # other random weights
    assert "features of train: 0 kept from before, 36 computed" in caplog.text


def test_a_job_on_a_full_disk_trains_without_keeping_features(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(FEATURES_VARIABLE, str(tmp_path / "file" / "store"))
    assert equal(weights_of(job(tmp_path / "one", data)), weights_of(job(tmp_path / "two", data)))
    assert "features are not kept for the next job" in caplog.text


@pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")  # smdebug, as each tensor is written
def test_hook_rules_metrics_and_report_see_the_training(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv(FEATURES_VARIABLE, str(tmp_path / "store"))
    for name in ("first", "from the store"):
        caplog.clear()
        paths = job(
            tmp_path / name, data, CONFIG.replace(epochs=6, debug=True, profile=True, workers=2, cache="decoded")
        )
        report(paths)
        told = [parsed[0] for parsed in map(parse_metric_line, caplog.messages) if parsed]
        assert told[:6] == [1, 2, 3, 4, 5, 6]
        assert len(told) == 7  # and the test's
        steps = [json.loads(line) for line in (paths.output_data / "steps.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps if step["mode"] == "train"] == list(range(24))
        assert {step["mode"] for step in steps} == {"train", "eval", "test"}
        statistics = [json.loads(line) for line in (paths.output_data / "statistics.jsonl").read_text().splitlines()]
        assert list(statistics[0]["gradients"]) == ["fc.weight"]
        assert statistics[0]["weights"]["fc.weight"]["update_ratio"] > 0
        assert sum(row["inputs"]["0"]["images"] for row in statistics if row["inputs"]) == 6 * 18
        assert len(statistics[0]["activations"]) == 49
        verdicts = {row["rule"]: row["verdict"] for row in json.loads((paths.output_data / "rules.json").read_text())}
        assert verdicts["CheckInputImages"] != "InsufficientData"
        assert verdicts["PoorWeightInitialization"] != "InsufficientData"
        assert "Error" not in verdicts.values()
        assert (paths.output_data / "report.html").is_file()
        assert "switched off" not in caplog.text
        setup = json.loads((paths.output_data / "setup.json").read_text())
        assert setup["prepared"][0] >= 0
        assert (setup["workers"], setup["cached"]) == (0, False)  # it has no use for them, whatever was asked for


def test_what_features_cannot_do_is_done_as_before_and_said(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv(FEATURES_VARIABLE, str(tmp_path / "store"))
    job(tmp_path / "asked for", data, CONFIG.replace(feature_views=0, epochs=1))
    assert "features " not in caplog.text
    monkeypatch.setattr(head_only, "MEMORY_SHARE", 0.0)
    job(tmp_path / "no memory", data, CONFIG.replace(epochs=1))
    assert "the frozen body sees every image in every epoch: they need 0.0 GB" in caplog.text
    assert not (tmp_path / "store").exists()
    caplog.clear()
    monkeypatch.undo()
    paths = MlPaths(base=tmp_path / "managed")
    paths.config.mkdir(parents=True)
    paths.debug_hook_config.write_text("{}")
    paths.data.symlink_to(data)
    run_in(Group(), CONFIG.replace(epochs=1), paths, StopFlag())
    assert "debughookconfig.json wants to see the whole network" in caplog.text


def test_one_view_without_augmentation_ends_as_the_network_would(tmp_path: Path, data: Path) -> None:
    """Without augmentation both ways train on the same pictures in the same batches."""
    config = CONFIG.replace(augment="none")
    fast, slow = (job(tmp_path / str(views), data, config.replace(feature_views=views)) for views in (1, 0))
    ours, theirs = weights_of(fast), weights_of(slow)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    found, wanted = (json.loads((paths.output_data / "metrics.json").read_text())["metrics"] for paths in (fast, slow))
    for metric in ("validation:loss", "train:loss", "test:loss", "validation:accuracy", "test:accuracy"):
        assert found[metric] == pytest.approx(wanted[metric], rel=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_pictures_are_loaded_while_the_network_is_looked_at(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    processes: list[int] = []
    monkeypatch.setattr(
        job_module, "before_first_step", lambda *_: processes.append(len(multiprocessing.active_children()))
    )
    paths = job(tmp_path / "job", data, CONFIG.replace(epochs=1, feature_views=0, workers=workers))
    assert processes == [workers]
    end_workers()
    assert (paths.model / "model.safetensors").is_file()


def test_a_job_in_a_process_that_is_old_did_not_wait_for_its_first_step(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.Process.create_time", lambda self: time.time() - 7200)
    config = CONFIG.replace(epochs=1, profile=True)
    for name, begun, expected in (("now", None, "NoIssuesFound"), ("then", time.time() - 7200, "IssuesFound")):
        paths = MlPaths(base=tmp_path / name)
        paths.data.parent.mkdir(parents=True)
        paths.data.symlink_to(data)
        run_in(Group(), config, paths, StopFlag(), begun=begun)
        report(paths)
        verdicts = {row["rule"]: row["verdict"] for row in json.loads((paths.output_data / "rules.json").read_text())}
        assert verdicts["MaxInitializationTime"] == expected
