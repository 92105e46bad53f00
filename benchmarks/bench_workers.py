"""What the cores are better used for: workers of one thread, or fewer workers of several threads.

    PYTHONPATH=code:. python benchmarks/bench_workers.py [--rounds 8] [--port 18160] [--model FOLDER] [--times]

Two server programs with the model of bench_serve.py answer the same photographs in turns, one with a worker on every
core, one with a single worker that has all cores (`serving/capacity.py`). Writes benchmarks/results/workers.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.compared_servers import our_server
from benchmarks.distinct_answers import find_or_make_model
from benchmarks.load_client import CLASSES, CLIENTS, measure_turns, percentile, ratio, throughput
from benchmarks.record import processor, write_result

from image_classifier.contract.endpoint import ENGINE_VARIABLE, PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.contract.machine import usable_cores
from image_classifier.serving.requested import OPENVINO
from image_classifier.serving.server import find_java_home
from image_classifier.vision.gate import BFLOAT16, FLOAT32, INT8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--port", type=int, default=18_160, help="the first of two")
    parser.add_argument("--model", type=Path, help="bench_serve.py's (build/bench-serve/model); else it is made")
    parser.add_argument("--times", action="store_true", help="print the medians in milliseconds, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended then as well
    cores = usable_cores()
    many, one = f"{cores} workers of 1 thread", f"1 worker of {cores} threads"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "JAVA_HOME": str(find_java_home()), ENGINE_VARIABLE: OPENVINO,
    }  # fmt: skip
    rows = []
    with TemporaryDirectory(prefix="bw-") as name:
        folder = options.model or Path(name) / "model"
        questions = find_or_make_model(folder)
        for precision in (INT8, BFLOAT16, FLOAT32):
            starts = {
                name: partial(
                    our_server,
                    folder / "ours",
                    options.port + index,
                    environment | {PRECISION_VARIABLE: precision, WORKERS_VARIABLE: str(workers)},
                )
                for index, (name, workers) in enumerate(((many, cores), (one, 1)))
            }
            turns = measure_turns(starts, options.rounds, questions)
            rows += [
                f"| {precision} | {clients} | {ratio(throughput, turns[one, clients], turns[many, clients])} "
                f"| {ratio(partial(percentile, 50), turns[one, clients], turns[many, clients])} "
                f"| {ratio(partial(percentile, 99), turns[one, clients], turns[many, clients])} |"
                for clients in CLIENTS
            ]
            print(*rows[-len(CLIENTS) :], sep="\n", flush=True)
            if options.times:
                for (server, clients), found in turns.items():
                    print(f"{precision}, {server}, {clients} clients: {percentile(50, found) * 1000:.1f} ms, median")
    text = [
        "# Workers and threads",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_workers.py --rounds {options.rounds}`",
        "",
        f"{one}, as multiples of {many}: ResNet50 of {len(CLASSES)} classes, photographs of 500 x 375 pixels, "
        f"{processor()}. Medians, in brackets the 95 % interval over {options.rounds} rounds in which both took turns.",
        "",
        "| format | clients at once | requests a second | latency, median | latency, 99th percentile |",
        "|---|---|---|---|---|",
        *rows,
    ]
    write_result("workers.md", text)


if __name__ == "__main__":
    main()
