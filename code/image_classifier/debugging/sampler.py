"""The machine's metrics while a job runs: a thread that asks psutil, and NVIDIA's library where there is a GPU."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from image_classifier.contract.errors import describe
from image_classifier.contract.files import open_plain
from image_classifier.contract.machine import allowed_cores
from image_classifier.contract.outputs import SYSTEM_FOLDER
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import SystemSample

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
STRETCH_AFTER_S = 900.0  # from then on the interval grows with the job, so that its files grow with the logarithm


class SystemSampler(Observer):
    """Writes the metrics of this machine in the format of smdebug's system profiler, until it is closed.

    Args:
        folder: output/data.
        run: gets every sample too; None where nobody judges.
        node: `algo-N`, as SageMaker names hosts; smdebug parses only such names.
        on_sample: called after each round of samples, in the sampler's thread.
    """

    def __init__(
        self,
        folder: Path,
        run: RunData | None = None,
        *,
        node: str = "algo-1",
        interval_s: float = INTERVAL_S,
        on_sample: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder / SYSTEM_FOLDER
        self._run = run
        self._node = node
        self._interval_s = interval_s
        self._on_sample = on_sample
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._file: IO[str] | None = None
        self._path: Path | None = None
        self._thread = threading.Thread(target=self._work, name="system-sampler", daemon=True)
        self._machine = Machine()
        self._thread.start()

    def close(self) -> None:
        """Takes a last sample and ends the thread."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        try:
            while True:
                over = self._stop.wait(self._pause())
                self._sample()
                if over:
                    break
        except Exception as error:  # any: the metrics are worth less than the training
            log.warning("the system sampler failed and is switched off: %s", describe(error))
        finally:
            if self._file is not None:
                self._file.close()
            self._machine.close()

    def _pause(self) -> float:
        elapsed = time.monotonic() - self._started
        return self._interval_s * max(1.0, elapsed / STRETCH_AFTER_S)

    def _sample(self) -> None:
        now = round(time.time(), 3)
        file = self._file_of(now)
        for kind, name, dimension, value in self._machine.read():
            sample = SystemSample(
                type=kind, name=name, dimension=dimension, value=round(value, 2), node=self._node, time=now
            )
            file.write(sample.to_line() + "\n")
            if self._run is not None:
                self._run.add_system(sample)
        file.flush()
        if self._on_sample is not None:
            self._on_sample()

    def _file_of(self, now: float) -> IO[str]:
        """The file of this minute, as smdebug's readers expect them."""
        hour = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d%H")
        path = self._folder / hour / f"{int(now) // 60 * 60}.{self._node}.json"
        if self._file is None or path != self._path:
            if self._file is not None:
                self._file.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._path = open_plain(path, "a", encoding="utf-8"), path
        return self._file


Reading = tuple[str, str, str, float]  # type, name, dimension, value


class Machine:
    """Reads the metrics; rates are since the reading before."""

    def __init__(self) -> None:
        self._gpus = Gpus()
        self._process = psutil.Process()
        self._cores = allowed_cores()
        psutil.cpu_percent(percpu=True)  # starts the counters: the first answer is meaningless
        psutil.cpu_times_percent()
        self._time = time.monotonic()
        self._disk, self._network = psutil.disk_io_counters(), psutil.net_io_counters()

    def read(self) -> Iterator[Reading]:
        """All metrics of SystemSample's table that this machine has."""
        percents = psutil.cpu_percent(percpu=True)
        for core in self._cores:
            if core < len(percents):
                yield "cpu", f"cpu{core}", "CPUUtilization", percents[core]
        yield "cpu", "cpu", "I/OWaitPercentage", psutil.cpu_times_percent().iowait
        yield "memory", "memory", "MemoryUsedPercent", psutil.virtual_memory().percent
        yield "memory", "process", "ProcessMemoryBytes", float(self._memory())
        yield from self._rates()
        yield from self._gpus.read()

    def close(self) -> None:
        """Lets go of the GPU library."""
        self._gpus.close()

    def _memory(self) -> int:
        """Resident bytes of this process and its children; pages that processes share count for each."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.Error):  # a child may just have ended
                total += process.memory_info().rss
        return total

    def _rates(self) -> Iterator[Reading]:
        now, disk, network = time.monotonic(), psutil.disk_io_counters(), psutil.net_io_counters()
        seconds = max(now - self._time, 1e-3)
        if disk is not None and self._disk is not None:  # None in some containers
            yield "disk", "disk", "DiskReadBytesPerSecond", (disk.read_bytes - self._disk.read_bytes) / seconds
            yield "disk", "disk", "DiskWriteBytesPerSecond", (disk.write_bytes - self._disk.write_bytes) / seconds
        if network is not None and self._network is not None:
            received, sent = (
                network.bytes_recv - self._network.bytes_recv,
                network.bytes_sent - self._network.bytes_sent,
            )
            yield "network", "network", "NetworkReceivedBytesPerSecond", received / seconds
            yield "network", "network", "NetworkSentBytesPerSecond", sent / seconds
        self._time, self._disk, self._network = now, disk, network


class Gpus:
    """NVIDIA GPUs through NVML, those that $CUDA_VISIBLE_DEVICES leaves to this process; none where the library or the
    driver is missing."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}  # by NVML's number
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            handles = {i: pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())}
            self._handles = {i: handle for i, handle in handles.items() if self._is_ours(i, handle)}
        except Exception as error:  # no library, no driver, no permission
            log.debug("no GPU metrics: %s", describe(error))

    def read(self) -> Iterator[Reading]:
        """Utilization, memory in use and power of each GPU, as far as it tells: one under MIG has no utilization."""
        for index, handle in self._handles.items():
            name = f"gpu{index}"
            with suppress(self._nvml.NVMLError):
                yield "gpu", name, "GPUUtilization", float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            with suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                yield "gpu", name, "GPUMemoryUtilization", 100.0 * memory.used / memory.total
            with suppress(self._nvml.NVMLError):
                yield "gpu", name, "GPUPowerWatts", self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000

    def close(self) -> None:
        """Ends the use of the library."""
        if self._nvml is not None:
            with suppress(Exception):
                self._nvml.nvmlShutdown()

    def _is_ours(self, index: int, handle: Any) -> bool:
        """Whether CUDA lets this process see it: the idle GPUs of others say nothing of a job."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return True
        names = [name.strip() for name in visible.split(",") if name.strip()]
        uuid = str(self._nvml.nvmlDeviceGetUUID(handle)) if any(not name.isdigit() for name in names) else ""
        if any(name.startswith("MIG-") for name in names):  # of which GPU, the name does not say
            return True
        return any(name == str(index) or (not name.isdigit() and uuid.startswith(name)) for name in names)
