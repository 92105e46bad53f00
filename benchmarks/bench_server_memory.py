"""What the endpoint's processes take of the memory, by number format and number of workers.

    PYTHONPATH=code:. python benchmarks/bench_server_memory.py [--port 18150] [--model FOLDER]

The server program with the model of bench_serve.py, after every worker has answered. Each process counts with its
proportional set size (PSS): a page that several share counts for each with its part. Writes
benchmarks/results/server_memory.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.compared_servers import our_server
from benchmarks.distinct_answers import find_or_make_model
from benchmarks.load_client import CLASSES, Question
from benchmarks.process_costs import FRONT, JAVA, PARENT, WORKERS
from benchmarks.record import write_result

from image_classifier.contract.endpoint import PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.contract.machine import usable_cores
from image_classifier.serving.server import find_java_home
from image_classifier.vision.artifact import load_model
from image_classifier.vision.gate import BFLOAT16, FLOAT32, INT8

NUMBERS = (1, 2, 4)
ALL = "all of them"
KINDS = {WORKERS: "a worker", PARENT: PARENT, JAVA: JAVA, FRONT: "the server program, with the front"}


def measure(folder: Path, port: int, precision: str, workers: int, questions: list[Question]) -> dict[str, float]:
    """Kind of process -> MB, of a worker the mean; 0 where there is none of the kind."""
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "JAVA_HOME": str(find_java_home()),
        WORKERS_VARIABLE: str(workers),
        PRECISION_VARIABLE: precision,
    }
    server = our_server(folder, port, environment)
    try:
        server.wait(questions[0])
        server.turn(questions, 2 * workers, 24 * workers)
        time.sleep(1)
        found = server.memory_mb()
        each = {kind: found[kind][1] / max(1, found[kind][0]) for kind in KINDS}
        return each | {ALL: sum(megabytes for _, megabytes in found.values())}
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=18_150)
    parser.add_argument("--model", type=Path, help="bench_serve.py's (build/bench-serve/model); else it is made")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TemporaryDirectory(prefix="bm-") as name:
        folder = options.model or Path(name) / "model"
        questions = find_or_make_model(folder)
        artifact = load_model(folder / "ours" / "model")
        rows = []
        for precision in (INT8, BFLOAT16, FLOAT32):
            by_workers = [measure(folder / "ours", options.port, precision, n, questions) for n in NUMBERS]
            rows += [
                f"| {precision} | {named} | "
                + " | ".join(f"{found[kind]:.0f}" if found[kind] else "-" for found in by_workers)
                + " |"
                for kind, named in {**KINDS, ALL: ALL}.items()
            ]
    write_result(
        "server_memory.md",
        [
            "# The endpoint's memory",
            "",
            "`PYTHONPATH=code:. python benchmarks/bench_server_memory.py`",
            "",
            f"Proportional set size in MB of the server's processes, ResNet50 of {len(CLASSES)} classes at "
            f"{artifact.preprocessing.image_size} pixels on the CPU engine, {usable_cores()} cores, after every "
            "worker has answered. Fewer workers than cores have several threads, and a copy of the weights each.",
            "",
            "| format | process | " + " | ".join(f"{n} workers" if n > 1 else "1 worker" for n in NUMBERS) + " |",
            "|---|---" + "|---" * len(NUMBERS) + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
