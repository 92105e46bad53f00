"""How fast a training on the CPU is beside busy processes, by how its threads wait for each other.

    PYTHONPATH=code:. python benchmarks/bench_neighbour.py [--rounds 5] [--seconds 8] [--neighbours 0 1 2]

Steps of a ResNet50 as a job of ours makes them (bf16 where the processor has it, our kernels) in processes of their
own that take turns, beside as many others, of one thread each, that compute without a pause. The threads are those of
OpenMP (GNU's runtime, which torch brings along): as it waits by default, with OMP_WAIT_POLICY=passive, as a training of
ours has them wait (training/waiting_threads.py), and with a thread fewer; and as ours, where oneDNN divides the
gradients of weights among them (not training/spatial.py), as in torch's own step. A fair share with N neighbours is
cores / (cores + N) of the speed that the fastest of them has alone in the same round. Writes
benchmarks/results/neighbour.md and neighbour.json. --quick tries the script and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from benchmarks.record import RESULTS, processor, write_result

from image_classifier.contract.machine import usable_cores
from image_classifier.training.kept_memory import keep_freed_memory
from image_classifier.training.norm_trial import fuse
from image_classifier.training.pointwise import by_products
from image_classifier.training.setup import use_bf16
from image_classifier.training.waiting_threads import WaitingThreads
from image_classifier.vision.model import build_model

CORES = usable_cores()
CPU = torch.device("cpu")
OURS, DIVIDED = "ours", "ours, gradients divided by oneDNN"
WAYS = {
    "spinning": {"OMP_NUM_THREADS": str(CORES)},
    "passive": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "passive"},
    OURS: {"OMP_NUM_THREADS": str(CORES)},
    DIVIDED: {"OMP_NUM_THREADS": str(CORES)},
    "a thread fewer": {"OMP_NUM_THREADS": str(max(1, CORES - 1))},
}
BUSY = "while True: pass"
BATCH, CLASSES = 16, 10
WARM_SHARE = 0.4  # of the time that is measured, before it: ours looks twice a second who else is there
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
Found = dict[tuple[str, int], list[float]]  # (way, neighbours) -> images a second, by round


def speed(seconds: float, size: int, *, divided: bool = False) -> float:
    """Images a second of training steps in this process; with all gradients `divided` among threads by oneDNN."""
    torch.manual_seed(0)
    keep_freed_memory()
    bf16 = use_bf16("auto", CPU)
    model = build_model(CLASSES).to(memory_format=torch.channels_last)
    fuse(model, CPU, bf16=bf16)
    if divided:
        model.convolve_by(by_products)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % CLASSES

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    def steps(seconds: float) -> float:
        done, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not done:
            step()
            done += BATCH
        return done / passed

    steps(WARM_SHARE * seconds)
    return steps(seconds)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """As many processes that compute without a pause."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def run(way: str, seconds: float, size: int) -> float:
    """`speed` in a process whose threads wait in this way."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | WAYS[way]
    command = [sys.executable, __file__, "--one", way, "--seconds", str(seconds), "--size", str(size)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def fair_shares(found: Found, way: str, count: int) -> list[float]:
    """By round, what a way has of its fair share; the speed without neighbours is that of the fastest way."""
    alone = [max(speeds) for speeds in zip(*(found[each, 0] for each in WAYS), strict=True)]
    fair = CORES / (CORES + count)
    return [ours / (fair * most) for ours, most in zip(found[way, count], alone, strict=True)]


def table_row(found: Found, way: str, count: int) -> str:
    """The share of what is fair."""
    shares = fair_shares(found, way, count)
    return f"| {way} | {count} | {statistics.median(shares):.2f} ({min(shares):.2f} .. {max(shares):.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of steps that are timed in a process, behind others")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with WaitingThreads(CPU) if options.one in (OURS, DIVIDED) else nullcontext():
            print(speed(options.seconds, options.size, divided=options.one == DIVIDED))
        return
    if options.quick:
        options.rounds, options.seconds, options.size, options.neighbours = 1, 0.1, 32, [0, 1]
    counts = sorted({0, *options.neighbours})
    found: Found = {(way, count): [] for count in counts for way in WAYS}
    for number in range(options.rounds):
        for way, count in found:
            with neighbours(count):
                found[way, count].append(run(way, options.seconds, options.size))
            print(number, way, count, f"{found[way, count][-1]:.2f}", flush=True)
    if options.quick:
        return
    text = [
        "# A training on the CPU beside busy processes",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_neighbour.py --rounds {options.rounds} "
        f"--seconds {options.seconds:g} --size {options.size} --neighbours {' '.join(map(str, counts))}`",
        "",
        f"Batch {BATCH}, {options.size} pixels, {CORES} cores ({processor()}), torch {torch.__version__}, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end; median (smallest .. largest) of "
        f"{options.rounds} rounds. A share of 1 is cores / (cores + neighbours) of the speed that the fastest way has "
        "alone in the same round.",
        "",
        "| threads wait | neighbours | of a fair share |",
        "|---|---|---|",
        *(table_row(found, way, count) for way, count in found),
    ]
    write_result("neighbour.md", text)
    record = [{"way": way, "neighbours": count, "images_per_second": each} for (way, count), each in found.items()]
    (RESULTS / "neighbour.json").write_text(json.dumps({"cores": CORES, "found": record}, indent=1))


if __name__ == "__main__":
    main()
