"""What the endpoint answers, path by path: the requests that are for the model go to it, all others end here.

    client -> aiohttp (client_connections.py) -> Api -> Backend (unix socket) -> model server -> worker

The model server's own HTTP side is old and trusting. It hears of a request when that is known to be one for the model:
path, method, headers and length are right, and the whole body is there. A request is given to a second worker when the
first one dies with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import HttpVersion11, web

from image_classifier.contract import wire
from image_classifier.contract.errors import (
    AnswerTimeout,
    ExpectationFailed,
    MethodNotAllowed,
    NoSuchPath,
    NotAcceptable,
    Overloaded,
    RequestError,
    RequestTimeout,
    Unanswered,
    UnsupportedMedia,
)
from image_classifier.serving.access_log import AccessLog
from image_classifier.serving.backend import Backend, BackendBroken, Reply
from image_classifier.serving.client_connections import SERVER_NAME, ClientConnection
from image_classifier.serving.codec import (
    Request,
    check_length,
    encode_error,
    is_top_k_given,
    make_request,
    parse_headers,
)
from image_classifier.serving.envelopes import Opened, compose, open_envelope
from image_classifier.serving.meters import Meters
from image_classifier.serving.openapi import PATHS, description

BODY_LIMIT_S = 60.0  # for 6 MiB that is 0.8 Mbit/s
MAX_UNDER_WAY = 100  # requests that are answered or wait for a worker
MAX_BODIES_BYTES = 256 * 1024**2  # of their bodies, and of those that are arriving
WORKER_PATIENCE_S = 10.0  # for one to come back while none is alive
_ALIVE_POLL_S = 0.05
_ATTEMPTS = 2
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")
_RETRY_AFTER_S = "1"
_UNAVAILABLE = 503
_CLIENT_GONE = 499  # in the log only, where nginx has made it known

_log = logging.getLogger("image_classifier.serving")


@dataclass(kw_only=True)
class _Asked:
    """What becomes known of a request while it is answered, for the log and for the answer's headers."""

    id: str
    path: str
    started: float  # of time.perf_counter(), as the two below
    worked_from: float | None = None
    worked_until: float | None = None
    bytes_in: int = 0


class Api:
    """The endpoint. Lives in one event loop.

    Args:
        answer_s: seconds from the last byte of a request to its answer.
        num_workers: how many processes answer.
        num_alive: how many of them can at the moment; asked often.
        about: what GET /ping tells beside the status.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        answer_s: float,
        num_workers: int,
        num_alive: Callable[[], int],
        about: Mapping[str, object],
        meters: Meters,
        access_log: AccessLog,
    ) -> None:
        self.is_draining = False
        self.num_under_way = 0
        self._backend = backend
        self._answer_s = answer_s
        self._num_workers = num_workers
        self._num_alive = num_alive
        self._about = dict(about)
        self._meters = meters
        self._access_log = access_log
        self._bodies_bytes = 0
        self._slots = asyncio.Semaphore(2 * num_workers)  # one works, and the next waits at its door

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to any request; raises nothing but what ends the connection."""
        now = time.perf_counter()
        asked = _Asked(id=_request_id(request), path=_path(request), started=now)
        try:
            response = await self._route(request, asked)
        except (RequestError, Unanswered) as error:
            response = _refusal(error)
        except ConnectionError:
            response = web.Response(status=_CLIENT_GONE)
        except Exception:
            _log.exception("request %s failed", asked.id)
            response = _refusal(Unanswered("internal error", f"the server's log tells more: look for {asked.id}"))
        self._finish(request, response, asked)
        return response

    def refuse(self, request: web.BaseRequest, error: RequestError | Unanswered) -> web.StreamResponse:
        """The answer to what is no request."""
        asked = _Asked(id=_new_id(), path="", started=time.perf_counter())
        response = _refusal(error)
        self._finish(request, response, asked)
        return response

    def _finish(self, request: web.BaseRequest, response: web.Response, asked: _Asked) -> None:
        """The headers of every answer, and its line in the log."""
        response.headers["Server"] = SERVER_NAME
        response.headers[wire.REQUEST_ID_HEADER] = asked.id
        if self.is_draining or "Upgrade" in request.headers:
            response.force_close()
        now = time.perf_counter()
        path = asked.path if asked.path in PATHS else "other"
        self._meters.requests.labels(path, str(response.status)).inc()
        if path == "/invocations" and response.status == 200:
            self._meters.seconds.observe(now - asked.started)
        if (path == "/ping" and response.status == 200) or not request.remote:
            return  # a health check every few seconds, for ever; what the program asks itself, on its own socket
        line: dict[str, object] = {
            "id": asked.id,
            "client": request.remote,
            "method": request.method,
            "path": request.raw_path[:200] if asked.path else "",
            "status": response.status,
            "bytes_in": asked.bytes_in,
            "bytes_out": len(response.body) if isinstance(response.body, bytes) else 0,
            "ms": round((now - asked.started) * 1000, 1),
        }
        if asked.worked_from is not None:
            worked_until = asked.worked_until or now
            line["model_ms"] = round((worked_until - asked.worked_from) * 1000, 1)
        if request.transport is None or request.transport.is_closing():
            line["client_gone"] = True
        self._access_log.write(**line)

    async def _route(self, request: web.BaseRequest, asked: _Asked) -> web.Response:
        if asked.path not in PATHS:
            raise NoSuchPath(f"there is nothing at {asked.path[:80]!r}", f"there is {', '.join(PATHS)}")
        methods = PATHS[asked.path]
        allowed = ", ".join((*methods, "OPTIONS"))
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": allowed})
        if request.method not in methods:
            raise MethodNotAllowed(
                f"{request.method[:40]} is no method of {asked.path}", f"use {' or '.join(methods)}", allowed=allowed
            )
        if asked.path == "/invocations":
            return await self._invocations(request, asked)
        if asked.path == "/ping":
            return self._ping()
        if asked.path == "/execution-parameters":  # what batch transform asks for before it begins
            limits = {"MaxConcurrentTransforms": self._num_workers, "BatchStrategy": "SINGLE_RECORD"}
            return _json(200, limits | {"MaxPayloadInMB": wire.MAX_BODY_BYTES // 1024**2})
        return _json(200, description(str(self._about.get("model", ""))))

    def _ping(self) -> web.Response:
        """200 while a worker can answer: SageMaker and load balancers look at nothing but the status."""
        alive = self._num_alive()
        if self.is_draining:
            return _json(_UNAVAILABLE, {"status": "stopping"} | self._about, retry=True)
        if not alive:
            return _json(_UNAVAILABLE, {"status": "no worker is alive"} | self._about, retry=True)
        return _json(200, {"status": "healthy", "workers_alive": alive} | self._about)

    async def _invocations(self, request: web.BaseRequest, asked: _Asked) -> web.Response:
        headers = request.headers
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnsupportedMedia("the body is compressed", "send the image's bytes as they are")
        media_type, response_type, top_k = parse_headers(headers, wire.ENVELOPE_TYPES)
        if self.num_under_way >= MAX_UNDER_WAY:
            raise Overloaded(f"{self.num_under_way} requests wait already", "ask again in a second")
        try:
            body = await self._received(request, asked)
            self.num_under_way += 1
            try:
                if media_type not in wire.ENVELOPE_TYPES:
                    return _passed_on(await self._ask(make_request(media_type, response_type, top_k, body), asked))
                opened = await open_envelope(media_type, request, body)
                if opened.top_k is not None and not is_top_k_given(headers):
                    top_k = opened.top_k
                return await self._answer_opened(opened, response_type, top_k, asked)
            finally:
                self.num_under_way -= 1
        finally:
            self._bodies_bytes -= asked.bytes_in

    async def _answer_opened(self, opened: Opened, response_type: str, top_k: int, asked: _Asked) -> web.Response:
        """The answers to all images of an envelope. Raises Unanswered when one of them is not answered at all."""
        questions = [
            each if isinstance(each, RequestError) else Request(image=each, top_k=top_k, response_type=wire.JSON_TYPE)
            for each in opened.images
        ]
        if not (opened.is_list or opened.is_lines or len(questions) > 1):
            (question,) = questions
            if isinstance(question, RequestError):
                raise question
            return _passed_on(await self._ask(dataclasses.replace(question, response_type=response_type), asked))
        if response_type == wire.CSV_TYPE:
            raise NotAcceptable("several images are answered with JSON", f"accept {wire.JSON_TYPE}")
        replies = await asyncio.gather(*(self._ask_or_tell(each, asked) for each in questions))
        body, engine = compose(dataclasses.replace(opened, is_lines=response_type in wire.JSON_LINES_TYPES), replies)
        headers = {"Content-Type": response_type} | ({wire.ENGINE_HEADER: engine} if engine else {})
        return web.Response(status=200, body=body, headers=headers)

    async def _ask_or_tell(self, question: Request | RequestError, asked: _Asked) -> Reply | RequestError:
        return question if isinstance(question, RequestError) else await self._ask(question, asked)

    async def _received(self, request: web.BaseRequest, asked: _Asked) -> bytes:
        """The whole body. Its bytes count among all that are held, as far as they came, also when this raises.

        Raises:
            TooLarge, RequestTimeout, RequestError: too long, too slow, or it breaks off.
            Overloaded: all bodies together are too large.
        """
        if request.content_length is not None:
            check_length(request.content_length)
        await _expect(request)
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_LIMIT_S):
                while chunk := await request.content.readany():
                    chunks.append(chunk)
                    asked.bytes_in += len(chunk)
                    self._bodies_bytes += len(chunk)
                    check_length(asked.bytes_in)
                    if self._bodies_bytes > MAX_BODIES_BYTES:
                        raise Overloaded("too many images arrive at once", "ask again in a second")
            if isinstance(request.protocol, ClientConnection) and request.protocol.has_broken_off:
                raise web.RequestPayloadError
        except web.RequestPayloadError:
            raise RequestError("the body breaks off", "its length or its chunks are not what they say") from None
        except TimeoutError:
            raise RequestTimeout(
                f"the body took more than {BODY_LIMIT_S:.0f} s to come", "send a smaller image"
            ) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _ask(self, question: Request, asked: _Asked) -> Reply:
        """The workers' answer. Raises AnswerTimeout, or Overloaded when the time went by in waiting."""
        headers = {
            "Content-Type": wire.GENERIC_TYPES[0],
            "Accept": question.response_type,
            wire.TOP_K_HEADER: str(question.top_k),
            wire.REQUEST_ID_HEADER: asked.id,
        }
        is_worked_on = False
        try:
            async with asyncio.timeout(self._answer_s), self._slots:
                is_worked_on = True
                asked.worked_from = asked.worked_from or time.perf_counter()
                reply = await self._ask_workers(headers, question.image)
                asked.worked_until = time.perf_counter()
                return reply
        except TimeoutError:
            if not is_worked_on:
                raise Overloaded("no worker was free in time", "ask again in a second") from None
            raise AnswerTimeout(
                "the model did not answer in time",
                f"an answer may take {self._answer_s:g} s: send a smaller image, or ask again",
            ) from None

    async def _ask_workers(self, headers: dict[str, str], image: bytes) -> Reply:
        """The answer of a worker. Raises Unanswered when two died with it, Overloaded when there is none."""
        for attempt in range(_ATTEMPTS):
            if attempt > 0:
                self._meters.retries.inc()
            await self._wait_for_a_worker()
            try:
                reply = await self._backend.ask(headers, image)
            except BackendBroken:
                await asyncio.sleep(_ALIVE_POLL_S)
                continue
            if wire.ENGINE_HEADER.lower() in reply.headers:  # the model server's own errors lack it
                return reply
            if reply.status == _UNAVAILABLE:
                raise Overloaded("no worker takes a request just now", "ask again in a second")
            _log.warning("the model server answered %d itself: %.200r", reply.status, reply.body)
        if self.is_draining or not self._num_alive():
            raise Overloaded("no worker is alive", "ask again in a second")
        raise Unanswered("the processes that answer died over this image", "the server's log tells more")

    async def _wait_for_a_worker(self) -> None:
        waited = 0.0
        while not self._num_alive():
            if waited >= WORKER_PATIENCE_S or self.is_draining:
                raise Overloaded("no worker is alive", "ask again in a second")
            await asyncio.sleep(_ALIVE_POLL_S)
            waited += _ALIVE_POLL_S


async def _expect(request: web.BaseRequest) -> None:
    """Tells a client that waits for it to go on. Raises ExpectationFailed for anything else that it waits for.

    In HTTP/1.0 nobody can wait, and an interim answer would be taken for the answer (RFC 9110, 10.1.1).
    """
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.strip().lower() != "100-continue":
        raise ExpectationFailed(f"{expected[:80]!r} cannot be expected", "100-continue can")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # which says whether an answer was begun


def _passed_on(reply: Reply) -> web.Response:
    """A worker's answer, as it is."""
    headers = {
        wire.ENGINE_HEADER: reply.headers[wire.ENGINE_HEADER.lower()],
        "Content-Type": reply.headers["content-type"],
    }
    return web.Response(status=reply.status, body=reply.body, headers=headers)


def _refusal(error: RequestError | Unanswered) -> web.Response:
    encoded = encode_error(error)
    headers = {"Content-Type": encoded.content_type}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    if isinstance(error, Overloaded):
        headers["Retry-After"] = _RETRY_AFTER_S
    response = web.Response(status=encoded.status, body=encoded.body, headers=headers)
    if isinstance(error, RequestTimeout):
        response.force_close()
    return response


def _json(status: int, value: object, *, retry: bool = False) -> web.Response:
    headers = {"Content-Type": wire.JSON_TYPE} | ({"Retry-After": _RETRY_AFTER_S} if retry else {})
    return web.Response(status=status, body=(json.dumps(value) + "\n").encode(), headers=headers)


def _request_id(request: web.BaseRequest) -> str:
    """The client's own, if it is one that can stand in a log and in a header, else a new one."""
    given = request.headers.get(wire.REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    return secrets.token_hex(16)


def _path(request: web.BaseRequest) -> str:
    """The path without its query, of a target that may be written as a whole address."""
    target = request.raw_path.split("?", 1)[0]
    if target.lower().startswith(("http://", "https://")):
        target = "/" + target.split("/", 3)[3] if target.count("/") >= 3 else "/"
    return target
