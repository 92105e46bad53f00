"""The front alone, on a real port, with a small model server behind it that does as it is told."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.conftest import jpeg
from tests.front_endpoint import DIED, GOOD, PATIENCE_S, Endpoint, answer

from image_classifier.serving import access_log, api, client_connections, front
from image_classifier.serving.access_log import AccessLog


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Endpoint]]:
    started: list[Endpoint] = []

    def run(script: Callable[[int], bytes | None] = lambda number: answer(GOOD), **options: float) -> Endpoint:
        started.append(Endpoint(tmp_path, script, **options))
        return started[-1]

    yield run
    for endpoint in started:
        endpoint.close()


def first_line(connection: socket.socket) -> bytes:
    return connection.recv(4096).split(b"\r\n", 1)[0]


def test_the_model_server_hears_of_an_image_and_of_nothing_a_client_wrote_in_its_headers(start):
    endpoint = start()
    status, headers, document = endpoint.ask(
        Content_Type="image/png; x=1", X_Top_K="3", Cookie="secret", Accept="text/*"
    )
    assert (status, headers["X-Engine"], document["model"]) == (200, "e", "m")
    (head,) = endpoint.model_server.heads
    assert b"Content-Type: application/x-image\r\n" in head
    assert b"X-Top-K: 3\r\n" in head
    assert b"Accept: text/csv\r\n" in head
    assert b"secret" not in head


def test_a_request_whose_worker_dies_is_given_to_another(start):
    script = {1: answer(DIED, "500 Internal Server Error", engine=""), 2: answer(GOOD)}
    endpoint = start(script.get)
    assert endpoint.ask()[0] == 200
    assert len(endpoint.model_server.heads) == 2


def test_a_request_that_two_workers_die_over_is_given_up_with_our_sentence(start):
    endpoint = start(lambda number: answer(DIED, "500 Internal Server Error", engine=""))
    status, _, document = endpoint.ask()
    assert status == 500
    assert set(document) == {"error", "hint"}
    assert len(endpoint.model_server.heads) == 2


@pytest.mark.parametrize(
    "written",
    [None, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"],
)
def test_a_model_server_that_breaks_off_costs_an_error_and_nothing_else(start, written):
    endpoint = start(lambda number: written if number <= 2 else answer(GOOD))
    assert endpoint.ask()[0] == 500
    assert endpoint.ask()[0] == 200


def test_a_kept_connection_that_the_model_server_has_closed_is_opened_anew(start):
    endpoint = start(lambda number: None if number == 2 else answer(GOOD))
    assert [endpoint.ask()[0] for _ in range(3)] == [200, 200, 200]


def test_an_answer_that_takes_too_long_is_504(start):
    released = threading.Event()
    endpoint = start(lambda number: answer(GOOD) if released.wait(PATIENCE_S) else None, answer_s=0.3)
    status, _, document = endpoint.ask()
    assert status == 504
    assert "did not answer in time" in document["error"]
    released.set()
    assert endpoint.ask()[0] == 200


def test_more_requests_than_may_wait_are_told_to_come_again(start, monkeypatch):
    monkeypatch.setattr(api, "MAX_UNDER_WAY", 3)
    released = threading.Event()
    endpoint = start(lambda number: answer(GOOD) if released.wait(PATIENCE_S) else None)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(endpoint.ask()[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while (refused := endpoint.ask(body=b"")) and refused[0] != 503 and time.monotonic() < deadline:
        time.sleep(0.02)
    status, headers, document = endpoint.ask()
    released.set()
    for thread in threads:
        thread.join()
    assert (status, headers["Retry-After"], set(document)) == (503, "1", {"error", "hint"})
    assert statuses == [200, 200, 200]


def test_images_that_are_too_much_together_are_told_to_come_again(start, monkeypatch):
    monkeypatch.setattr(api, "MAX_BODIES_BYTES", 10_000)
    endpoint = start()
    assert endpoint.ask(body=bytes(20_000), Content_Type="image/png")[0] == 503
    assert endpoint.ask(body=bytes(9_000), Content_Type="image/png")[0] == 200


def test_without_a_worker_requests_wait_a_while_and_ping_tells_the_truth_at_once(start, monkeypatch):
    monkeypatch.setattr(api, "WORKER_PATIENCE_S", 0.2)
    endpoint = start()
    assert endpoint.ask("GET", "/ping")[0] == 200
    endpoint.alive = 0
    status, headers, document = endpoint.ask("GET", "/ping")
    assert (status, headers["Retry-After"], document["status"]) == (503, "1", "no worker is alive")
    assert endpoint.ask()[0] == 503
    monkeypatch.setattr(api, "WORKER_PATIENCE_S", PATIENCE_S)
    threading.Timer(0.3, lambda: setattr(endpoint, "alive", 1)).start()
    assert endpoint.ask()[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /ping HTTP/1.1\r\nHo"])
def test_a_client_that_does_not_finish_its_headers_is_closed(start, monkeypatch, sent):
    monkeypatch.setattr(client_connections, "HEAD_LIMIT_S", 0.2)
    endpoint = start()
    with closing(endpoint.connect()) as connection:
        connection.sendall(sent)
        assert first_line(connection) == b"HTTP/1.1 408 Request Timeout"
        assert connection.recv(4096) == b""


def test_a_client_that_does_not_finish_its_body_is_closed(start, monkeypatch):
    monkeypatch.setattr(api, "BODY_LIMIT_S", 0.2)
    endpoint = start()
    with closing(endpoint.connect()) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        assert first_line(connection) == b"HTTP/1.1 408 Request Timeout"


def test_a_client_that_takes_no_answers_is_closed(start, monkeypatch):
    monkeypatch.setattr(client_connections, "STALL_LIMIT_S", 0.3)
    endpoint = start()
    with closing(endpoint.connect()) as connection:
        connection.setblocking(False)
        deadline = time.monotonic() + PATIENCE_S
        while is_taken(connection):
            assert time.monotonic() < deadline


def is_taken(connection: socket.socket) -> bool:
    """Asks a thousand times and reads no answer: whether the connection is still there."""
    try:
        connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    except BlockingIOError:
        time.sleep(0.02)
    except ConnectionError:
        return False
    return True


def test_clients_that_never_finish_their_bodies_keep_nobody_out(start, monkeypatch):
    monkeypatch.setattr(front, "MAX_CONNECTIONS", 2)
    endpoint = start()
    half = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    with closing(endpoint.connect()) as first, closing(endpoint.connect()) as second:
        for slow in (first, second):
            slow.sendall(half)
        time.sleep(0.2)  # both are read as far as they go
        for _ in range(3):
            assert endpoint.ask()[0] == 200
        assert first.recv(1) == b""


def test_one_connection_too_many_is_refused_when_none_is_idle(start, monkeypatch):
    monkeypatch.setattr(front, "MAX_CONNECTIONS", 1)
    released = threading.Event()
    endpoint = start(lambda number: answer(GOOD) if released.wait(PATIENCE_S) else None)
    body = jpeg(0)
    with closing(endpoint.connect()) as busy:
        busy.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while not endpoint.model_server.heads:
            time.sleep(0.01)
        with closing(endpoint.connect()) as other:
            assert first_line(other) == b"HTTP/1.1 503 Service Unavailable"
        released.set()
        assert first_line(busy) == b"HTTP/1.1 200 OK"


def test_a_client_that_waits_to_be_told_to_go_on_is_told_or_refused_before_it_sends(start):
    endpoint = start()
    body = jpeg(0)
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with closing(endpoint.connect()) as connection:
        connection.sendall(head % len(body))
        assert first_line(connection) == b"HTTP/1.1 100 Continue"
        connection.sendall(body)
        assert first_line(connection) == b"HTTP/1.1 200 OK"
    with closing(endpoint.connect()) as connection:
        connection.sendall(head % (7 * 1024**2))
        assert first_line(connection) == b"HTTP/1.1 413 Request Entity Too Large"


def test_a_client_of_http_1_0_is_not_told_to_go_on_because_it_would_take_that_for_the_answer(start):
    endpoint = start()
    body = jpeg(0)
    head = b"POST /invocations HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with closing(endpoint.connect()) as connection:
        connection.sendall(head + body)
        assert first_line(connection) == b"HTTP/1.0 200 OK"


def test_draining_answers_what_is_asked_and_what_has_only_connected_and_then_nobody(start, monkeypatch):
    monkeypatch.setattr(front, "KEEP_ALIVE_GRACE_S", 0.3)
    released = threading.Event()
    endpoint = start(lambda number: answer(GOOD) if released.wait(PATIENCE_S) else None)
    body = jpeg(0)
    request = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with closing(endpoint.connect()) as asked, closing(endpoint.connect()) as kept:
        asked.sendall(request)
        while not endpoint.model_server.heads:
            time.sleep(0.01)
        draining = threading.Thread(target=endpoint.front.drain, args=(PATIENCE_S,))
        draining.start()
        kept.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert first_line(kept) in {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable"}
        late = endpoint.connect()
        late.sendall(request)
        released.set()
        assert first_line(asked) == b"HTTP/1.1 200 OK"
        assert first_line(late) == b"HTTP/1.1 200 OK"
        late.close()
        draining.join(PATIENCE_S)
        with pytest.raises(ConnectionRefusedError):
            endpoint.connect()


def test_the_endpoint_describes_itself_and_what_batch_transform_may_do(start):
    endpoint = start()
    assert endpoint.ask("GET", "/openapi.json")[2]["openapi"] == "3.1.0"
    limits = endpoint.ask("GET", "/execution-parameters")[2]
    assert limits == {"MaxConcurrentTransforms": 1, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 6}
    status, headers, _ = endpoint.ask("OPTIONS", "/invocations")
    assert (status, headers["Allow"]) == (204, "POST, OPTIONS")
    assert endpoint.ask("DELETE", "/ping")[1]["Allow"] == "GET, HEAD, OPTIONS"


def test_a_scraper_reads_what_was_counted(start):
    endpoint = start()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    endpoint.front.show_meters(listener)
    assert endpoint.ask()[0] == 200
    assert endpoint.ask("GET", "/nothing/here")[0] == 404
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    assert 'classifier_requests_total{path="/invocations",status="200"} 1.0' in text
    assert 'classifier_requests_total{path="other",status="404"} 1.0' in text
    assert "classifier_request_seconds_count 1.0" in text
    assert "classifier_workers_alive 2.0" in text


def test_the_access_log_begins_a_new_file_before_it_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(access_log, "MAX_FILE_BYTES", 1000)
    log = AccessLog(tmp_path / "logs" / "access.log")
    for number in range(200):
        log.write(id=str(number), path="/\x1b[31m\n")
    log.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == ["access.log", *(f"access.log.{n}" for n in range(1, 5))]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert json.loads(files[0].read_text().splitlines()[-1])["path"] == "/\x1b[31m\n"
    assert "\x1b" not in files[0].read_text()


def test_a_full_disk_costs_lines_of_the_log_and_no_answer(start, monkeypatch):
    log = AccessLog(Path("/dev/full"))
    log.write(id="lost")
    while log._lost == 0:
        time.sleep(0.01)
    log.write(id="next")
    log.close()
    assert log._lost >= 1
