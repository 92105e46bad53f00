"""Waiting for something on AWS: through lost networks and throttling, until it is done or the user has seen enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from image_classifier.launch import render
from image_classifier.launch.process import Interrupts
from image_classifier.launch.sagemaker.failures import ROLE, TRANSIENT, AwsError

EVERY_S = 10.0
MAX_PAUSE_S = 60.0
ROLE_PATIENCE_S = 90.0  # a new role is known everywhere after about a minute
_TICK_S = 0.2
T = TypeVar("T")


def watch(
    read: Callable[[], T], done: Callable[[T], bool], interrupts: Interrupts, say: Callable[[str], None] = render.note
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


def when_role_is_known(create: Callable[[], T]) -> T:
    """Calls `create`, again for a while when SageMaker cannot assume the role yet. Raises AwsError."""
    end = time.monotonic() + ROLE_PATIENCE_S
    told = False
    while True:
        try:
            return create()
        except AwsError as error:
            if error.code != ROLE or time.monotonic() + EVERY_S > end:
                raise
            if not told:
                render.note(f"{error.message}; a new role takes a minute, trying again")
            told = True
        time.sleep(EVERY_S)
