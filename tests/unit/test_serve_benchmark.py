"""The endpoint's benchmark itself: a wrong answer ends it, and what is finished is not measured twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import bench_serve
from benchmarks.bench_serve import Kept, turns_of
from benchmarks.load_client import CLIENT, Dialect, Question, Server, Turn, interval, throughput
from benchmarks.process_costs import EVERYTHING, FRONT
from benchmarks.serve_tables import share
from tests.server_program import free_port

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])) if sys.argv[2] == "listens" else b"1"
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
QUESTIONS = [Question(str(number).encode(), number) for number in range(1, 6)]


def serve(what: str) -> Iterator[Server]:
    port = free_port()
    words = [sys.executable, "-c", SERVER, str(port), what]
    dialect = Dialect("image/jpeg", lambda image: image, int)
    server = Server(lambda: subprocess.Popen(words, start_new_session=True), port, dialect)
    try:
        server.wait(QUESTIONS[0])
        yield server
    finally:
        server.close()


@pytest.fixture
def listening() -> Iterator[Server]:
    yield from serve("listens")


@pytest.fixture
def deaf() -> Iterator[Server]:
    yield from serve("is deaf")


def test_a_turn_counts_every_request_and_what_it_cost(listening: Server) -> None:
    turn = listening.turn(QUESTIONS, clients=2, requests=10)
    assert len(turn.latencies) == 10
    assert max(turn.latencies) < turn.seconds
    assert turn.core_s[EVERYTHING] > 0
    assert turn.core_s[CLIENT] > 0


def test_a_server_that_gives_everybody_the_same_answer_is_found_out(deaf: Server) -> None:
    with pytest.raises(RuntimeError, match="wrong answer"):
        deaf.turn(QUESTIONS, clients=1, requests=2)


def test_what_is_finished_is_taken_up_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "work")
    turn = Turn(0.5, (0.2, 0.3), {CLIENT: 0.01})
    kept.keep("round", [["ours", 1, turn.to_json()]])
    again = Kept(tmp_path / "work")
    assert turns_of(again, ["ours"], 9) == {("ours", 1): [turn]}
    assert turns_of(again, ["ours", "another"], 9) == {}


def test_what_other_code_has_measured_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path)
    kept.keep("start", {"ours": 1.0})
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(bench_serve, "processor", lambda: "another machine")
    again = Kept(tmp_path)
    assert again.all("start") == []
    assert not (tmp_path / "model").exists()
    assert json.loads((tmp_path / "finished.jsonl").read_text())["processor"] == "another machine"


def test_the_limit_has_room_for_the_client_and_the_front() -> None:
    alone = [Turn(1.0, (0.01,) * 100)]  # 10 ms a request
    served = [Turn(1.0, (0.0125,) * 80, {CLIENT: 0.08, FRONT: 0.12})]  # 1 and 1.5 ms of a core a request
    assert throughput(served) == 80
    assert share(served, alone, clients=1) == pytest.approx(80 / (1 / 0.0125))


def test_an_interval_covers_its_value() -> None:
    turns = [Turn(1.0, (0.1,) * count) for count in (8, 9, 10, 11, 12)]
    assert interval(throughput, turns, digits=0) == "10 (8 .. 12)"
