"""One window of torch.profiler: a few steps in full detail, for https://ui.perfetto.dev."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from image_classifier.contract.errors import describe
from image_classifier.contract.outputs import TRACE
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.schema import Mode

log = logging.getLogger(__name__)

FIRST_STEP = 6  # of this process: memory, kernels and caches have settled; no recorded step (recorder.FIRST_STEPS)


class TraceWindow(Observer):
    """Profiles `num_steps` training steps, fewer where an epoch ends before, and writes trace.json.gz into `folder`.

    An observer: when it fails, it gives up with a warning.
    """

    def __init__(self, folder: Path, num_steps: int) -> None:
        self._path = folder / TRACE
        self._to_trace = num_steps
        self._training = False
        self._steps = 0
        self._profiler: Any = None

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self._training = mode == "train"

    def mark(self, phase: str) -> None:
        if phase == "data_wait_s" and self._training and self._steps >= FIRST_STEP and self._to_trace > 0:
            self._try(self._start)

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._steps += self._training
        if self._profiler is not None:
            self._to_trace -= 1
            if self._to_trace <= 0:
                self._try(self._write)

    def end_epoch(self) -> None:
        if self._profiler is not None:
            self._to_trace = 0
            self._try(self._write)

    def close(self) -> None:
        if self._profiler is not None:
            with _quiet_stderr():
                self._profiler.stop()
            self._profiler = None

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # any: the trace is worth less than the training
            self._profiler, self._to_trace = None, 0
            log.warning("no trace: %s", describe(error))

    def _start(self) -> None:
        if self._profiler is not None:
            return
        self._profiler = _OnGpu() if torch.cuda.is_available() else _OnCpu()
        with _quiet_stderr():
            self._profiler.start()

    def _write(self) -> None:
        profiler, self._profiler = self._profiler, None
        with _quiet_stderr():
            profiler.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            profiler.export(self._path)


class _OnGpu:
    """The profiler of a step that launches kernels."""

    def __init__(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities)

    def start(self) -> None:
        self._profiler.start()

    def stop(self) -> None:
        self._profiler.stop()

    def export(self, path: Path) -> None:
        self._profiler.export_chrome_trace(str(path))


class _OnCpu:
    """The same without what torch.profiler asks torch's compiler about CUDA graphs: a short job would wait for that
    import in vain."""

    def __init__(self) -> None:
        self._profiler: Any = torch.autograd.profiler.profile(use_kineto=True)

    def start(self) -> None:
        self._profiler.__enter__()

    def stop(self) -> None:
        self._profiler.__exit__(None, None, None)

    def export(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(plain))
            with plain.open("rb") as trace, gzip.open(path, "wb") as packed:
                shutil.copyfileobj(trace, packed)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's library reports starts and missing GPUs on standard error, whatever its log level."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
