"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from image_classifier.contract.errors import PlatformError, describe


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
