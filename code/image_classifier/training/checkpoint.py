"""The state of an unfinished job on disk: written whole, the one before kept, refused when it is another job's.

A checkpoint file holds the network, the optimiser, the best epoch's weights and a Progress. Nothing random has a state
of its own: shuffling and augmentation derive from (seed, epoch, index), the learning rate from the step.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import nn

from image_classifier.contract.config import TrainConfig, format_value, parameters
from image_classifier.contract.errors import JobError, describe
from image_classifier.contract.files import open_plain, replacing
from image_classifier.debugging.host_copy import HostCopy
from image_classifier.vision.fingerprint import Digests

log = logging.getLogger(__name__)

MAX_SHARE = 0.05  # of the time may go into checkpoints: after short epochs there is not always one
KEPT = 2  # the newest, and the one before in case the newest turns out damaged
DATA = "data"  # the name of the images' fingerprint in an identity
Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Where a job is.

    Args:
        epoch: the one in training, from 1.
        step: steps done of it; all of them when only its validation is missing.
        images, loss_sum, correct, seconds: sums over these steps.
        history: one row an epoch, metric name -> value.
        best_epoch: highest validation accuracy so far, of equals the lowest loss; 0 before the first validation.
        lowest_loss: of validation so far.
        epochs_without_gain: since `lowest_loss`.
        total_seconds: in training and validation, over all attempts.
        unreadable: path -> reason, of images that were skipped.
        contrast: name -> `contrast_of`, of images that show next to nothing.
        finished: nothing is left to train.
    """

    epoch: int = 1
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    lowest_loss: float = math.inf
    epochs_without_gain: int = 0
    total_seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)
    contrast: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def start_epoch(self, epoch: int) -> None:
        """Moves on to the first step of `epoch`."""
        self.epoch, self.step, self.images, self.loss_sum, self.correct, self.seconds = epoch, 0, 0, 0.0, 0, 0.0


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds; `model` and `optimizer` are empty once the job has finished.

    `contents` are the digests of the images by split, in the order of the samples; empty in one of an earlier version.
    """

    progress: Progress
    model: Weights
    optimizer: dict[str, Any]
    best: Weights
    contents: Digests = field(default_factory=dict)


def identity(config: TrainConfig, data_fingerprint: str) -> dict[str, str]:
    """Everything that decides a job's result: a checkpoint continues a job only where all of it is the same.

    The number of epochs belongs to it: the learning rate of every step depends on it.
    """
    values = config.to_hyperparameters()
    return {known.name: values[known.name] for known in parameters() if known.changes_result} | {DATA: data_fingerprint}


def at_default(identity: Mapping[str, str]) -> list[str]:
    """The settings in an identity that are at their defaults."""
    return [known.name for known in parameters() if identity.get(known.name) == format_value(known.default)]


def difference(ours: Mapping[str, str], found: Mapping[str, str], found_at_default: Collection[str]) -> str:
    """What makes the job of a checkpoint another than ours, in words; empty when nothing does.

    A setting is added with the default that jobs had before there was it, and leaves with it. So a name that only one
    of the two knows makes no difference at its default.

    Args:
        ours, found: identities, of this job and in the checkpoint.
        found_at_default: names in `found` that were at their defaults when the checkpoint was written.
    """
    defaults = {known.name: format_value(known.default) for known in parameters()}
    for name, value in ours.items():
        before = found.get(name, defaults.get(name))
        if before != value:
            return "other images" if name == DATA else f"{name}={before}, not {value}"
    for name, before in found.items():
        if name not in ours and name not in defaults and name not in found_at_default:
            return f"{name}={before}, which this version does not know"
    return ""


class Checkpoints:
    """The checkpoint folder of one job. One that does not write leaves that to the main process.

    Args:
        data_before: says what an earlier version would have taken for the identity's data.
        contents: digests of the images, in the order of the samples: kept with every checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        *,
        data_before: Callable[[], str] = str,
        contents: Digests = MappingProxyType({}),
        writes: bool = True,
    ) -> None:
        self.contents = contents
        self._folder = folder
        self._identity = dict(identity)
        self._data_before = data_before
        self._writes = writes
        self._due = -math.inf  # of time.monotonic()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last checkpoint; that took a second or so for a ResNet50.

        Raises:
            PlatformError: that one could not be written.
        """
        if self._writing is not None and not self._writing.done():
            return False
        self._wait()
        return time.monotonic() >= self._due

    def save_behind(
        self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, best: Weights
    ) -> None:
        """As `save`, of the state as it is now, written while the training goes on. What that raises, the next call of
        this method or of `due` raises."""
        self._wait()
        if not self._writes:
            return
        copied = copy_tensors({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        kept = copy.deepcopy(progress)

        def write() -> None:
            state = read_tensors(copied)
            self._save(Checkpoint(kept, state["model"], state["optimizer"], best))

        self._write_behind(write)

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, best: Weights) -> None:
        """Writes a checkpoint and removes all but the newest KEPT.

        Raises:
            PlatformError: the disk is full or not writable; the checkpoints there are stay as they are.
        """
        self._pass_over()
        self._save(Checkpoint(progress, model.state_dict(), optimizer.state_dict(), best))

    def finish(self, progress: Progress, best: Weights) -> None:
        """Marks the job as finished: started again, it finds its result instead of training. Keeps nothing else.
        Written while the job goes on, `best` must stay as it is; `settle` waits for it."""
        if not self._writes:
            return
        self._pass_over()
        finished = Checkpoint(copy.deepcopy(progress), {}, {}, best)

        def write() -> None:
            self._write(finished)
            self._keep(1)

        self._write_behind(write)

    def settle(self) -> None:
        """Waits until what was to be written behind the training lies there.

        Raises:
            PlatformError: it could not be written: the disk is full or not writable.
        """
        self._wait()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """At the end of the block nothing is being written. Raises as `settle`, unless there is another error."""
        try:
            yield
        except BaseException:
            self._pass_over()
            raise
        self.settle()

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, None to start from the beginning.

        Raises:
            JobError: the folder holds the checkpoints of a different job.
        """
        for path in self._files():
            try:
                with open_plain(path) as file:
                    check_sums(file)
                    file.seek(0)
                    content = torch.load(file, map_location="cpu", weights_only=True)
                checkpoint = Checkpoint(
                    Progress(**content["progress"]),
                    content["model"],
                    content["optimizer"],
                    content["best"],
                    dict(content.get("contents", {})),
                )
                found, defaults = dict(content["identity"]), list(content.get("at_default", ()))
            except Exception as error:  # torch raises many types on damaged bytes
                log.warning("checkpoint %s is damaged and passed over: %s", path, describe(error))
                continue
            self._check_identity(found, defaults)
            log.info("resuming from %s", path)
            return checkpoint
        return None

    def _write_behind(self, write: Callable[[], None]) -> None:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing = self._writer.submit(write)

    def _wait(self) -> None:
        """Until nothing is being written. Raises what the writing raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _pass_over(self) -> None:
        """Until nothing is being written. What was is older than what will be, which tells whether there is room."""
        try:
            self._wait()
        except Exception as error:  # any of a writer's
            log.warning("a checkpoint was not written: %s", describe(error))

    def _save(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        self._write(checkpoint)
        self._keep(KEPT)
        ended = time.monotonic()
        self._due = ended + (ended - started) / MAX_SHARE

    def _write(self, checkpoint: Checkpoint) -> None:
        if not self._writes:
            return
        progress = checkpoint.progress
        content = {
            "identity": self._identity,
            "at_default": at_default(self._identity),
            "progress": dataclasses.asdict(progress),
            "model": checkpoint.model,
            "optimizer": checkpoint.optimizer,
            "best": checkpoint.best,
            "contents": dict(self.contents),
        }
        path = self._folder / f"epoch-{progress.epoch:05d}-step-{progress.step:07d}.ckpt"
        with replacing(path) as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # what torch's writer makes of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def _check_identity(self, found: Mapping[str, str], found_at_default: Collection[str]) -> None:
        if found.get(DATA) not in (None, self._identity.get(DATA)) and found[DATA] == self._data_before():
            found = {**found, DATA: self._identity[DATA]}
        if what := difference(self._identity, found, found_at_default):
            raise JobError(
                f"the checkpoints in {self._folder} are of a job with {what}",
                "give every job a checkpoint folder of its own, or empty this one to start anew",
            )

    def _keep(self, count: int) -> None:
        if not self._writes:
            return
        for path in self._files()[count:]:
            path.unlink(missing_ok=True)
        for leftover in self._folder.glob(".*.ckpt.*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Newest first: the names sort by progress."""
        return sorted(self._folder.glob("epoch-*.ckpt"), reverse=True)


def copy_tensors(state: Any) -> Any:
    """A state dict with a HostCopy in the place of each tensor: what it holds now, whatever the next step does."""
    if isinstance(state, torch.Tensor):
        return HostCopy(state)
    if isinstance(state, Mapping):
        return {key: copy_tensors(value) for key, value in state.items()}
    return [copy_tensors(value) for value in state] if isinstance(state, list) else state


def read_tensors(state: Any) -> Any:
    """What `copy_tensors` made a copy of, on the CPU."""
    if isinstance(state, HostCopy):
        return state.read()
    if isinstance(state, dict):
        return {key: read_tensors(value) for key, value in state.items()}
    return [read_tensors(value) for value in state] if isinstance(state, list) else state


def check_sums(file: IO[bytes]) -> None:
    """Compares the checksums in the file, a zip archive, with its content: torch's reader does not.

    Raises:
        zipfile.BadZipFile: a byte is different, or the file is cut off.
    """
    with zipfile.ZipFile(file) as archive:
        if (member := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {member}")
