"""Notices from outside that a training hangs: a thread of its own, for a main thread that judges nothing any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from image_classifier.contract.errors import describe
from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.schema import Mode, RuleResult

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

EVERY_S = 5.0
GRACE_S = 60.0  # for a training that comes back to stop by itself, with its state saved


class HangWatch(Observer):
    """Lets the rules about pauses speak while no step ends, and ends a job that one of them stops and that hangs on.

    Args:
        live: whose rules judge, and ask for the stop.
        begun: Unix seconds at which this process began.
        on_hang: called in the watch's thread with the rule's verdict when the training does not follow its stop within
            `grace_s`.
    """

    def __init__(
        self,
        live: LiveRules,
        *,
        begun: float,
        on_hang: Callable[[RuleResult], None],
        every_s: float = EVERY_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._live = live
        self._on_hang = on_hang
        self._every_s, self._grace_s = every_s, grace_s
        self._moved = time.monotonic() - max(0.0, time.time() - begun)  # monotonic: a clock that is set must not count
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hang-watch", daemon=True)
        self._thread.start()

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self._moved = time.monotonic()

    def preparing(self, seconds: float) -> None:
        self._moved = time.monotonic()

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._moved = time.monotonic()

    def skip_step(self) -> None:
        self._moved = time.monotonic()

    def end_epoch(self) -> None:
        self._moved = time.monotonic()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        try:
            while not self._closed.wait(self._every_s):
                moved = self._moved
                idle = time.monotonic() - moved > self._live.patience_s
                fired = self._live.look_from_outside() if idle else None
                if fired is not None and not self._comes_back(moved):
                    self._on_hang(fired)
        except Exception as error:  # any: the watch is worth less than the training
            log.warning("the watch for a training that hangs failed and is switched off: %s", describe(error))

    def _comes_back(self, moved: float) -> bool:
        """Whether the training goes on, or ends, within the grace."""
        until = time.monotonic() + self._grace_s
        while time.monotonic() < until:
            if self._closed.wait(min(self._every_s, 1.0)) or self._moved != moved:
                return True
        return False
