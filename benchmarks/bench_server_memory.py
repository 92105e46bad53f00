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

import psutil
from benchmarks.bench_serve import SOURCE, Server, read_ours, start_ours
from benchmarks.distinct_answers import CLASSES, Question, make_model
from benchmarks.record import write_result

from image_classifier.contract.endpoint import PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.serving.server import find_java_home
from image_classifier.vision.artifact import load_model
from image_classifier.vision.gate import BFLOAT16, FLOAT32, INT8

WORKERS = (1, 2, 4)
KINDS = ("a worker", "what workers are forked from", "Java", "the server program, with the front", "all of them")


def pss_mb(process: psutil.Process) -> float:
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    return 0.0


def measure(folder: Path, port: int, precision: str, workers: int, questions: list[Question]) -> dict[str, float]:
    """Kind of process -> MB, of a worker the mean."""
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "JAVA_HOME": str(find_java_home()),
        WORKERS_VARIABLE: str(workers),
        PRECISION_VARIABLE: precision,
    }
    process = start_ours(folder, port, environment, path=SOURCE)
    server = Server(lambda: process, port, read_ours)
    try:
        server.wait(questions[0])
        server.turn(questions, 2 * workers, 24 * workers)
        time.sleep(1)
        program = psutil.Process(process.pid)
        tree = [p for p in program.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        answering = [p for p in tree if any("model_service_worker" in word for word in p.cmdline())]
        forked = [p for p in answering if p.parent() in answering]
        (parent,) = [p for p in answering if p not in forked]
        (java,) = [p for p in tree if p.name() == "java"]
        found = (
            sum(map(pss_mb, forked)) / len(forked),
            pss_mb(parent),
            pss_mb(java),
            pss_mb(program),
            sum(map(pss_mb, [program, *tree])),
        )
        return dict(zip(KINDS, found, strict=True))
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=18_150)
    parser.add_argument("--model", type=Path, help="where bench_serve.py's model was made before; else it is made")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TemporaryDirectory(prefix="bm-") as name:
        folder = options.model or Path(name)
        if options.model is None:
            make_model(folder)
        artifact = load_model(folder / "ours" / "model")
        questions = [
            Question(path.read_bytes(), 1 + 2 * number)  # `make_photos`: the labels are the odd numbers
            for number, path in enumerate(sorted((folder / "shown").glob("*.jpg")))
        ]
        rows = []
        for precision in (INT8, BFLOAT16, FLOAT32):
            by_workers = [measure(folder / "ours", options.port, precision, n, questions) for n in WORKERS]
            rows += [
                f"| {precision} | {kind} | " + " | ".join(f"{found[kind]:.0f}" for found in by_workers) + " |"
                for kind in KINDS
            ]
    write_result(
        "server_memory.md",
        [
            "# The endpoint's memory",
            "",
            "`PYTHONPATH=code:. python benchmarks/bench_server_memory.py`",
            "",
            f"Proportional set size in MB of the server's processes, ResNet50 of {len(CLASSES)} classes at "
            f"{artifact.preprocessing.image_size} pixels on the CPU engine, after every worker has answered.",
            "",
            "| format | process | " + " | ".join(f"{n} workers" if n > 1 else "1 worker" for n in WORKERS) + " |",
            "|---|---" + "|---" * len(WORKERS) + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
