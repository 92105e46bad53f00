"""What the front on the public port costs: our server with it, against the same handler with the model server there.

    PYTHONPATH=code:. python benchmarks/bench_front.py [--rounds 30] [--port 18110]

Two servers on loopback answer for the same ResNet50 in int8, the fastest of our number formats, each with one process a
core: what the front costs weighs most where the network costs least. They take turns of some requests, all for the
same photographs, by one client and by four at once; every answer is checked. Writes benchmarks/results/front.md:
ratios only; --times prints the medians' difference as well.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_serve import (
    CLIENTS,
    SOURCE,
    Server,
    measure_turns,
    percentile,
    ratio,
    read_ours,
    start_ours,
    throughput,
)
from benchmarks.distinct_answers import make_model
from benchmarks.record import write_result

from image_classifier.contract.endpoint import PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.vision.gate import INT8

FRONT, DIRECT = "with our front", "the model server on the port"


def start_direct(folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """See `direct_server.py`."""
    program = Path(__file__).with_name("direct_server.py")
    paths = os.pathsep.join([str(SOURCE), str(SOURCE.parent)])
    with (folder / f"server-{port}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(program), str(port), environment[WORKERS_VARIABLE]],
            env={**environment, "SAGEMAKER_BASE_DIR": str(folder), "PYTHONPATH": paths},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--port", type=int, default=18_110, help="the first of two")
    parser.add_argument("--times", action="store_true", help="print the medians' difference in milliseconds, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended then as well
    workers = {WORKERS_VARIABLE: str(os.cpu_count())}
    environment = os.environ | {"OMP_NUM_THREADS": "1", PRECISION_VARIABLE: INT8} | workers
    with TemporaryDirectory(prefix="bf-") as name:
        folder, port = Path(name) / "ours", options.port
        questions = make_model(Path(name))
        starts = {
            FRONT: lambda: Server(lambda: start_ours(folder, port, environment), port, read_ours),
            DIRECT: lambda: Server(lambda: start_direct(folder, port + 1, environment), port + 1, read_ours),
        }
        turns = measure_turns(starts, options.rounds, questions)
    rows = [
        f"| {clients} | {ratio(throughput, turns[FRONT, clients], turns[DIRECT, clients])} "
        f"| {ratio(lambda part: percentile(50, part), turns[FRONT, clients], turns[DIRECT, clients])} "
        f"| {ratio(lambda part: percentile(99, part), turns[FRONT, clients], turns[DIRECT, clients])} |"
        for clients in CLIENTS
    ]
    text = [
        "# The front on the public port",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_front.py --rounds {options.rounds}`",
        "",
        f"Our server {FRONT}, against the same handler and engine (int8) with {DIRECT}: ratios, with the 95 % interval "
        f"over {options.rounds} rounds in which they took turns, {os.cpu_count()} cores and as many processes each.",
        "",
        "| clients at once | requests a second | latency, median | latency, 99th percentile |",
        "|---|---|---|---|",
        *rows,
    ]
    write_result("front.md", text)
    if options.times:
        for clients in CLIENTS:
            front, direct = (percentile(50, turns[name, clients]) * 1000 for name in (FRONT, DIRECT))
            print(f"{clients} clients: median {front:.2f} ms with the front, {direct:.2f} ms without")


if __name__ == "__main__":
    main()
