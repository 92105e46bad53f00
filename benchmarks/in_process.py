"""The limit of a server: its engine at work in as many processes, without a server between them and the photographs.

    PYTHONPATH=code:. python benchmarks/in_process.py MODEL PHOTOS PROCESSES

Loads the model as the server does, forks the processes, and answers lines of standard input, `CLIENTS REQUESTS`, with a
line of JSON each: the seconds, and each answer's photograph, label and seconds. A request is all that a worker does of
it: read the headers, decode, compute, write the response.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.load_client import CLASSES, Question, Turn

from image_classifier.contract.endpoint import PRECISION_VARIABLE
from image_classifier.serving.choice import choose
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.codec import encode, parse_request
from image_classifier.vision.artifact import load_model

HEADERS = {"Content-Type": "image/jpeg", "Accept": "application/json", "X-Top-K": "1"}


def answer(classifier: Classifier, body: bytes) -> bytes:
    """As `serving.handler` answers."""
    request = parse_request(HEADERS, body)
    ranking = classifier.rank(request.image, request.top_k)
    return encode(ranking, model=classifier.artifact.fingerprint, response_type=request.response_type).body


def work(classifier: Classifier, images: Sequence[bytes], pipe: Connection) -> None:
    """A forked process: for each (first, requests, step) answers every step-th photograph from the first on."""
    while True:
        first, requests, step = pipe.recv()
        found = []
        for number in range(first, requests, step):
            started = time.perf_counter()
            body = answer(classifier, images[number % len(images)])
            found.append((number, json.loads(body)["predictions"][0]["label"], time.perf_counter() - started))
        pipe.send(found)


def main() -> None:
    model, photos, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    classifier, _ = choose(load_model(model))
    images = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    context = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(processes):
        here, there = context.Pipe()
        context.Process(target=work, args=(classifier, images, there), daemon=True).start()
        pipes.append(here)
    for line in sys.stdin:
        clients, requests = map(int, line.split())
        taken = pipes[: min(clients, processes)]
        started = time.perf_counter()
        for first, pipe in enumerate(taken):
            pipe.send((first, requests, len(taken)))
        found = [each for pipe in taken for each in pipe.recv()]
        print(json.dumps({"seconds": time.perf_counter() - started, "found": found}), flush=True)


class InProcess:
    """This program, running: takes its turns as a server does."""

    def __init__(self, model: Path, photos: Path, precision: str, environment: Mapping[str, str]) -> None:
        root = Path(__file__).parents[1]
        ours = {PRECISION_VARIABLE: precision, "PYTHONPATH": os.pathsep.join([str(root / "code"), str(root)])}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(model), str(photos), str(os.cpu_count())],
            env={**environment, **ours},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def wait(self, question: Question) -> None:
        """The first turn waits for the model."""

    def turn(self, questions: Sequence[Question], clients: int, requests: int) -> Turn:
        """Raises RuntimeError when an answer is wrong or the program has ended."""
        assert self._process.stdin is not None  # started with pipes
        assert self._process.stdout is not None
        self._process.stdin.write(f"{clients} {requests}\n")
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the engine's own loop has ended; its messages stand above")
        answered = json.loads(line)
        for number, label, _ in answered["found"]:
            if CLASSES.index(label) != questions[number % len(questions)].answer:
                raise RuntimeError(f"wrong answer to photograph {number}: {label}")
        return Turn(answered["seconds"], tuple(seconds for _, _, seconds in answered["found"]))

    def memory_mb(self) -> Mapping[str, tuple[int, float]]:
        return {}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    main()
