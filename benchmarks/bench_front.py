"""What the front on the public port costs: our server with it, against the same handler with the model server there.

    PYTHONPATH=code:. python benchmarks/bench_front.py [--rounds 30] [--port 18110]

Servers on loopback answer for the same ResNet50 in int8, the fastest of our number formats, each with one process a
core: what the front costs weighs most where the network costs least. Where HAProxy is installed, it is measured before
the same model server as a third, with limits set but none of what our front does beyond passing on. They take turns
of some requests, all for the same photographs, by one client and by four at once; every answer is checked. Writes
benchmarks/results/front.md: ratios only; --times prints the medians in milliseconds as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.compared_servers import OUR_DIALECT, SOURCE, start_ours, start_program
from benchmarks.distinct_answers import make_model
from benchmarks.load_client import CLIENTS, Server, measure_turns, percentile, ratio, throughput
from benchmarks.record import write_result

from image_classifier.contract.endpoint import PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.vision.gate import INT8

FRONT, PROXY, DIRECT = "our front", "HAProxy", "the model server on the port"
HAPROXY = """
defaults
  mode http
  maxconn 2000
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-request 20s
  option http-buffer-request
frontend public
  bind 127.0.0.1:{port}
  default_backend workers
backend workers
  http-reuse always
  retries 2
  server model 127.0.0.1:{behind}
"""


def start_direct(folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """See `direct_server.py`."""
    program = Path(__file__).with_name("direct_server.py")
    return start([sys.executable, str(program), str(port), environment[WORKERS_VARIABLE]], folder, port, environment)


def start_proxied(folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """HAProxy on the port, and the model server of `start_direct` on the next one."""
    configuration = folder / "haproxy.cfg"
    configuration.write_text(HAPROXY.format(port=port, behind=port + 1))
    program = Path(__file__).with_name("direct_server.py")
    both = (
        f"haproxy -db -f {configuration} & {sys.executable} {program} {port + 1} {environment[WORKERS_VARIABLE]} & "
        "trap 'kill $(jobs -p); wait' TERM INT; wait -n; kill $(jobs -p); wait"
    )
    return start(["bash", "-c", both], folder, port, environment)


def start(command: Sequence[str], folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The command in a session of its own, with the model in the folder as the one to serve."""
    paths = os.pathsep.join([str(SOURCE), str(SOURCE.parent)])
    ours = {"SAGEMAKER_BASE_DIR": str(folder), "PYTHONPATH": paths}
    return start_program(command, folder, port, {**environment, **ours})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--port", type=int, default=18_110, help="the first of four")
    parser.add_argument("--times", action="store_true", help="print the medians in milliseconds, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended then as well
    workers = {WORKERS_VARIABLE: str(os.cpu_count())}
    environment = os.environ | {"OMP_NUM_THREADS": "1", PRECISION_VARIABLE: INT8} | workers
    with TemporaryDirectory(prefix="bf-") as name:
        folder, port = Path(name) / "ours", options.port
        questions = make_model(Path(name))
        starts = {
            FRONT: lambda: Server(lambda: start_ours(folder, port, environment), port, OUR_DIALECT),
            DIRECT: lambda: Server(lambda: start_direct(folder, port + 1, environment), port + 1, OUR_DIALECT),
        }
        if shutil.which("haproxy"):
            starts[PROXY] = lambda: Server(lambda: start_proxied(folder, port + 2, environment), port + 2, OUR_DIALECT)
        turns = measure_turns(starts, options.rounds, questions)
    fronts = [name for name in starts if name != DIRECT]
    rows = [
        f"| {name} | {clients} | {ratio(throughput, turns[name, clients], turns[DIRECT, clients])} "
        f"| {ratio(lambda part: percentile(50, part), turns[name, clients], turns[DIRECT, clients])} "
        f"| {ratio(lambda part: percentile(99, part), turns[name, clients], turns[DIRECT, clients])} |"
        for name in fronts
        for clients in CLIENTS
    ]
    text = [
        "# The front on the public port",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_front.py --rounds {options.rounds}`",
        "",
        f"What stands before the model server, against the same handler and engine (int8) with {DIRECT}: ratios, with "
        f"the 95 % interval over {options.rounds} rounds in which they took turns, {os.cpu_count()} cores and as many "
        "processes each.",
        "",
        "| in front | clients at once | requests a second | latency, median | latency, 99th percentile |",
        "|---|---|---|---|---|",
        *rows,
    ]
    write_result("front.md", text)
    if options.times:
        for name, clients in turns:
            print(f"{name}, {clients} clients: median {percentile(50, turns[name, clients]) * 1000:.2f} ms")


if __name__ == "__main__":
    main()
