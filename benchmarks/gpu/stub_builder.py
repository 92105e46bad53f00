"""The stubs of docker/trim.py for any torch, one library at a time. Standard library, gcc and binutils only."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType

from benchmarks.gpu.kit import ROOT

SEARCHED = ("torch", "torchvision", "nvidia")  # where what calls the stubbed libraries may be


def load_trim() -> ModuleType:
    """docker/trim.py, which is a program and no module of a package."""
    spec = importlib.util.spec_from_file_location("trim", ROOT / "docker" / "trim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_one_of(libraries: Collection[str], place: str) -> bool:
    """Whether `nvidia/.../libx.so.1` is one of the libraries named `libx`."""
    return Path(place).name.partition(".so")[0] in libraries


def has_compiler() -> bool:
    """Whether stubs can be built here."""
    return all(shutil.which(program) for program in ("gcc", "nm", "readelf"))


def removed_from(trim: ModuleType, site: Path) -> list[Path]:
    """The files below `site` that the images do not have, and that call what is stubbed or are called by that alone."""
    patterns = (*trim.REMOVED, *trim.OPENED_LATE, *trim.ONLY_FOR_STUBBED)
    return [path for pattern in patterns for path in sorted(site.glob(pattern)) if path.is_file()]


def build_all(trim: ModuleType, site: Path) -> Iterator[tuple[str, bytes | str]]:
    """Place below `site` -> the stub, or why there is none: a caller that nobody has looked at."""
    removed = {path.name for path in removed_from(trim, site)}
    imported: dict[str, set[str]] = {}
    for package in SEARCHED:
        imported |= trim.imported_symbols(site / package)
    imported = {name: symbols for name, symbols in imported.items() if name not in removed}
    for name, examined in (trim.STUBBED | trim.SERVE_STUBBED).items():
        for library in sorted(site.glob(f"nvidia/**/{name}.so.*")):
            place = library.relative_to(site).as_posix()
            try:
                yield place, trim.build_stub(library, imported, examined)
            except SystemExit as error:
                yield place, str(error)
