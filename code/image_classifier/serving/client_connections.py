"""One client's connection to the front, and how many of them there are: aiohttp's, with an end to every patience.

no complete request yet   -> 408 and closed after HEAD_LIMIT_S, between two requests after IDLE_LIMIT_S
too many connections      -> the one that has been idle for longest makes room, else the oldest of those whose body
                             has not come whole; there is none either: 503 and closed
what is not HTTP          -> 400 or 431 in our words
half closed               -> answered, then closed
takes no answers          -> closed after STALL_LIMIT_S
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import http_exceptions, web

from image_classifier.contract.errors import (
    HeadersTooLarge,
    Overloaded,
    RequestError,
    RequestTimeout,
    Unanswered,
)
from image_classifier.serving.codec import encode_error

HEAD_LIMIT_S = 10.0
IDLE_LIMIT_S = 75.0  # longer than a load balancer keeps its side, 60 s as a rule: else it meets closed connections
STALL_LIMIT_S = 30.0
MAX_HEAD_FIELD_BYTES = 8190  # of the request line and of each header
MAX_HEADERS = 100
SERVER_NAME = "image-classifier"
_HALF_CLOSED_POLL_S = 0.02

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ConnectionLimit(web.Server):
    """Makes the connections, and keeps count of them.

    Args:
        answer: a request -> its answer. Answers requests of one connection in turn.
        refuse: a status and an error -> the answer to what was no request.
        max_connections: how many there are at most.
    """

    def __init__(
        self,
        answer: Answering,
        refuse: Callable[[web.BaseRequest, RequestError | Unanswered], web.StreamResponse],
        *,
        max_connections: int,
    ) -> None:
        super().__init__(
            answer,
            access_log=None,
            keepalive_timeout=IDLE_LIMIT_S,
            max_line_size=MAX_HEAD_FIELD_BYTES,
            max_field_size=MAX_HEAD_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
        )
        self.refuse = refuse
        self._max_connections = max_connections

    def __call__(self) -> ClientConnection:
        """What the event loop calls for each connection."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    def has_room(self) -> bool:
        """Whether one more connection may stay, for which one that waits or is slow is closed if need be."""
        if len(self._connections) <= self._max_connections:
            return True
        open_ones = [each for each in self.connections if isinstance(each, ClientConnection) and each.transport]
        if len(open_ones) <= self._max_connections:
            return True
        others = open_ones[:-1]
        if idle := [each for each in others if each.is_idle]:
            min(idle, key=lambda each: each.idle_until).force_close()
        elif sending := [each for each in others if each.is_sending]:
            sending[0].force_close()
        else:
            return False
        return True

    def close_idle(self) -> int:
        """Closes the connections on which no request is under way. Returns how many are left."""
        left = 0
        for each in self.connections:
            if isinstance(each, ClientConnection) and each.transport:
                if each.is_idle:
                    each.force_close()
                else:
                    left += 1
        return left


class ClientConnection(web.RequestHandler):
    """One connection."""

    __slots__ = ("_head_timer", "_limit", "_stall_timer", "has_broken_off")

    def __init__(self, limit: ConnectionLimit, **options: Any) -> None:
        super().__init__(limit, **options)
        self._limit = limit
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.has_broken_off = False  # the client closed its side in the middle of a body

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way: the next one is waited for, and has not come whole with its headers."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    @property
    def is_sending(self) -> bool:
        """Whether the body of the request that is under way has not come whole."""
        return self._current_request is not None and not self._current_request._payload.is_eof()

    @property
    def idle_until(self) -> float:
        """When it is closed, if it stays idle; of the event loop's clock."""
        return self._next_keepalive_close_time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._limit.has_room():
            self._refuse_unasked(Overloaded("too many clients are connected", "ask again in a second"))
            return
        self._head_timer = self._loop.call_later(HEAD_LIMIT_S, self._check_asked)

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio keeps the connection open on True
        """The client sends nothing more. What it has asked for in full is still answered."""
        if self.is_idle:
            return False
        self._close_when_answered()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self._loop.call_later(STALL_LIMIT_S, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is not HTTP. aiohttp's own would be plain text."""
        error: RequestError | Unanswered
        if status == HTTPStatus.BAD_REQUEST:
            if isinstance(exc, http_exceptions.LineTooLong) or "too many headers" in (message or "").lower():
                limits = f"each may have {MAX_HEAD_FIELD_BYTES} bytes, and there may be {MAX_HEADERS} headers"
                error = HeadersTooLarge("the request line or the headers are too long", limits)
            else:
                error = RequestError("this is no HTTP request that can be understood", "see GET /openapi.json")
        else:
            self.logger.error("a request failed", exc_info=exc)
            error = Unanswered("internal error", "the server's log tells more")
        answer = self._limit.refuse(request, error)
        answer.force_close()
        return answer

    def _check_asked(self) -> None:
        self._head_timer = None
        if self._request_count == 0:
            self._refuse_unasked(
                RequestTimeout("no whole request came in time", f"the headers may take {HEAD_LIMIT_S:g} s")
            )

    def _refuse_unasked(self, error: RequestError | Unanswered) -> None:
        """An answer though there is no request, written by hand: aiohttp answers requests only."""
        answer = encode_error(error)
        retry = "Retry-After: 1\r\n" if isinstance(error, Overloaded) else ""
        head = (
            f"HTTP/1.1 {answer.status} {answer.phrase}\r\nServer: {SERVER_NAME}\r\n{retry}Connection: close\r\n"
            f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode("ascii") + answer.body)
        self.force_close()

    def _close_when_answered(self) -> None:
        if self.transport is None:
            return
        if self.is_idle:
            self.force_close()
            return
        request = self._current_request
        if self.is_sending and request is not None:  # the rest of its body will never come
            self.has_broken_off = True
            request._payload.feed_eof()
        self._loop.call_later(_HALF_CLOSED_POLL_S, self._close_when_answered)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
