"""Lets smdebug be imported where a part that it does not need here cannot be.

It imports pyinstrument for a Python profiler that runs on request only, and nobody here requests it. The C half of
pyinstrument 3.4.2 compiles on Python 3.13, but its last release calls a function that this Python no longer has.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

C_HALF = "pyinstrument_cext"


def make_importable() -> None:
    """Puts an empty profiler in the place of one that cannot be loaded. To be called before smdebug is imported."""
    try:
        importlib.import_module(C_HALF)
    except ImportError:
        placeholder = ModuleType(C_HALF, "A placeholder: pyinstrument cannot profile on this Python.")
        placeholder.setstatprofile = None  # type: ignore[attr-defined]  # the one name that pyinstrument imports
        sys.modules[C_HALF] = placeholder
