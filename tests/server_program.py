"""The real server program, started as a container starts it, and sockets to it."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from tests.processes import lives, runs_program

from image_classifier.contract.endpoint import MAX_PORT

WORKERS = 2
PATIENCE_S = 60.0


@dataclass
class Program:
    """A server program, everything it printed, and what /ping answered while it started."""

    process: subprocess.Popen[bytes]
    url: str
    temporary: Path
    log: Path
    reports_at_first_ping: int | None = None

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    @property
    def ready(self) -> bool:
        return any(line.startswith("ready ") for line in self.lines)

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The processes that answer, not the one they are forked from, if they are."""
        found = [p for p in self.tree() if runs_program(p, "model_service_worker")]
        return [p for p in found if p.parent() in found] or found

    def post(self, body: bytes, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(f"{self.url}/invocations", data=body, headers=named, timeout=PATIENCE_S)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """What this thread starts meanwhile has so many cores, if there are as many."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def free_port() -> int:
    """One that the model server takes: the system's own choice is always too high."""
    while True:
        port = random.randint(20_000, MAX_PORT)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def start(base: Path, temporary: Path, **environment: str) -> Program:
    """Starts the program as a container does: through the environment only, in a folder it cannot rely on.

    On a core for each of WORKERS, as far as there are so many: fewer workers than cores are not forked.
    """
    temporary.mkdir()
    port = int(environment.get("SAGEMAKER_BIND_TO_PORT") or free_port())
    log = temporary.with_suffix(".log")
    with log.open("wb") as output, on_cores(WORKERS):
        process = subprocess.Popen(
            [sys.executable, "-m", "image_classifier.serving.entry", "serve"],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(Path(__file__).parents[1] / "code"),
                "SAGEMAKER_BASE_DIR": str(base),
                "SAGEMAKER_MODEL_SERVER_WORKERS": str(WORKERS),
                "CLASSIFIER_BIND_TO_HOST": "127.0.0.1",
                "TMPDIR": str(temporary),
            }
            | environment
            | {"SAGEMAKER_BIND_TO_PORT": str(port)},
            cwd="/",
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Program(process, f"http://127.0.0.1:{port}", temporary, log)


def wait_until(condition: Callable[[], bool], program: Program) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, program.output
        time.sleep(0.02)


def wait_until_ready(program: Program) -> None:
    """Asks /ping all the time, as SageMaker does, and notes how many workers had reported when it was first 200."""
    while program.reports_at_first_ping is None or not program.ready:
        assert program.process.poll() is None, program.output
        if program.reports_at_first_ping is None:
            with suppress(requests.ConnectionError):
                assert requests.get(f"{program.url}/ping", timeout=5).status_code == 200
                program.reports_at_first_ping = len(list(program.temporary.glob("ic-*/workers/*")))
        time.sleep(0.005)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(map(lives, processes))


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def raw(url: str, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """A request written byte by byte: (status, body of the answer)."""
    with closing(connect(url)) as connection:
        connection.sendall(head.replace(b"\n", b"\r\n") + b"Host: x\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection)
        with closing(response):
            response.begin()
            return response.status, response.read()


def bad_post(headers: bytes, body: bytes = b"x") -> tuple[bytes, bytes]:
    return b"POST /invocations HTTP/1.1\nContent-Length: %d\n" % len(body) + headers, body
