"""Our handler under multi-model-server with the model server itself on the port: what stands there without our front.

SAGEMAKER_BASE_DIR=FOLDER PYTHONPATH=code:. python benchmarks/direct_server.py PORT WORKERS
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from image_classifier.serving.scratch import Scratch
from image_classifier.serving.server import ServerProcess


class DirectServer(ServerProcess):
    """The model server on a port of 127.0.0.1."""

    def __init__(self, scratch: Scratch, port: int, num_workers: int) -> None:
        self._port = port
        super().__init__(scratch, num_workers=num_workers)

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"MMS_INFERENCE_ADDRESS": f"http://127.0.0.1:{self._port}"}


def main() -> None:
    port, num_workers = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="ic-", ignore_cleanup_errors=True) as folder:
        scratch = Scratch(Path(folder))
        scratch.create()
        with DirectServer(scratch, port, num_workers):
            signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
