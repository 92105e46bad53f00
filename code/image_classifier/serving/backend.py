"""The way from the front to the model server: HTTP/1.1 over its unix socket, on connections that are kept.

Only what that one server writes is understood: a status, headers, and a body whose length is told. It is a program of
ours on this machine; the public's requests and their oddities end in the front.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAX_HEAD_BYTES = 65_536  # of an answer; the model server's own are 500


class BackendBroken(Exception):
    """The model server did not answer as it should: the connection ended, or what came is no answer."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model server answered. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, eq=False)
class _Line:
    """One open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Backend:
    """The model server behind `path`. Use from one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._free: list[_Line] = []
        self._lines: set[_Line] = set()  # all that are open

    async def ask(self, headers: dict[str, str], body: bytes) -> Reply:
        """Has one request answered by POST /invocations.

        A kept connection that turns out to be closed is replaced by a new one, once. When this is cancelled, the
        connection is closed: its answer, still to come, belongs to nobody.

        Args:
            headers: names and values of printable ASCII.

        Raises:
            BackendBroken: there is no answer.
        """
        lines = ["POST /invocations HTTP/1.1", "Host: model", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        if self._free:
            with suppress(_Stale):
                return await self._exchange(self._free.pop(), head, body)
        try:
            line = _Line(*await asyncio.open_unix_connection(self._path, limit=_MAX_HEAD_BYTES))
        except OSError as error:
            raise BackendBroken(f"the model server cannot be reached: {error.strerror}") from None
        self._lines.add(line)
        try:
            return await self._exchange(line, head, body)
        except _Stale:
            raise BackendBroken("the model server closed the connection") from None

    async def _exchange(self, line: _Line, head: bytes, body: bytes) -> Reply:
        """One request and its answer; then the connection is free again, or closed when anything went wrong."""
        try:
            line.writer.write(head)
            line.writer.write(body)
            await line.writer.drain()
            reply = _parse_head(await line.reader.readuntil(b"\r\n\r\n"))
            length = int(reply.headers["content-length"])
            reply = Reply(status=reply.status, headers=reply.headers, body=await line.reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            self._close(line)
            if not error.partial:
                raise _Stale from None
            raise BackendBroken("the model server broke off its answer") from None
        except OSError:
            self._close(line)
            raise _Stale from None
        except (ValueError, KeyError, IndexError, asyncio.LimitOverrunError):
            self._close(line)
            raise BackendBroken("the model server's answer cannot be read") from None
        except BaseException:
            self._close(line)
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self._close(line)
        else:
            self._free.append(line)
        return reply

    def break_off(self) -> None:
        """Closes all connections: whoever waits for an answer gets BackendBroken."""
        self._free.clear()
        for line in list(self._lines):
            line.writer.transport.abort()

    def _close(self, line: _Line) -> None:
        self._lines.discard(line)
        line.writer.close()


class _Stale(Exception):
    """The connection was closed before the answer began."""


def _parse_head(head: bytes) -> Reply:
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {}
    for text in lines:
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Reply(status=int(first.split(" ", 2)[1]), headers=headers, body=b"")
