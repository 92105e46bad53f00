"""Files that are whole or not there, and that are files."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, overload

from image_classifier.contract.errors import PlatformError, describe


@overload
def open_plain(path: Path, mode: Literal["rb"] = "rb") -> io.BufferedReader: ...
@overload
def open_plain(path: Path, mode: Literal["ab"]) -> io.BufferedWriter: ...
@overload
def open_plain(path: Path, mode: Literal["r", "a"], *, encoding: str, errors: str = "strict") -> io.TextIOWrapper: ...
def open_plain(path: Path, mode: str = "rb", **text: Any) -> Any:
    """Opens a file as `open` does, if it is one.

    Raises:
        OSError: as `open`; and for a pipe, a socket or a device, which `open` may wait for for ever, and for a folder.
    """
    return open(path, mode, opener=_open_plain, **text)  # pathlib's knows no opener


def _open_plain(path: str, flags: int) -> int:
    with suppress(FileNotFoundError):
        _require_plain(Path(path).stat().st_mode, path)  # before: to open a device may do something
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    try:
        _require_plain(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_plain(mode: int, path: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device in the place of a file", path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Whatever happens, a reader finds the old file or the new one: the bytes are on the disk before the name is.

    Raises:
        PlatformError: a full disk, a missing permission; the sentence names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or describe(error)
        raise PlatformError(f"cannot write {path}: {reason}", "free some space, or check permissions") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` as UTF-8. Raises PlatformError, see `replacing`.

    A lone surrogate, which stands for a byte of a name that is not UTF-8, becomes the escape `\\udce9`: JSON reads
    it back.
    """
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
