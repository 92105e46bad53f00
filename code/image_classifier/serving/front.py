"""The server on the public port: an event loop in a thread of its own, listening, draining, closed.

client -> aiohttp (client_connections.py) -> Api -> Backend (unix socket) -> model server -> worker
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from aiohttp import web

from image_classifier.serving.access_log import AccessLog
from image_classifier.serving.api import Api
from image_classifier.serving.backend import Backend
from image_classifier.serving.client_connections import ConnectionLimit
from image_classifier.serving.drift_watch import DriftWatch
from image_classifier.serving.meters import CONTENT_TYPE, Meters

MAX_CONNECTIONS = 512
KEEP_ALIVE_GRACE_S = 0.5  # in which clients that are connected learn, by their next answer, that this is over
_CLOSE_LIMIT_S = 1.0  # for the last answers, and then for telling those that wait that there will be none
_BACKLOG = 1024
_POLL_S = 0.01

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What stands behind a front.

    Args:
        socket: where the model server listens.
        num_workers: how many processes answer there.
        num_alive: how many of them can at the moment; asked often.
        about: what GET /ping tells of them.
        answer_s: seconds that an answer may take.
    """

    socket: Path
    num_workers: int
    num_alive: Callable[[], int]
    about: Mapping[str, object]
    answer_s: float


class Front:
    """An HTTP server. Its methods are for other threads. Use as a context manager: leaving it answers what is left."""

    def __init__(self, behind: Behind, access_log: AccessLog) -> None:
        """Starts without listening. `access_log` is closed with the front."""
        self._behind = behind
        self._access_log = access_log
        self._backend = Backend(behind.socket)
        self._servers: list[asyncio.AbstractServer] = []
        self._listeners: list[socket.socket] = []
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._thread.start()
        self._api, self._limit, self._meters = self._run(self._build())

    async def _build(self) -> tuple[Api, ConnectionLimit, Meters]:
        behind = self._behind
        meters = Meters(
            num_alive=behind.num_alive,
            num_under_way=lambda: self._api.num_under_way,
            num_connections=lambda: len(self._limit.connections),
        )
        api = Api(
            self._backend,
            answer_s=behind.answer_s,
            num_workers=behind.num_workers,
            num_alive=behind.num_alive,
            about=behind.about,
            meters=meters,
            access_log=self._access_log,
        )
        return api, ConnectionLimit(api.answer, api.refuse, max_connections=MAX_CONNECTIONS), meters

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen_privately(self, path: Path) -> None:
        """Answers on a unix socket, for the program itself."""
        self._servers.append(self._run(self._loop.create_unix_server(self._limit, str(path))))

    def listen(self, listener: socket.socket) -> None:
        """Answers the public on a socket that is bound. Raises OSError when it cannot."""
        self._listeners.append(listener.dup())  # so that it outlives the server: `drain` takes what waits in it
        self._servers.append(self._run(self._loop.create_server(self._limit, sock=listener, backlog=_BACKLOG)))

    def watch_drift(self, watch: DriftWatch) -> None:
        """Has the meters show what it finds."""
        self._meters.watch_drift(lambda: watch.found, lambda: watch.num_answers)

    def show_meters(self, listener: socket.socket) -> None:
        """Answers GET /metrics on another socket that is bound."""
        self._servers.append(self._run(self._serve_meters(listener)))

    async def _serve_meters(self, listener: socket.socket) -> asyncio.AbstractServer:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if request.path != "/metrics":
                return web.Response(status=404, text="there is /metrics\n")
            return web.Response(body=self._meters.text(), headers={"Content-Type": CONTENT_TYPE})

        return await self._loop.create_server(web.Server(answer, access_log=None), sock=listener)

    def drain(self, limit_s: float) -> None:
        """Returns when everything that was accepted is answered, or after `limit_s`; nothing is accepted after it."""
        self._run(self._drain(limit_s))

    async def _drain(self, limit_s: float) -> None:
        deadline = self._loop.time() + limit_s
        self._api.is_draining = True  # from here on an answer is the last one of its connection
        await asyncio.sleep(min(KEEP_ALIVE_GRACE_S, limit_s))
        await self._stop_listening()
        await self._wait_until_idle(deadline)

    async def _stop_listening(self) -> None:
        """Closes the listeners. The system would reset what has connected and was not taken yet: take it first."""
        while self._servers:
            self._servers.pop().close()
        await asyncio.sleep(0)
        while self._listeners:
            with self._listeners.pop() as listener:
                listener.setblocking(False)
                with suppress(OSError):  # until none waits
                    while True:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        await self._loop.connect_accepted_socket(self._limit, connection)

    def close(self) -> None:
        """Ends the thread. Those that still wait are told so, unless they do not listen."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._access_log.close()

    async def _close(self) -> None:
        self._api.is_draining = True
        await self._stop_listening()
        await self._wait_until_idle(self._loop.time() + _CLOSE_LIMIT_S)
        self._backend.break_off()
        await self._wait_until_idle(self._loop.time() + _CLOSE_LIMIT_S)
        await self._limit.shutdown(0)

    async def _wait_until_idle(self, deadline: float) -> None:
        while self._limit.close_idle() and self._loop.time() < deadline:
            await asyncio.sleep(_POLL_S)

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
