"""Part (e): answers without a model server: bytes of a JPEG in, ranking out, by processes with the product's engine.

Clients wait in line for a free worker, as at the model server: first come, first served. So queueing counts, HTTP does
not.
"""

from __future__ import annotations

import os
import queue
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.golden_engines import load_autocast, replayed
from benchmarks.gpu.jobs import finished_model
from benchmarks.gpu.kit import Kit, lacks, synchronised

from image_classifier.contract.endpoint import ENGINE_VARIABLE
from image_classifier.serving.capacity import default_workers
from image_classifier.serving.choice import choose
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import FORMATS, TorchEngine, torch_network
from image_classifier.vision.artifact import load_model
from image_classifier.vision.gate import FLOAT16
from image_classifier.vision.preprocess import load

TOP_K = 5
STARTS_WITHIN_S = 40.0


def run(kit: Kit) -> None:
    """What the network alone can do; then one worker, the usual number and twice that, with 1, 16 and 64 clients."""
    model = finished_model(kit)
    photos = [path.read_bytes() for path in sorted((kit.photos / "test").rglob("*.jpg"))[:: kit.size(13, 1)]]
    forward_limits(kit, model, photos[0])
    if not kit.fake:
        os.environ[ENGINE_VARIABLE] = TorchEngine.name
    usual = default_workers()
    kit.note("default_workers", usual)
    found: dict[str, Any] = {}
    for workers in sorted({1, usual, kit.size(2 * usual, usual)}):
        pool = Workers(model, workers)
        try:
            kit.note("engine", pool.engine)
            for clients in kit.size((1, 16, 64), (1, 4)):
                if workers == 1 or clients > 1:
                    found[f"{workers} workers, {clients} clients"] = pool.ask(photos, clients, kit.size(2.0, 0.3))
                    kit.note("answers", found)
        finally:
            pool.close()


def forward_limits(kit: Kit, model: Path, photo: bytes) -> None:
    """Images a second of the network alone, by number format and batch: called as the server does, replayed from a
    graph, and under autocast, which converts the weights every time; and of the decoding alone."""
    artifact = load_model(model)
    device = torch.device(kit.size("cuda", "cpu"))
    image = torch.from_numpy(load(photo, artifact.preprocessing))
    found: dict[str, dict[str, float]] = {}
    for precision in FORMATS[TorchEngine.name]:
        if kit.fake and precision == FLOAT16:
            continue
        network = torch_network(artifact, device.type, precision)
        autocast = load_autocast(artifact, device.type, precision)
        for batch in kit.size((1, 16, 64), (1, 2)):
            images = image.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last).to(device)
            ways = {"eager": network, "graph": replayed(network, images), "autocast": autocast}
            found[f"{precision} batch {batch}"] = {
                name: batch / _seconds(way, images, kit.size(10, 2)) for name, way in ways.items()
            }
    kit.note("forward_images_per_s", found)
    started = time.perf_counter()
    count = kit.size(100, 5)
    for _ in range(count):
        load(photo, artifact.preprocessing)
    kit.note("decode_ms", 1000 * (time.perf_counter() - started) / count)


@torch.inference_mode()
def _seconds(way: Any, images: torch.Tensor, count: int) -> float:
    """Of one call, the median of some rounds of `count`."""
    wait = synchronised(images.device)
    rounds = []
    for _ in range(4):
        wait()
        started = time.perf_counter()
        for _ in range(count):
            way(images)
        wait()
        rounds.append((time.perf_counter() - started) / count)
    return statistics.median(rounds[1:])


class Workers:
    """Processes with the model, each answering one photo at a time."""

    def __init__(self, model: Path, count: int) -> None:
        context = get_context("spawn")
        self._processes = []
        free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        pipes = []
        for _ in range(count):
            pipe, other = context.Pipe()
            process = context.Process(target=work, args=(other, model), daemon=True)
            process.start()
            other.close()
            self._processes.append(process)
            pipes.append(pipe)
        self.engine = ""
        for pipe in pipes:
            if not pipe.poll(STARTS_WITHIN_S):
                raise RuntimeError(f"a worker did not load the model within {STARTS_WITHIN_S:.0f} s")
            self.engine = pipe.recv()
            free.put(pipe)
        mine = threading.local()

        def takes_one() -> None:
            mine.pipe = free.get()

        def answer(photo: bytes) -> object:
            mine.pipe.send_bytes(photo)
            return mine.pipe.recv()

        self._answer = answer
        self._line = ThreadPoolExecutor(
            count, initializer=takes_one
        )  # a thread for each worker; first come, first served

    def ask(self, photos: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
        """`clients` that each ask one photo after the other: answers a second, and their waiting in milliseconds."""
        end = time.perf_counter() + seconds

        def client(number: int) -> list[float]:
            waited = []
            while (begun := time.perf_counter()) < end:
                self._line.submit(self._answer, photos[(number + len(waited)) % len(photos)]).result()
                waited.append(1000 * (time.perf_counter() - begun))
            return waited

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            waited = sorted(ms for found in pool.map(client, range(clients)) for ms in found)
        spent = time.perf_counter() - started
        return {
            "answers_per_s": len(waited) / spent,
            "p50_ms": waited[len(waited) // 2],
            "p99_ms": waited[min(len(waited) - 1, len(waited) * 99 // 100)],
        }

    def close(self) -> None:
        """Ends the processes."""
        self._line.shutdown()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


def work(pipe: Connection, model: Path) -> None:
    """A worker: says which engine was chosen, then answers photos with rankings until it is ended."""
    artifact = load_model(model)
    if os.environ.get(ENGINE_VARIABLE) != TorchEngine.name and lacks("openvino"):  # --fake on a bare machine
        classifier, header = Classifier(artifact, TorchEngine(artifact, "cpu")), "torch on the CPU"
    else:
        classifier, choice = choose(artifact)
        header = choice.header
    pipe.send(header)
    while True:
        pipe.send(classifier.rank(pipe.recv_bytes(), TOP_K))
