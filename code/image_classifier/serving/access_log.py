"""One line of JSON a request, off the path of the request.

    {"time": "2026-11-26T08:12:39.512Z", "id": "9f0c...", "client": "127.0.0.1", "method": "POST",
     "path": "/invocations", "status": 200, "bytes_in": 51234, "bytes_out": 212, "ms": 19.4}

The lines go to standard output, or to the file that ACCESS_LOG_VARIABLE names, which is begun anew at MAX_FILE_BYTES
and kept NUM_OLD_FILES times. A thread of its own writes them: a disk that is full or a reader that stalls costs lines,
never an answer; how many is said when it is over.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

MAX_FILE_BYTES = 10 * 1024**2
NUM_OLD_FILES = 4
_MAX_WAITING = 10_000  # lines, about 3 MB
_PATIENCE_S = 1.0  # with a reader that stalls, at the end


class AccessLog:
    """Where requests are logged. Lines may be given by any thread."""

    def __init__(self, file: Path | None) -> None:
        """Raises OSError when `file` cannot be written. Without it, the lines go to standard output."""
        self._handler: logging.Handler
        if file is None:
            self._handler = logging.StreamHandler(sys.stdout)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._handler = logging.handlers.RotatingFileHandler(
                file, maxBytes=MAX_FILE_BYTES, backupCount=NUM_OLD_FILES, encoding="utf-8"
            )
        self._handler.handleError = self._count_lost  # type: ignore[method-assign]
        self._lost = 0
        self._waiting: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._writer = threading.Thread(target=self._write_waiting, name="access log", daemon=True)
        self._writer.start()

    def write(self, **fields: object) -> None:
        """One line; `time` is added. Control characters come out escaped, as JSON has it."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        if self._lost:
            fields["lines_lost_before"], self._lost = self._lost, 0
        try:
            self._waiting.put_nowait(json.dumps({"time": stamp} | fields, ensure_ascii=True))
        except queue.Full:
            self._lost += 1 + int(str(fields.get("lines_lost_before", 0)))

    def close(self) -> None:
        """Writes what waits, or gives up when nobody takes it."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=_PATIENCE_S)
        self._writer.join(_PATIENCE_S)
        if not self._writer.is_alive() and isinstance(self._handler, logging.FileHandler):
            with suppress(OSError):
                self._handler.close()

    def _write_waiting(self) -> None:
        while (line := self._waiting.get()) is not None:
            self._handler.emit(logging.LogRecord("access", logging.INFO, "", 0, line, None, None))

    def _count_lost(self, record: logging.LogRecord) -> None:
        self._lost += 1
