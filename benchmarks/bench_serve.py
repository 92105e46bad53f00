"""The endpoint's speed: our engine in each number format against our torch engine and SageMaker's stock handler.

    PYTHONPATH=code:. python benchmarks/bench_serve.py [--rounds 15] [--starts 5] [--port 18100]

Servers on loopback answer for the same ResNet50 of 133 classes, each with one process a core and one thread a process,
all under multi-model-server. They take turns of some requests, all for the same photographs, by one client and by four
at once. Every answer is checked, and no two photographs have the same: the network is untrained, but its head was
solved for so that each of them has a class of its own. Writes benchmarks/results/serve.md: ratios only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks import stock_server
from benchmarks.distinct_answers import CLASSES, SCENES, SIZE, Question, make_model
from benchmarks.record import write_result

from image_classifier.contract.endpoint import HOST_VARIABLE, PORT_VARIABLE, PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.serving.server import find_java_home
from image_classifier.vision.gate import BFLOAT16, FLOAT32, INT8

SOURCE = Path(__file__).parents[1] / "code"
CLIENTS = {1: 12, 4: 24}  # clients at once -> requests a turn
START_LIMIT_S = 120.0
RESAMPLES = 2_000
INT8_SERVER, BF16_SERVER, FP32_SERVER = (f"ours, OpenVINO in {each}" for each in (INT8, BFLOAT16, FLOAT32))
OURS = {INT8_SERVER: INT8, BF16_SERVER: BFLOAT16, FP32_SERVER: FLOAT32}
TORCH, STOCK = "our torch engine", "sagemaker-inference's stock handler"

# A server takes torch on a GPU only; this makes every Python of one take it on the CPU.
TORCH_ON_CPU = """
import image_classifier.serving.engines as engines
import image_classifier.serving.choice as choice
choice.engine_here = lambda: "torch"
choice.load_engine = lambda artifact, gpu_id=None, precision="": engines.TorchEngine(artifact, "cpu", precision)
engines.may_fork = lambda: False
"""


@dataclass(frozen=True)
class Turn:
    """One server's answers to one turn of requests."""

    seconds: float
    latencies: tuple[float, ...]


class Server:
    """One server, running."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], port: int, read: Callable[[bytes], int]) -> None:
        self._port = port
        self._read = read
        self._process = start()

    def ask(self, connection: http.client.HTTPConnection, question: Question) -> None:
        """Raises RuntimeError when the answer is wrong, OSError or HTTPException when there is none."""
        headers = {"Content-Type": "image/jpeg", "Accept": "application/json", "X-Top-K": "1"}
        connection.request("POST", "/invocations", body=question.image, headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200 or self._read(body) != question.answer:
            raise RuntimeError(f"wrong answer {response.status}: {body[:200]!r}")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def wait(self, question: Question) -> None:
        """Returns with the first right answer. Raises RuntimeError when there is none in START_LIMIT_S."""
        deadline = time.perf_counter() + START_LIMIT_S
        while True:
            try:
                return self.ask(self.connect(), question)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                if time.perf_counter() > deadline or self._process.poll() is not None:
                    raise RuntimeError(f"the server does not start: {error}") from error
            time.sleep(0.02)

    def turn(self, questions: Sequence[Question], clients: int, requests: int) -> Turn:
        """So many requests by so many clients at once."""
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

        threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return Turn(time.perf_counter() - started, tuple(latencies))

    def close(self) -> None:
        """Ours needs a moment to leave nothing behind; the stock one would leave its workers."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start_ours(
    folder: Path, port: int, environment: Mapping[str, str], *, path: Path = SOURCE
) -> subprocess.Popen[bytes]:
    """Our server program, as `deploy.py serve` starts it; `path` goes before the usual import path."""
    ours = {
        "SAGEMAKER_BASE_DIR": str(folder),
        HOST_VARIABLE: "127.0.0.1",
        PORT_VARIABLE: str(port),
        "PYTHONPATH": os.pathsep.join([str(path), str(SOURCE)]),
    }
    with (folder / f"server-{port}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "image_classifier.serving.entry"],
            env={**environment, **ours},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def starters(folder: Path, port: int) -> dict[str, Callable[[], Server]]:
    """What starts each of the servers, on ports from `port` on."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "JAVA_HOME": str(find_java_home()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        WORKERS_VARIABLE: str(os.cpu_count()),
    }
    torch_on_cpu = folder / "torch-on-cpu"
    torch_on_cpu.mkdir()
    (torch_on_cpu / "sitecustomize.py").write_text(TORCH_ON_CPU)
    ours = folder / "ours"

    def our(precision: str, number: int, path: Path) -> Server:
        chosen = environment | {PRECISION_VARIABLE: precision}
        return Server(lambda: start_ours(ours, port + number, chosen, path=path), port + number, read_ours)

    return {
        **{name: partial(our, precision, i, SOURCE) for i, (name, precision) in enumerate(OURS.items())},
        TORCH: partial(our, FLOAT32, 3, torch_on_cpu),
        STOCK: lambda: Server(
            lambda: stock_server.start(folder / "stock", port + 4, environment), port + 4, read_stock
        ),
    }


def read_ours(body: bytes) -> int:
    return CLASSES.index(json.loads(body)["predictions"][0]["label"])


def read_stock(body: bytes) -> int:
    (probabilities,) = json.loads(body)
    return max(range(len(CLASSES)), key=probabilities.__getitem__)


def measure_starts(
    starts: Mapping[str, Callable[[], Server]], times: int, question: Question
) -> dict[str, list[float]]:
    """Seconds from the command to the first right answer; one server at a time."""
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(times):
        for name, start in starts.items():
            started = time.perf_counter()
            server = start()
            try:
                server.wait(question)
                seconds[name].append(time.perf_counter() - started)
            finally:
                server.close()
    return seconds


Turns = dict[tuple[str, int], list[Turn]]  # (server, clients) -> one a round


def measure_turns(starts: Mapping[str, Callable[[], Server]], rounds: int, questions: Sequence[Question]) -> Turns:
    """All servers run, and answer in turns."""
    servers: dict[str, Server] = {}
    turns: Turns = {}
    try:
        for name, start in starts.items():
            servers[name] = start()
            servers[name].wait(questions[0])
            servers[name].turn(questions, 4, CLIENTS[4])  # warm: every worker has answered
        for _ in range(rounds):
            for clients, requests in CLIENTS.items():
                for name, server in servers.items():
                    turns.setdefault((name, clients), []).append(server.turn(questions, clients, requests))
    finally:
        for server in servers.values():
            server.close()
    return turns


def throughput(turns: Sequence[Turn]) -> float:
    return sum(len(turn.latencies) for turn in turns) / sum(turn.seconds for turn in turns)


def percentile(percent: float, turns: Sequence[Turn]) -> float:
    """Of the latencies of all turns; the nearest rank."""
    ordered = sorted(latency for turn in turns for latency in turn.latencies)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def ratio(value: Callable[[Sequence[Turn]], float], ours: Sequence[Turn], theirs: Sequence[Turn]) -> str:
    """Of all rounds, and its 95 % interval over rounds drawn again (bootstrap), both sides' from the same rounds."""
    draw = random.Random(0)
    ratios = []
    for _ in range(RESAMPLES):
        rounds = draw.choices(range(len(ours)), k=len(ours))
        ratios.append(value([ours[i] for i in rounds]) / value([theirs[i] for i in rounds]))
    ratios.sort()
    low, high = ratios[RESAMPLES * 25 // 1000], ratios[RESAMPLES * 975 // 1000]
    return f"{value(ours) / value(theirs):.2f} ({low:.2f} .. {high:.2f})"


def start_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


def processor() -> str:
    """What the machine says of its processor, and which of the wider instructions it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    flags = set(found.get("flags", "").split()) & {"amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx_vnni"}
    return ", ".join([found.get("model name", platform.machine()), *sorted(flags)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--port", type=int, default=18_100, help="the first of five")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended then as well
    with TemporaryDirectory(prefix="bs-") as name:
        folder = Path(name)
        questions = make_model(folder)
        starts = starters(folder, options.port)
        turns = measure_turns(starts, options.rounds, questions)
        started = measure_starts(starts, options.starts, questions[0])
    table = [
        f"| {clients} | {name} | {other} | {ratio(throughput, turns[name, clients], turns[other, clients])} "
        f"| {ratio(lambda part: percentile(50, part), turns[name, clients], turns[other, clients])} "
        f"| {ratio(lambda part: percentile(99, part), turns[name, clients], turns[other, clients])} |"
        for clients in CLIENTS
        for name in OURS
        for other in (TORCH, STOCK)
    ]
    text = [
        "# The endpoint",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_serve.py --rounds {options.rounds} --starts {options.starts}`",
        "",
        f"ResNet50 of {len(CLASSES)} classes, {SCENES} JPEG photographs of {SIZE[0]} x {SIZE[1]} pixels with as many "
        f"different answers, all of them checked, {os.cpu_count()} cores ({processor()}) and as many processes of one "
        f"thread for each server, OpenVINO {version('openvino')}, torch {torch.__version__}, Python "
        f"{platform.python_version()}. Ours in each number format, against the others in float32: ratios, with the "
        f"95 % interval over {options.rounds} rounds in which they took turns. Latency as clients see it: below 1 is "
        "faster. Which format is the fastest depends on the processor; a server finds out when it starts.",
        "",
        "| clients at once | server | against | requests a second | latency, median | latency, 99th percentile |",
        "|---|---|---|---|---|---|",
        *table,
        "",
        f"From the command to the first right answer, median (smallest .. largest) of {options.starts} pairs:",
        "",
        *(
            f"- {name}: {start_ratio(started[name], started[TORCH])} of the time of {TORCH}, "
            f"{start_ratio(started[name], started[STOCK])} of that of {STOCK}"
            for name in OURS
        ),
        "",
        "Ours has by then reproduced its golden samples before its workers were forked, and once more through HTTP.",
    ]
    write_result("serve.md", text)


if __name__ == "__main__":
    main()
