"""The front on a real port, with a small model server behind it that does as it is told."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from tests.conftest import jpeg

from image_classifier.serving.access_log import AccessLog
from image_classifier.serving.front import Behind, Front

PATIENCE_S = 20.0
GOOD = b'{"predictions": [{"label": "a", "probability": 1.0}], "model": "m"}\n'
DIED = b'{"code": 500, "type": "InternalServerException", "message": "Worker died."}'


def answer(body: bytes, status: str = "200 OK", engine: str = "X-Engine: e\r\n") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{engine}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class ModelServer:
    """Answers on a unix socket with what `script` returns for the number of the request: None closes the connection."""

    def __init__(self, path: Path, script: Callable[[int], bytes | None]) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(ConnectionError), connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                head = line
                while (line := stream.readline()) not in {b"\r\n", b""}:
                    head += line
                length = next(int(each[15:]) for each in head.split(b"\r\n") if each.startswith(b"Content-Length:"))
                self.bodies.append(stream.read(length))
                self.heads.append(head)
                written = self.script(len(self.heads))
                if written is None:
                    return
                connection.sendall(written)
                if written.endswith(b"short"):
                    return

    def close(self) -> None:
        self._listener.close()


class Endpoint:
    """A front on a port of this machine. `alive` is what it is told of the workers."""

    def __init__(self, folder: Path, script: Callable[[int], bytes | None], *, answer_s: float = PATIENCE_S) -> None:
        self.alive = 2
        self.log = folder / "access.log"
        self.model_server = ModelServer(folder / "model.sock", script)
        behind = Behind(
            socket=folder / "model.sock",
            num_workers=1,
            num_alive=lambda: self.alive,
            about={"model": "m"},
            answer_s=answer_s,
        )
        self.front = Front(behind, AccessLog(self.log))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.front.listen(listener)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def ask(self, method: str = "POST", path: str = "/invocations", body: bytes | None = None, **headers: str):
        """(status, headers, JSON) of the answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            body = jpeg(0) if method == "POST" and body is None else body
            connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read() or b"null")

    def close(self) -> None:
        self.front.close()
        self.model_server.close()
