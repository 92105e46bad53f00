"""smdebug's hook: the loss of every step, training and evaluation, readable with smdebug's `create_trial`.

The only importer of smdebug. The hook watches a probe, an empty module that the loss is led through: it costs a
fraction of a millisecond a step, and compiled, copied or half-frozen networks cannot trip it. A debughookconfig.json
from SageMaker wins: then the network itself is registered, as that file's collections need.

A hook is an observer: when it fails, it is switched off with a warning and the training goes on.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Protocol

import torch
from torch import nn

from image_classifier.contract.errors import describe
from image_classifier.contract.paths import MlPaths

log = logging.getLogger(__name__)
LOSS_NAME = "CrossEntropyLoss"  # smdebug's `losses` collection takes names that match .*[Ll]oss_output


class Hook(Protocol):
    """What the loop and the evaluation tell an observer."""

    def train(self) -> None:
        """The steps that follow train."""

    def evaluate(self) -> None:
        """The steps that follow evaluate."""

    def record(self, loss: torch.Tensor) -> None:
        """One step's loss, a scalar tensor."""

    def close(self) -> None:
        """Writes what is left."""


class NoHook:
    """Observes nothing."""

    def train(self) -> None:
        """Nothing to do."""

    def evaluate(self) -> None:
        """Nothing to do."""

    def record(self, loss: torch.Tensor) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class DebugHook:
    """The smdebug hook. Raises whatever smdebug raises when it cannot be made."""

    def __init__(self, paths: MlPaths, model: nn.Module) -> None:
        os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")  # it announces itself in a dozen lines otherwise
        import smdebug.pytorch as smd

        self._modes = smd.modes
        self._probe: nn.Module | None = None
        if paths.debug_hook_config.is_file():
            self._hook: Any = smd.Hook.create_from_json_file(str(paths.debug_hook_config))
            self._hook.register_module(model)
        else:
            every_step = smd.SaveConfig(save_interval=1)
            self._hook = smd.Hook(out_dir=_fresh_folder(paths), save_config=every_step, include_collections=["losses"])
            self._probe = nn.Identity()
            self._hook.register_module(self._probe)
        self._failed = False

    def train(self) -> None:
        """The steps that follow train."""
        self._guarded(lambda: self._hook.set_mode(self._modes.TRAIN))

    def evaluate(self) -> None:
        """The steps that follow evaluate."""
        self._guarded(lambda: self._hook.set_mode(self._modes.EVAL))

    def record(self, loss: torch.Tensor) -> None:
        """Begins smdebug's next step (a call of the registered module does) and gives it the loss, a scalar."""
        self._guarded(lambda: self._record(loss.detach().float()))

    def close(self) -> None:
        """Writes what is left and marks the recording as ended."""
        self._guarded(self._hook.close)

    def _record(self, loss: torch.Tensor) -> None:
        if self._probe is not None:
            self._probe(loss)
        self._hook.record_tensor_value(LOSS_NAME, loss)

    def _guarded(self, action: Any) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # any: the recording is worth less than the training
            self._failed = True
            log.warning("the debug hook failed and is switched off: %s", describe(error))


def make_hook(enabled: bool, paths: MlPaths, model: nn.Module) -> Hook:
    """The hook of a job. Without `debug`, or when smdebug cannot start, one that observes nothing."""
    if not enabled:
        return NoHook()
    try:
        return DebugHook(paths, model)
    except Exception as error:  # an import that fails, a broken debughookconfig.json, a full disk
        log.warning("no debug hook: %s", describe(error))
        return NoHook()


def _fresh_folder(paths: MlPaths) -> str:
    """tensors/attempt-N, one for each start of the job: smdebug cannot go on in a folder it finished."""
    number = 1
    while (folder := paths.tensors / f"attempt-{number}").exists():
        number += 1
    return str(folder)
