"""Lets smdebug be imported where a part that it does not need here cannot be, and without what it never uses here.

It imports pyinstrument for a Python profiler that runs on request only, and nobody here requests it. The C half of
pyinstrument 3.4.2 compiles on Python 3.13, but its last release calls a function that this Python no longer has. It
imports pandas for tables of what the managed profiler wrote: more than half of what importing smdebug takes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

C_HALF = "pyinstrument_cext"
PANDAS = "pandas"


def make_importable() -> None:
    """Puts an empty profiler in the place of one that cannot be loaded. To be called before smdebug is imported."""
    try:
        importlib.import_module(C_HALF)
    except ImportError:
        placeholder = ModuleType(C_HALF, "A placeholder: pyinstrument cannot profile on this Python.")
        placeholder.setstatprofile = None  # type: ignore[attr-defined]  # the one name that pyinstrument imports
        sys.modules[C_HALF] = placeholder


@contextmanager
def pandas_when_used() -> Iterator[None]:
    """What imports pandas within the block has it loaded when it uses something of it; pandas that was loaded before is
    as ever. Whoever imports it after the block is given the package itself."""
    spec = None if PANDAS in sys.modules else importlib.util.find_spec(PANDAS)
    if spec is None:
        yield
        return
    sys.modules[PANDAS] = stand_in = _WhenUsed(spec)
    try:
        yield
    finally:
        if sys.modules.get(PANDAS) is stand_in:
            del sys.modules[PANDAS]


class _WhenUsed(ModuleType):
    """Stands for a package until something of it is used. (importlib's LazyLoader loads it when it is imported.)"""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__file__ = spec, spec.origin  # asked of all modules by `inspect`

    def __getattr__(self, attribute: str) -> Any:
        """What the package has under this name."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)
