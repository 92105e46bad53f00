"""The endpoint's speed: our default engine against our torch engine and against SageMaker's stock handler.

    PYTHONPATH=code:. python benchmarks/bench_serve.py [--rounds 15] [--starts 5] [--port 18100]

Three servers on loopback answer for the same untrained ResNet50 of 133 classes, each with one process a core and one
thread a process, all under multi-model-server. They take turns of some requests, all for the same photographs, by one
client and by four at once; every answer is checked. Writes benchmarks/results/serve.md: ratios only.
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
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks import stock_server
from benchmarks.bench_data import Photos, make_photos
from benchmarks.record import write_result

from image_classifier.contract.endpoint import HOST_VARIABLE, PORT_VARIABLE, WORKERS_VARIABLE
from image_classifier.serving.server import find_java_home
from image_classifier.vision.artifact import GoldenSample, write_model
from image_classifier.vision.model import build_model, state_arrays
from image_classifier.vision.preprocess import Preprocessing, load

SOURCE = Path(__file__).parents[1] / "code"
CLASSES = tuple(f"class {number}" for number in range(133))
PHOTOS = Photos(name="500 x 375", width=500, height=375, count=8, batch_size=1)
CLIENTS = {1: 12, 4: 24}  # clients at once -> requests a turn
START_LIMIT_S = 120.0
RESAMPLES = 2_000
OURS, TORCH, STOCK = "our default engine, OpenVINO", "our torch engine", "sagemaker-inference's stock handler"

# A server takes torch on a GPU only; this makes every Python of one take it on the CPU.
TORCH_ON_CPU = """
import image_classifier.serving.engines as engines
engines.load_engine = lambda artifact, gpu_id=None: engines.TorchEngine(artifact, "cpu")
"""


@dataclass(frozen=True)
class Question:
    """A photograph, and the index of the class it must be answered with."""

    image: bytes
    answer: int


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


def make_model(folder: Path) -> list[Question]:
    """Both forms of the model below `folder`, and what it answers to the photographs."""
    torch.manual_seed(0)
    model = build_model(len(CLASSES))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: no norm is the identity, no branch is dead
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    torch.nn.init.normal_(model.fc.weight, 0.0, 0.5)  # answers that differ from picture to picture
    model.eval()
    make_photos(folder / "photos", PHOTOS)
    preprocessing = Preprocessing.for_image_size(224)
    images = [path.read_bytes() for path in sorted((folder / "photos").glob("*/*/*.jpg"))]
    with torch.inference_mode():
        batch = torch.stack([torch.from_numpy(load(image, preprocessing)) for image in images])
        answers = model(batch).double().softmax(1)
    write_model(
        folder / "ours" / "model",
        weights=state_arrays(model),
        classes=CLASSES,
        preprocessing=preprocessing,
        golden=[GoldenSample(f"{i}.jpg", images[i], tuple(answers[i].tolist())) for i in range(4)],
        config={},
        metrics={},
        data_fingerprint="0" * 64,
        versions={},
    )
    torch.save(model.state_dict(), folder / "weights.pth")
    stock_server.write_model(folder / "stock", folder / "weights.pth")
    return [Question(image, int(row.argmax())) for image, row in zip(images, answers, strict=True)]


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
    return {
        OURS: lambda: Server(lambda: start_ours(ours, port, environment), port, read_ours),
        TORCH: lambda: Server(lambda: start_ours(ours, port + 1, environment, path=torch_on_cpu), port + 1, read_ours),
        STOCK: lambda: Server(
            lambda: stock_server.start(folder / "stock", port + 2, environment), port + 2, read_stock
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--port", type=int, default=18_100, help="the first of three")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended then as well
    with TemporaryDirectory(prefix="bs-") as name:
        folder = Path(name)
        questions = make_model(folder)
        starts = starters(folder, options.port)
        turns = measure_turns(starts, options.rounds, questions)
        started = measure_starts(starts, options.starts, questions[0])
    table = [
        f"| {clients} | {other} | {ratio(throughput, turns[OURS, clients], turns[other, clients])} "
        f"| {ratio(lambda part: percentile(50, part), turns[OURS, clients], turns[other, clients])} "
        f"| {ratio(lambda part: percentile(99, part), turns[OURS, clients], turns[other, clients])} |"
        for clients in CLIENTS
        for other in (TORCH, STOCK)
    ]
    text = [
        "# The endpoint",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_serve.py --rounds {options.rounds} --starts {options.starts}`",
        "",
        f"ResNet50 of {len(CLASSES)} classes in float32, JPEG photographs of {PHOTOS.name} pixels, {os.cpu_count()} "
        f"cores and as many processes of one thread for each server, OpenVINO {version('openvino')}, "
        f"torch {torch.__version__}, Python {platform.python_version()}. {OURS[0].upper()}{OURS[1:]}, against the "
        f"others: ratios, with the 95 % interval over {options.rounds} rounds in which they took turns. Latency as "
        "clients see it: below 1 is faster.",
        "",
        "| clients at once | against | requests a second | latency, median | latency, 99th percentile |",
        "|---|---|---|---|---|",
        *table,
        "",
        f"From the command to the first right answer, median (smallest .. largest) of {options.starts} pairs: "
        f"{start_ratio(started[OURS], started[TORCH])} of the time of {TORCH}, "
        f"{start_ratio(started[OURS], started[STOCK])} of that of {STOCK}. Ours has by then reproduced its golden "
        "samples in every process.",
    ]
    write_result("serve.md", text)


if __name__ == "__main__":
    main()
