"""The ImageNet weights of a job on this machine: in torch's cache before the run is made, or one sentence why not.

A job finds the file where torch looks for it. Here it is fetched first, so that who waits sees bytes, and a machine
without a network makes no run that fails.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from image_classifier.contract.errors import WeightsError, describe
from image_classifier.contract.files import replacing
from image_classifier.launch.progress import in_time
from image_classifier.launch.view import Drawing, View, one_line
from image_classifier.vision.network import IMAGENET_FILE, IMAGENET_URL

TIMEOUT_S = 20.0  # of a connection that says nothing
CHUNK_BYTES = 1 << 18


def cache_file() -> Path:
    """Where torch looks for the file: `torch.hub.get_dir()`, without torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / IMAGENET_FILE


def fetch_imagenet(view: View, url: str = IMAGENET_URL) -> Path:
    """The file in the cache, downloaded if it is not there: whole and with the checksum in its name, or not at all.

    Raises:
        WeightsError: it cannot be had.
        PlatformError: it cannot be written.
    """
    file, digest = cache_file(), hashlib.sha256()
    if file.is_file():
        return file
    view.note(f"the ImageNet weights are fetched once, into {file.parent}")
    with replacing(file) as out:
        for chunk in _download(url, file, view):
            out.write(chunk)
            digest.update(chunk)
        if not digest.hexdigest().startswith(file.stem.rpartition("-")[2]):
            raise WeightsError(f"what came from {url} is not {file.name}: its checksum differs", _hint(file))
    return file


def _hint(file: Path) -> str:
    return f"give a file: --weights FILE, put {file.name} into {file.parent}, or start from nothing: --weights none"


def _download(url: str, file: Path, view: View) -> Iterator[bytes]:
    """What comes from `url`, and how much of it is there for who waits. Raises WeightsError."""
    progress = _Bytes()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, view.live() as live:  # noqa: S310  # it is https
            progress.total = int(answer.headers.get("Content-Length") or 0)
            live.draw(progress.drawing)
            while chunk := answer.read(CHUNK_BYTES):
                progress.came += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:  # urllib's are OSErrors
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer, too
        raise WeightsError(f"the ImageNet weights cannot be had from {url}: {describe(error)}", _hint(file)) from None
    view.note(f"weights: {progress.in_words()}")


class _Bytes:
    """How many came of how many, 0 where the server does not say."""

    def __init__(self) -> None:
        self.came = self.total = 0
        self._begun = time.monotonic()

    def in_words(self) -> str:
        """`12.0 of 102.5 MB  3 s, 22 s left`."""
        elapsed = time.monotonic() - self._begun
        left = elapsed / self.came * (self.total - self.came) if 0 < self.came < self.total else None
        of = f" of {self.total / 1e6:.1f}" if self.total else ""
        return f"{self.came / 1e6:.1f}{of} MB  {in_time(elapsed, left)}"

    def drawing(self) -> Drawing:
        """As it is now."""
        return one_line(f"weights: {self.in_words()}")
