"""What a job trains on is settled once, and what it says of it is what it got."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.machine import memory, usable_cores
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.shared_memory import MAX_WORKERS, needed_bytes
from image_classifier.debugging.schema import JobFacts, read_job
from image_classifier.training import cache, setup
from image_classifier.training.observe import Watched, make_hook
from image_classifier.training.setup import (
    Setup,
    choose_device,
    describe_device,
    exact_float32,
    make_setup,
    num_workers,
    wants_cache,
)
from image_classifier.training.stop import StopFlag
from image_classifier.vision.folders import ImageFolders, scan
from image_classifier.vision.sample_data import make_sample_data

CPU = torch.device("cpu")
CONFIG = TrainConfig(weights="none", cache="decoded", workers=3, amp="bf16", debug=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ImageFolders:
    root = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(root, num_classes=2, train_per_class=2, valid_per_class=1, test_per_class=1, size=32)
    return scan({folder.name: folder for folder in root.iterdir()}, valid_fraction=0.2, seed=0)


@contextmanager
def address_space_of(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def written(setup: Setup, folder: Path) -> JobFacts:
    """What a job with this setup writes of itself."""
    watched = Watched(
        config=CONFIG,
        model=nn.Linear(1, 1),
        classes=("cat", "dog"),
        images={"train": 4, "valid": 2},
        steps_per_epoch=1,
        begun=time.time(),
        done={"train": 0, "eval": 0, "test": 0},
        setup=setup,
    )
    make_hook(watched, MlPaths(base=folder), StopFlag(), on_hang=print).close()
    facts = read_job(MlPaths(base=folder).output_data)
    assert facts is not None
    return facts


def test_a_job_writes_what_was_settled(folders: ImageFolders, tmp_path: Path) -> None:
    setup = make_setup(CONFIG, CPU, folders)
    facts = written(setup, tmp_path)
    assert (setup.cached, facts.cached) == (True, True)
    assert set(setup.kept) == {"train", "valid"}
    assert (facts.workers, facts.cores, facts.gpus) == (3, usable_cores(), [])
    assert facts.environment["device"] == describe_device(CPU)
    assert facts.environment["number format"] == "bf16"


def test_a_cache_that_the_system_refuses_is_not_said_to_be_kept(
    folders: ImageFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    total = memory()[0]
    monkeypatch.setattr(cache, "LARGEST_SHARE", 64.0)
    with address_space_of(32 * total):
        setup = make_setup(CONFIG, CPU, folders)
    assert "decoded images are not kept: Cannot allocate memory" in caplog.text
    assert (setup.cached, written(setup, tmp_path).cached) == (False, False)


def test_no_cache_is_made_that_is_not_wanted(folders: ImageFolders) -> None:
    assert not make_setup(CONFIG.replace(cache="none"), CPU, folders).kept


def test_auto_keeps_pictures_that_later_epochs_will_need() -> None:
    auto = CONFIG.replace(cache="auto", epochs=2)
    assert wants_cache(auto)
    assert not wants_cache(auto.replace(epochs=1, warmup_epochs=0.0))
    assert not wants_cache(auto.replace(fine_tune="head"))  # features are kept instead
    assert wants_cache(auto.replace(fine_tune="head", feature_views=0))
    assert wants_cache(auto.replace(cache="decoded"))
    assert not wants_cache(auto.replace(cache="none"))


def test_the_processes_of_a_host_share_its_cores_and_leave_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "usable_cores", lambda: 16)
    gpu = torch.device("cuda")
    assert num_workers(-1, gpu) == 14
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_workers(-1, gpu) == 3
    monkeypatch.setattr(setup, "usable_cores", lambda: 2)
    assert num_workers(-1, gpu) == 1


def test_workers_are_as_asked_or_fit_the_machine() -> None:
    assert num_workers(3, torch.device("cpu")) == 3
    assert 0 <= num_workers(-1, torch.device("cpu")) <= num_workers(-1, torch.device("cuda")) <= MAX_WORKERS
    assert num_workers(-1, torch.device("cuda")) >= 1


def test_autocast_is_on_as_settled() -> None:
    ones = torch.ones(2, 2)
    for bf16, number_format in ((True, torch.bfloat16), (False, torch.float32)):
        with Setup(device=CPU, bf16=bf16).autocast():
            assert (ones @ ones).dtype is number_format


def test_a_device_is_described_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, words in ((1, "CPU, 1 thread"), (2, "CPU, 2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert describe_device(torch.device("cpu")) == words


def test_a_cpu_gets_no_more_threads_than_the_quota_has_cores_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(setup, "usable_cores", lambda: 1)
    try:
        torch.set_num_threads(3)
        assert choose_device() == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_beside_a_gpu_there_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    try:
        torch.set_num_threads(2)
        assert choose_device(1) == torch.device("cuda", 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_epochs_begin_early_where_there_is_shared_memory_for_two(
    folders: ImageFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = 2 * needed_bytes(CONFIG.batch_size, CONFIG.image_size, 6)  # of which half is for one job
    for free, early in ((enough, True), (enough - 2, False)):
        monkeypatch.setattr(setup, "free_bytes", lambda free=free: free)
        found = make_setup(CONFIG, CPU, folders)
        assert (found.workers, found.early) == (3, early)
    assert make_setup(CONFIG.replace(workers=0), CPU, folders).early


def test_exact_float32_switches_tf32_off_and_leaves_everything_as_it_was() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    with exact_float32():
        assert (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32) == (True, before[1], False)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before
