"""What frozen bodies computed, kept on the disk for the next job: rows of numbers by weights, picture and view.

    STORE/KEY/PART.features     PART is drawn at random; a header line, then the rows' names, then the rows
    STORE/KEY/NOTE.json         a few numbers that belong to certain pictures

KEY stands for everything that decides a row besides the picture and the view of it: weights, preprocessing, engine. A
part is written whole or not at all, under a name that nobody else writes, and is checked by its sums when it is read.
What is damaged or missing is as what was never computed. A store is never needed: what cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import PlatformError, describe
from image_classifier.contract.files import replacing, write_text

log = logging.getLogger(__name__)

MAX_BYTES = 2 * 1024**3  # of all keys together: 130,000 pictures in two views
FREE_BYTES = 2 * 1024**3  # of the disk are left to checkpoints and models
NOTE_BYTES = 64 * 1024  # more than the statistics of all activations take
NAME_BYTES = 32  # of a row: a sha256
SUFFIX = ".features"
KEY_NAME = re.compile(r"[0-9a-f]{32}")  # of a key's folder: nothing else is removed
LEFT_AFTER_S = 3600.0  # a temporary file that old was left by a process that was killed
PRIVATE = 0o700  # what pictures look like to a network is their owner's alone

Rows = dict[bytes, NDArray[np.float32]]


Numbers = dict[str, dict[str, float]]


def note_name(names: Sequence[str]) -> str:
    """The file in which the numbers of these names lie."""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:32] + ".json"


def row_name(view: str, content: str) -> bytes:
    """The name of a row: of a view of the picture whose file has this digest."""
    return hashlib.sha256(f"{view}\0{content}".encode()).digest()


class FeatureStore:
    """The rows of one key. Nothing here raises for what is on the disk.

    Args:
        folder: shared by all keys; None keeps nothing.
        key: what decides a row besides its name, as JSON values.
        width: numbers in a row.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, object], width: int) -> None:
        self.folder = folder
        self._width = width
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self._place = None if folder is None else folder / name

    def load(self, names: Iterable[bytes]) -> Rows:
        """Those of the rows asked for that are kept and sound."""
        wanted, found = set(names), Rows()
        if self._place is None or not wanted:
            return found
        with suppress(OSError):
            os.utime(self._place)  # the least recently used key goes first
        for part in self._parts(self._place):
            rows = self._read(part, wanted)
            if rows is not None and not rows:  # nothing that is not known already, or not asked for
                continue
            found |= rows or {}
            wanted.difference_update(found)
        return found

    def save(self, rows: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Keeps rows for other jobs, as far as there is room; says once that it cannot."""
        if self._place is None or not rows:
            return
        names, values = b"".join(rows), np.stack(list(rows.values()))
        content = [names, values.tobytes()]
        header = {
            "rows": len(rows),
            "width": self._width,
            "sums": [hashlib.sha256(each).hexdigest() for each in content],
        }
        content.insert(0, json.dumps(header).encode() + b"\n")
        try:
            self._make_room(sum(map(len, content)))
            with replacing(self._place / f"{uuid.uuid4().hex}{SUFFIX}") as file:
                file.writelines(content)
        except (PlatformError, OSError) as error:
            self._place = None
            log.warning("features are not kept for the next job: %s", describe(error))

    def save_note(self, names: Sequence[str], values: Numbers) -> None:
        """Keeps a few numbers of the key's that belong to these names."""
        if self._place is None:
            return
        try:
            self._make_room(NOTE_BYTES)
            text = json.dumps(values)
            note = {"sum": hashlib.sha256(text.encode()).hexdigest(), "values": text}
            write_text(self._place / note_name(names), json.dumps(note))
        except (PlatformError, OSError, ValueError) as error:
            log.warning("statistics are not kept for the next job: %s", describe(error))

    def load_note(self, names: Sequence[str]) -> Numbers | None:
        """What `save_note` kept, None when there is nothing, or it is damaged."""
        if self._place is None:
            return None
        try:
            note = json.loads((self._place / note_name(names)).read_bytes())
            text = str(note["values"]).encode()
            return json.loads(checked(text, len(text), note["sum"]))  # type: ignore[no-any-return]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self, part: Path, wanted: set[bytes]) -> Rows | None:
        """The wanted rows of a part; None, and the part removed, when it is damaged."""
        try:
            with part.open("rb") as file:
                header = json.loads(file.readline(1000))
                count, width, sums = int(header["rows"]), int(header["width"]), list(header["sums"])
                if width != self._width or not 0 < count * width * 4 <= MAX_BYTES:
                    raise ValueError("rows of another kind")
                names = checked(file.read(count * NAME_BYTES), count * NAME_BYTES, sums[0])
                places = [(names[at : at + NAME_BYTES], at // NAME_BYTES) for at in range(0, len(names), NAME_BYTES)]
                if not any(name in wanted for name, _ in places):
                    return {}
                values = checked(file.read(count * width * 4 + 1), count * width * 4, sums[1])
        except FileNotFoundError:  # another job made room
            return {}
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            log.warning("features that were kept are damaged and computed again: %s", describe(error))
            with suppress(OSError):
                part.unlink()
            return None
        table = np.frombuffer(values, np.float32).reshape(count, width)
        return {name: table[at] for name, at in places if name in wanted}

    @staticmethod
    def _parts(place: Path) -> list[Path]:
        try:
            return sorted(place.glob(f"*{SUFFIX}"))
        except OSError:  # it may be another user's
            return []

    def _make_room(self, num_bytes: int) -> None:
        """Makes the folder and removes what was not used for longest. Raises PlatformError when there is no room."""
        assert self.folder is not None
        assert self._place is not None
        self.folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        self._place.mkdir(mode=PRIVATE, exist_ok=True)
        if shutil.disk_usage(self.folder).free < FREE_BYTES + num_bytes:
            raise PlatformError(f"the disk of {self.folder} is nearly full")
        kept = sum(map(size_of, self.folder.glob(f"*/*{SUFFIX}")))
        for place in sorted(self.folder.iterdir(), key=modified):
            remove_leftovers(place)
            if kept + num_bytes <= MAX_BYTES:
                break
            if place != self._place and KEY_NAME.fullmatch(place.name):
                kept -= sum(map(size_of, place.glob(f"*{SUFFIX}")))
                shutil.rmtree(place, ignore_errors=True)
        if kept + num_bytes > MAX_BYTES:
            raise PlatformError(f"{self.folder} holds {MAX_BYTES / 1e9:.1f} GB, and more is not kept")


def checked(data: bytes, size: int, digest: str) -> bytes:
    """The data. Raises ValueError when it has another size or sha256."""
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("another size or checksum than when it was written")
    return data


def remove_leftovers(place: Path) -> None:
    """Removes what a process that was killed had begun to write."""
    for leftover in place.glob(f".*{SUFFIX}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFT_AFTER_S:
                leftover.unlink()


def size_of(path: Path) -> int:
    """Bytes; 0 for what is gone."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def modified(path: Path) -> float:
    """When it was used last, Unix seconds; 0 for what is gone."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
