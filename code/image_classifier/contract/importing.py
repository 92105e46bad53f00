"""Importing large libraries without looking for garbage in between."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block the garbage collector rests, and what there is afterwards it never looks at again.

    What a module is made of lives as long as the process. torch and what comes with it are hundreds of thousands of
    objects, which the collector would go through again and again while more of them are made.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
