"""Every status that the endpoint answers with is provoked, and its sentence stands in docs/endpoint.md as it came.

`make docs` sets WRITE_DOCS and has the table written there.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.conftest import jpeg
from tests.front_endpoint import DIED, Endpoint, answer

from image_classifier.contract.wire import STATUSES
from image_classifier.serving import client_connections

PAGE = Path(__file__).parents[2] / "docs" / "endpoint.md"
START, END = "<!-- statuses: written by make docs -->\n", "<!-- end of statuses -->\n"
POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\n"


def asked(head: bytes, body: bytes = b"") -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def hang(number: int) -> bytes | None:
    threading.Event().wait(1)
    return None


def died(number: int) -> bytes:
    return answer(DIED, "500 Internal Server Error", engine="")


def full(number: int) -> bytes:
    return answer(b"{}", "503 Service Unavailable", engine="")


# status -> what is asked, in words and in bytes; and what the model server does
EXAMPLES: dict[int, tuple[str, bytes, Callable[[int], bytes | None]]] = {
    400: ("a POST without a body", asked(POST), died),
    404: ("`GET /models`", b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n", died),
    405: ("`GET /invocations`", b"GET /invocations HTTP/1.1\r\nHost: x\r\n\r\n", died),
    406: ("`Accept: image/png`", asked(POST + b"Accept: image/png\r\n", jpeg(0)), died),
    408: ("half of the headers, and then nothing", POST[:30], died),
    413: ("7 MiB", asked(POST, bytes(7 * 1024**2)), died),
    415: ("`Content-Type: text/plain`", asked(POST + b"Content-Type: text/plain\r\n", b"hello"), died),
    417: ("`Expect: magic`", asked(POST + b"Expect: magic\r\n", jpeg(0)), died),
    431: ("a header of 9,000 bytes", POST + b"X: " + b"x" * 9000 + b"\r\n\r\n", died),
    500: ("an image over which two workers die", asked(POST, jpeg(0)), died),
    503: ("an image while no worker takes it", asked(POST, jpeg(0)), full),
    504: ("an image that no worker answers in time", asked(POST, jpeg(0)), hang),
}


def provoke(folder: Path, status: int) -> dict[str, str]:
    """Asks for `status`; returns what was answered. Raises AssertionError when it is another."""
    _, request, script = EXAMPLES[status]
    endpoint = Endpoint(folder, script, answer_s=0.2)
    try:
        with closing(endpoint.connect()) as connection:
            connection.sendall(request)
            answered = b""
            while not answered.endswith(b"}\n") and (more := connection.recv(65536)):
                answered += more
        head, _, body = answered.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1."), answered
        assert int(head.split()[1]) == status, answered
        assert b"\r\nContent-Type: application/json" in head, answered
        assert (b"\r\nRetry-After: 1" in head) == (status == 503), answered
        assert (b"\r\nAllow: POST, OPTIONS" in head) == (status == 405), answered
        return json.loads(body)
    finally:
        endpoint.close()


def table() -> str:
    """The table of the page, of what was answered just now."""
    rows = ["| status | what it means | for example | is answered |", "|---|---|---|---|"]
    head_limit_s, client_connections.HEAD_LIMIT_S = client_connections.HEAD_LIMIT_S, 0.3
    try:
        for status, meaning in STATUSES.items():
            with tempfile.TemporaryDirectory() as folder:
                answered = provoke(Path(folder), status)
            assert set(answered) == {"error", "hint"}
            rows.append(f"| {status} | {meaning} | {EXAMPLES[status][0]} | `{answered['error']}` |")
    finally:
        client_connections.HEAD_LIMIT_S = head_limit_s
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(START)
    return before + START + table() + END + rest.partition(END)[2]


def test_every_status_is_answered_as_the_page_says():
    page = PAGE.read_text(encoding="utf-8")
    assert START in page
    assert END in page
    if os.environ.get("WRITE_DOCS"):
        page = written(page)
        PAGE.write_text(page, encoding="utf-8")
    assert written(page) == page, "make docs"
