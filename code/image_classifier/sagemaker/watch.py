"""Waiting for something on AWS: through lost networks and throttling, until it is done or the user has seen enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from image_classifier.launch.process import Interrupts
from image_classifier.sagemaker.failures import MISSING, ROLE, TRANSIENT, AwsError

EVERY_S = 10.0
LOG_LAG_S = 5.0
MAX_PAUSE_S = 60.0
PATIENCE_S = {ROLE: 90.0, MISSING: 30.0}
_TICK_S = 0.2
T = TypeVar("T")


def watch(
    read: Callable[[], T], done: Callable[[T], bool], interrupts: Interrupts, say: Callable[[str], None]
) -> T | None:
    """Reads a state until it is `done`, and returns it; None when interrupted.

    What AWS cannot answer now (no network, throttled, an internal error) it is asked again later, however long that
    takes: what is waited for goes on without us. Raises AwsError for anything else.
    """
    failures = 0
    while not interrupts.count:
        try:
            state = read()
        except AwsError as error:
            if error.code not in TRANSIENT:
                raise
            if failures == 0:
                say(f"{error.message}; waiting for it to come back")
            failures += 1
        else:
            if failures:
                say("AWS answers again")
            failures = 0
            if done(state):
                return state
        pause(min(MAX_PAUSE_S, EVERY_S * 2 ** min(failures, 4)), interrupts)
    return None


def pause(seconds: float, interrupts: Interrupts) -> None:
    """Sleeps, but not through an interrupt."""
    end = time.monotonic() + seconds
    while not interrupts.count and (left := end - time.monotonic()) > 0:
        time.sleep(min(_TICK_S, left))


def when_ready(create: Callable[[], T], say: Callable[[str], None]) -> T:
    """Calls `create`, again for a while when what it needs was made too recently. Raises AwsError.

    A new role cannot be assumed for about a minute, and a model or configuration may not be found for some seconds.
    """
    began = time.monotonic()
    told = False
    while True:
        try:
            return create()
        except AwsError as error:
            if time.monotonic() - began + EVERY_S > PATIENCE_S.get(error.code, 0.0):
                raise
            if not told:
                say(f"{error.message}; what is new takes a while to be known, trying again")
            told = True
        time.sleep(EVERY_S)
