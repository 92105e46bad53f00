"""The images a job was given: listed, and read once for their digests, by a process of its own while this one imports
torch. On slow storage both take seconds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.machine import usable_cores
from image_classifier.contract.paths import MlPaths
from image_classifier.training.stop import ignore_stop_signals

if TYPE_CHECKING:
    from image_classifier.vision.folders import ImageFolders

log = logging.getLogger(__name__)
Found = tuple["ImageFolders", dict[str, list[str]]]  # the images, and `fingerprint.digests` of them
POLL_S = 0.05


class GivenData:
    """The images in a job's channels; the same whether another process looked at them or this one does.

    Args:
        ahead: begin at once in a process of its own, where this one has something else to do first: it has not
            imported torch yet, has no thread that a fork would cut off, and there is a second core.
    """

    def __init__(self, config: TrainConfig, paths: MlPaths, *, ahead: bool = False) -> None:
        self._config, self._paths = config, paths
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        if ahead and "torch" not in sys.modules and usable_cores() > 1:
            with suppress(OSError):  # no more processes are allowed
                self._begin()

    def take(self, pause: Callable[[], None] = lambda: None) -> Found:
        """What was found.

        Args:
            pause: called now and then meanwhile; what it raises ends the reading.

        Raises:
            DataError: as `scan`.
        """
        found = self._received(pause)
        return found if found is not None else self._look(pause)

    def _begin(self) -> None:
        context = get_context("fork")
        self._pipe, other = context.Pipe(duplex=False)
        self._process = context.Process(target=self._send, args=(other,), name="given data", daemon=True)
        self._process.start()
        other.close()

    def _send(self, pipe: Connection) -> None:
        ignore_stop_signals()  # the job is told to stop, and ends this
        assert self._pipe is not None
        self._pipe.close()  # so that it ends by itself when the job is gone
        with suppress(Exception):  # any: the job looks for itself then, and says what is wrong
            pipe.send(self._look(lambda: None))

    def _received(self, pause: Callable[[], None]) -> Found | None:
        """What the other process sent; None without one, or where it ended before it had all."""
        if self._process is None or self._pipe is None:
            return None
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        try:
            while not pipe.poll(POLL_S):
                pause()
            found: Found = pipe.recv()
        except (EOFError, OSError):
            log.debug("the images are looked at once more")
            return None
        finally:
            pipe.close()
            process.kill()
            process.join()
        return found

    def _look(self, pause: Callable[[], None]) -> Found:
        from image_classifier.vision.fingerprint import digests  # with numpy and Pillow: beside torch's import
        from image_classifier.vision.folders import channels_of_job, scan

        config = self._config
        folders = scan(channels_of_job(self._paths), valid_fraction=config.valid_fraction, seed=config.seed)
        return folders, digests(folders, pause)
