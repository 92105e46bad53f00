"""The machine's metrics are what they should be, in files that smdebug's own reader parses."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from benchmarks.gpu.kit import FAKE_GPU

from image_classifier.contract.outputs import SYSTEM_FOLDER
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.sampler import Gpus, Machine, SystemSampler
from image_classifier.debugging.schema import JobFacts, SystemSample, read_system


def recorded(folder: Path) -> RunData:
    run = RunData(JobFacts(config={}))
    sampler = SystemSampler(folder, run, interval_s=0.05)
    time.sleep(0.3)
    sampler.close()
    return run


@pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023
def test_smdebug_reads_what_was_sampled(tmp_path: Path) -> None:
    recorded(tmp_path)
    from smdebug.profiler.system_metrics_reader import LocalSystemMetricsReader
    from smdebug.profiler.utils import TimeUnits

    reader = LocalSystemMetricsReader(str(tmp_path / "profiler"))
    events = reader.get_events(0, time.time() + 60, unit=TimeUnits.SECONDS)
    ours = read_system(tmp_path)
    assert len(events) == len(ours) > 10
    assert {(e.type, e.name, e.dimension, e.value, e.node_id) for e in events} == {
        (s.type, s.name, s.dimension, s.value, s.node) for s in ours
    }
    assert {"CPUUtilization", "I/OWaitPercentage", "MemoryUsedPercent"} <= {e.dimension for e in events}


def test_live_and_saved_samples_are_the_same(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    saved = RunData(JobFacts(config={}))
    for sample in read_system(tmp_path):
        saved.add_system(sample)
    assert run.dimensions() == saved.dimensions()
    for dimension in run.dimensions():
        left, right = run.system(dimension), saved.system(dimension)
        assert {name: series.values.tolist() for name, series in left.items()} == {
            name: series.values.tolist() for name, series in right.items()
        }


def test_metrics_lie_in_their_ranges() -> None:
    machine = Machine()
    readings = {(name, dimension): value for _, name, dimension, value in machine.read()}
    machine.close()
    assert all(0 <= value <= 100 for (_, dimension), value in readings.items() if "Util" in dimension)
    assert readings["process", "ProcessMemoryBytes"] >= psutil.Process().memory_info().rss / 2
    assert 0 < readings["memory", "MemoryUsedPercent"] < 100


def test_a_machine_without_a_gpu_has_no_gpu_metrics() -> None:
    gpus = Gpus()
    readings = list(gpus.read())
    gpus.close()
    assert {dimension for _, _, dimension, _ in readings} <= {"GPUUtilization", "GPUMemoryUtilization", "GPUPowerWatts"}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The library of one GPU that is not there, which does not tell its power."""
    monkeypatch.syspath_prepend(FAKE_GPU)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    library = importlib.import_module("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", library)  # forgotten after the test
    return library


def dimensions() -> set[str]:
    gpus = Gpus()
    found = {dimension for _, _, dimension, _ in gpus.read()}
    gpus.close()
    return found


def test_what_a_gpu_does_not_tell_is_left_out_and_the_rest_is_sampled(
    nvml: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert dimensions() == {"GPUUtilization", "GPUMemoryUtilization"}

    def not_supported(_handle: int) -> None:
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, "nvmlDeviceGetUtilizationRates", not_supported)  # a GPU divided by MIG
    assert dimensions() == {"GPUMemoryUtilization"}


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("visible", "seen"),
    [("0", True), ("1", False), ("1, 0", True), ("", False), ("-1", False), ("GPU-00", True), ("GPU-1", False)],
)
def test_only_the_gpus_that_a_job_may_use_are_sampled(
    visible: str, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert bool(dimensions()) is seen


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "data" / SYSTEM_FOLDER / "2026010100"
    folder.mkdir(parents=True)
    sample = SystemSample(type="cpu", name="cpu0", dimension="CPUUtilization", value=5.0, node="algo-1", time=1.0)
    (folder / "1767225600.algo-1.json").write_text(sample.to_line() + "\n" + sample.to_line()[:30])
    assert read_system(tmp_path) == [sample]
