"""What asks servers in the benchmarks of the endpoint, and what is made of their answers: every answer is checked."""

from __future__ import annotations

import http.client
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import psutil
from benchmarks.process_costs import Kinds, core_seconds, living, of_any, pss_mb

CLASSES = tuple(f"class {number}" for number in range(133))
CLIENTS = {1: 12, 4: 24}  # clients at once -> requests a turn
START_LIMIT_S = 180.0
PAUSE_S = 0.2  # for a server that goes on to find itself again
RESAMPLES = 2_000
CLIENT = "the load client"


@dataclass(frozen=True)
class Question:
    """A photograph, and the index of the class it must be answered with."""

    image: bytes
    answer: int


@dataclass(frozen=True)
class Turn:
    """One server's answers to one turn of requests.

    Args:
        seconds: from the first request to the last answer.
        latencies: seconds of each request, as its client saw it.
        core_s: by kind of process, seconds of the cores during the turn.
    """

    seconds: float
    latencies: tuple[float, ...]
    core_s: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Turn:
        return cls(values["seconds"], tuple(values["latencies"]), values["core_s"])


@dataclass(frozen=True)
class Dialect:
    """How a server wants to be asked, and what it answers.

    Args:
        content_type: of the body.
        body: an image's bytes -> the request's body.
        read: the response's body -> the index of the class it names.
    """

    content_type: str
    body: Callable[[bytes], bytes]
    read: Callable[[bytes], int]


class Answers(Protocol):
    """Something that answers photographs in turns."""

    def wait(self, question: Question) -> None:
        """Returns with the first right answer."""

    def turn(self, questions: Sequence[Question], clients: int, requests: int) -> Turn:
        """So many requests by so many clients at once."""

    def memory_mb(self) -> Mapping[str, tuple[int, float]]:
        """By kind of process, how many there are and what all of them take."""

    def close(self) -> None:
        """Nothing is left of it."""


class Server:
    """One server on a port of 127.0.0.1, running.

    Args:
        start: starts its program.
        port: where it listens.
        dialect: how it is spoken to.
        kinds: its processes, by what they are for.
        pausing: stop it (SIGSTOP) between its turns, because it computes without being asked.
    """

    def __init__(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        port: int,
        dialect: Dialect,
        kinds: Callable[[psutil.Process], Kinds] = of_any,
        *,
        pausing: bool = False,
    ) -> None:
        self._port = port
        self._dialect = dialect
        self._kinds = kinds
        self._pausing = pausing
        self._bodies: dict[bytes, bytes] = {}
        self._process = start()

    def ask(self, connection: http.client.HTTPConnection, question: Question) -> None:
        """Raises RuntimeError when the answer is wrong, OSError or HTTPException when there is none."""
        if question.image not in self._bodies:
            self._bodies[question.image] = self._dialect.body(question.image)
        headers = {"Content-Type": self._dialect.content_type, "Accept": "application/json", "X-Top-K": "1"}
        connection.request("POST", "/invocations", body=self._bodies[question.image], headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200 or self._dialect.read(body) != question.answer:
            raise RuntimeError(f"wrong answer {response.status}: {body[:200]!r}")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def wait(self, question: Question) -> None:
        """Returns with the first right answer. Raises RuntimeError when there is none in START_LIMIT_S."""
        deadline = time.perf_counter() + START_LIMIT_S
        while True:
            try:
                with closing(self.connect()) as connection:
                    return self.ask(connection, question)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                if time.perf_counter() > deadline or self._process.poll() is not None:
                    raise RuntimeError(f"the server does not start: {error}") from error
            time.sleep(0.02)

    def turn(self, questions: Sequence[Question], clients: int, requests: int) -> Turn:
        """Raises what the first client that failed has raised."""
        self._send_all(signal.SIGCONT)
        try:
            return self._turn(questions, clients, requests)
        finally:
            self._send_all(signal.SIGSTOP)

    def _send_all(self, number: signal.Signals) -> None:
        if self._pausing:
            program = psutil.Process(self._process.pid)
            for process in [program, *living(program)]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            time.sleep(PAUSE_S)

    def _turn(self, questions: Sequence[Question], clients: int, requests: int) -> Turn:
        latencies: list[float] = []
        failures: list[Exception] = []

        def client(first: int) -> None:
            connection = self.connect()
            try:
                for number in range(first, requests, clients):
                    asked = time.perf_counter()
                    self.ask(connection, questions[number % len(questions)])
                    latencies.append(time.perf_counter() - asked)
            except Exception as error:
                failures.append(error)
            finally:
                connection.close()

        kinds = self._kinds(psutil.Process(self._process.pid))
        before = {kind: core_seconds(processes) for kind, processes in kinds.items()} | {CLIENT: time.process_time()}
        threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        after = {kind: core_seconds(processes) for kind, processes in kinds.items()} | {CLIENT: time.process_time()}
        if failures:
            raise failures[0]
        return Turn(seconds, tuple(latencies), {kind: after[kind] - before[kind] for kind in after})

    def memory_mb(self) -> Mapping[str, tuple[int, float]]:
        kinds = self._kinds(psutil.Process(self._process.pid))
        return {kind: (len(processes), sum(map(pss_mb, processes))) for kind, processes in kinds.items()}

    def close(self) -> None:
        """Ours needs a moment to leave nothing behind; others would leave their workers."""
        with suppress(psutil.NoSuchProcess):
            self._send_all(signal.SIGCONT)
            left = living(psutil.Process(self._process.pid))
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


Turns = dict[tuple[str, int], list[Turn]]  # (server, clients) -> one a round


def one_round(servers: Mapping[str, Answers], questions: Sequence[Question]) -> dict[tuple[str, int], Turn]:
    """A turn of each server with each number of clients."""
    return {
        (name, clients): server.turn(questions, clients, requests)
        for clients, requests in CLIENTS.items()
        for name, server in servers.items()
    }


def warm(servers: Mapping[str, Answers], questions: Sequence[Question]) -> None:
    """Every worker has answered."""
    for server in servers.values():
        server.wait(questions[0])
        server.turn(questions, 4, CLIENTS[4])


def measure_turns(starts: Mapping[str, Callable[[], Server]], rounds: int, questions: Sequence[Question]) -> Turns:
    """All servers run, and answer in turns."""
    servers: dict[str, Server] = {}
    turns: Turns = {}
    try:
        for name, start in starts.items():
            servers[name] = start()
            servers[name].wait(questions[0])
        warm(servers, questions)
        for _ in range(rounds):
            for key, turn in one_round(servers, questions).items():
                turns.setdefault(key, []).append(turn)
    finally:
        for server in servers.values():
            server.close()
    return turns


def throughput(turns: Sequence[Turn]) -> float:
    """Requests a second: the median of the rounds."""
    return statistics.median(len(turn.latencies) / turn.seconds for turn in turns)


def percentile(percent: float, turns: Sequence[Turn]) -> float:
    """Of the latencies of all turns, in seconds; the nearest rank."""
    ordered = sorted(latency for turn in turns for latency in turn.latencies)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def core_ms(kind: str, turns: Sequence[Turn]) -> float:
    """Milliseconds of a core that a kind of process takes for a request."""
    return 1000 * sum(turn.core_s[kind] for turn in turns) / sum(len(turn.latencies) for turn in turns)


def interval(value: Callable[..., float], *servers: Sequence[Turn], digits: int = 2) -> str:
    """A value of some servers' turns, and its 95 % interval over rounds drawn again (bootstrap), the same for each."""
    draw = random.Random(0)
    values = []
    for _ in range(RESAMPLES):
        rounds = draw.choices(range(len(servers[0])), k=len(servers[0]))
        values.append(value(*([turns[i] for i in rounds] for turns in servers)))
    values.sort()
    low, high = values[RESAMPLES * 25 // 1000], values[RESAMPLES * 975 // 1000]
    return f"{value(*servers):.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def ratio(value: Callable[[Sequence[Turn]], float], ours: Sequence[Turn], theirs: Sequence[Turn]) -> str:
    """Of a value of both, with its interval."""
    return interval(lambda one, other: value(one) / value(other), ours, theirs)
