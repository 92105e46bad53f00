"""smdebug's hook: what a recorder saw, in files that smdebug's `create_trial` reads.

The only importer of smdebug besides the reader in `debugging/saved.py`. Its hook watches a probe, an empty module that
is called once for each recorded step: nothing is registered on the network, so compiled, copied or half-frozen ones
cannot trip it. A debughookconfig.json from SageMaker wins: then the network itself is registered, as that file's
collections need.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from image_classifier.contract.errors import describe
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.schema import ClassCounts, Mode, StatisticsRecord, StepRecord
from image_classifier.debugging.smdebug_loading import make_importable, pandas_when_used
from image_classifier.debugging.smdebug_names import (
    HITS,
    LABELS,
    LOSS,
    MODE_NAMES,
    STEP_FACTS,
    reduction_of,
    tensor_name,
)
from image_classifier.debugging.tensorstats import unwrap
from image_classifier.training.smdebug_files import StepFiles

log = logging.getLogger(__name__)
COLLECTIONS = {  # ours, besides smdebug's own losses, gradients, weights
    "relu_output": r"^(?!Identity|CrossEntropyLoss).+_output_\d+$",  # the managed DeadRelu's name for activations
    "inputs": r"^input_channel_\d+$",
    "batch": r"^batch/.+$",
    "counts": rf"^({LABELS}|{HITS}|{STEP_FACTS})$",
}
_importing = threading.Lock()  # a thread may have begun, see `observe.import_ahead`


class SmdebugSink:
    """Writes a recorder's observations as smdebug does. Raises whatever smdebug raises when it cannot be made.

    The loss and STEP_FACTS are tensors of every step, labels and hits by class of an epoch's last step,
    everything in a StatisticsRecord reduced tensors.
    """

    name = "SmdebugSink"

    def __init__(self, paths: MlPaths, model: nn.Module) -> None:
        smd = import_smdebug()
        self._modes = {mode: smd.modes[name] for mode, name in MODE_NAMES.items()}
        self._model_name = type(unwrap(model)).__name__
        self._folder = _fresh_folder(paths)
        self._hook: Any = smd.Hook(
            out_dir=str(self._folder),
            save_config=smd.SaveConfig(save_interval=1),
            include_collections=["losses", "gradients", "weights", *COLLECTIONS],
        )
        for name, pattern in COLLECTIONS.items():
            self._hook.get_collection(name).include(pattern)
        self._probe = nn.Identity()
        self._hook.register_module(self._probe)
        self._number = 0
        self._step: StepFiles | None = None

    def add(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        """Makes one step of smdebug's, numbered in its mode as ours, also in a new attempt. Raises OSError."""
        mode = self._modes[record.mode]
        if self._step is None:  # the first call of the registered module writes what smdebug says of the whole
            self._hook.set_mode(mode)
            self._probe(torch.zeros(()))
        else:
            self._step.close()
        self._step = step = StepFiles(self._folder, self._number, mode, record.step)
        self._number += 1
        step.add(LOSS, [record.loss])
        step.add(STEP_FACTS, [record.epoch, record.images, record.clean_loss])
        if statistics is not None:
            self._add_statistics(step, statistics)

    def add_classes(self, counts: ClassCounts) -> None:
        """Adds to the step that was added last."""
        if self._step is not None:
            self._step.add(LABELS, counts.labels)
            self._step.add(HITS, counts.hits)

    def flush(self) -> None:
        """Nothing: a step is written when the next begins."""

    def close(self) -> None:
        """Writes the last step and marks the recording as ended. Raises OSError."""
        if self._step is not None:
            self._step.close()
        self._hook.close()

    def _add_statistics(self, step: StepFiles, record: StatisticsRecord) -> None:
        parts = {
            "gradients": record.gradients,
            "weights": record.weights,
            "activations": record.activations,
            "inputs": record.inputs,
            "batch": record.batch,
        }
        for kind, tensors in parts.items():
            for name, statistics in tensors.items():
                tensor = tensor_name(kind, name, self._model_name)
                for statistic, value in statistics.items():
                    reduction, absolute = reduction_of(statistic)
                    reduced = self._hook._get_reduction_tensor_name(tensor, reduction, absolute)
                    step.add(reduced, [value])


class ManagedHook(Observer):
    """The hook that SageMaker configured: the network is registered, its collections are saved as the file says."""

    def __init__(self, paths: MlPaths, model: nn.Module) -> None:
        smd = import_smdebug()
        self._modes = {mode: smd.modes[name] for mode, name in MODE_NAMES.items()}
        self._hook: Any = smd.Hook.create_from_json_file(str(paths.debug_hook_config))
        self._hook.register_module(model)

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self._hook.set_mode(self._modes[mode])

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        values = {"CrossEntropyLoss": loss.detach().float(), "labels": labels, "predictions": logits.argmax(1)}
        for name, value in values.items():  # smdebug adds _output_0, and keeps those that the file's collections name
            self._hook.record_tensor_value(name, value)

    def close(self) -> None:
        self._hook.close()


class Guarded(Observer):
    """Passes on to an observer until it fails; then it is left alone, with a warning, and the training goes on."""

    def __init__(self, inner: Observer) -> None:
        self._inner: Observer = inner

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self._try("begin", mode, epoch, step)

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._try("end_step", loss, logits, labels)

    def close(self) -> None:
        self._try("close")

    def _try(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._inner, method)(*arguments)
        except Exception as error:  # any: the recording is worth less than the training
            self._inner = Observer()
            log.warning("the debug hook failed and is switched off: %s", describe(error))


def import_smdebug() -> Any:
    """smdebug for PyTorch, mended. Raises whatever keeps it from being imported."""
    with _importing:
        os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")  # it announces itself in a dozen lines otherwise
        make_importable()
        with pandas_when_used():
            import smdebug.pytorch as smd

        _never_wait_for_a_dead_writer()
    return smd


def _never_wait_for_a_dead_writer() -> None:
    """Lets smdebug's writing threads outlive a write that failed, on a full disk say.

    Its own thread dies of it, and the training would wait for ever for the events that are left in its queue.
    """
    from smdebug.core.tfevent import event_file_writer as writer

    if issubclass(writer._EventLoggerThread, _Draining):
        return

    class DrainingThread(_Draining, writer._EventLoggerThread):  # type: ignore[misc]  # smdebug has no types
        pass

    writer._EventLoggerThread = DrainingThread


class _Draining:
    """Mixed into smdebug's thread: what comes after a failed write is taken from the queue and dropped."""

    _queue: Any
    _sentinel_event: Any

    def run(self) -> None:
        try:
            super().run()  # type: ignore[misc]  # the thread's
        except Exception as error:
            log.warning("the debug hook cannot write, what follows is lost: %s", describe(error))
            while self._queue.get() is not self._sentinel_event:
                self._queue.task_done()
            self._queue.task_done()


def _fresh_folder(paths: MlPaths) -> Path:
    """tensors/attempt-N, one for each start of the job: smdebug cannot go on in a folder it finished."""
    number = 1
    while (folder := paths.tensors / f"attempt-{number}").exists():
        number += 1
    return folder
