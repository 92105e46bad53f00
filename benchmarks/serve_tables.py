"""The page of bench_serve.py, made of what was measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
from benchmarks.compared_servers import INT8_SERVER, OURS, PACKAGES, STOCK
from benchmarks.distinct_answers import SCENES, SIZE
from benchmarks.load_client import (
    CLASSES,
    CLIENT,
    CLIENTS,
    Turn,
    Turns,
    core_ms,
    interval,
    percentile,
    ratio,
    throughput,
)
from benchmarks.process_costs import FRONT, JAVA, PARENT, WORKERS
from benchmarks.record import processor

LOOPS = {server: f"{precision} in-process" for server, precision in OURS.items()}
"""Our servers -> the loop of the same engine without a server."""

_CORES = os.cpu_count() or 1
Memory = Mapping[str, Mapping[str, tuple[int, float]]]  # server -> kind of process -> how many, and MB of all of them


def share(served: Sequence[Turn], alone: Sequence[Turn], clients: int) -> float:
    """Of the requests a second that are possible: the engine's own loop, and on the same cores the load client and the
    front, each with the time that it took while the server answered."""
    beside_s = (core_ms(CLIENT, served) + core_ms(FRONT, served)) / 1000
    limit = 1 / (1 / throughput(alone) + beside_s / min(clients, _CORES))
    return throughput(served) / limit


def percent(kind: str, turns: Sequence[Turn], kinds: Sequence[str]) -> float:
    """Of the processor's time that all these kinds of processes take for a request."""
    return 100 * core_ms(kind, turns) / sum(core_ms(each, turns) for each in kinds)


def page(turns: Turns, starts: Sequence[Mapping[str, float]], memory: Memory, servers: Sequence[str]) -> list[str]:
    """All of it, line by line."""
    rounds = len(turns[STOCK, 1])
    return [
        "# The endpoint",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_serve.py --rounds {rounds} --starts {len(starts)}`",
        "",
        f"ResNet50 of {len(CLASSES)} classes, {SCENES} JPEG photographs of {SIZE[0]} x {SIZE[1]} pixels with as many "
        f"different answers, all of them checked; {_CORES} cores ({processor()}) and as many processes of one thread "
        f"for each server; OpenVINO {version('openvino')}, torch {torch.__version__}, multi-model-server "
        f"{version('multi-model-server')}, sagemaker-inference {version('sagemaker-inference')}, "
        f"{', '.join(PACKAGES[name] for name in servers if name in PACKAGES)}, Python {platform.python_version()}. "
        f"The others compute in torch, in float32. Medians of {rounds} rounds in which all took turns, in brackets the "
        "95 % interval over rounds drawn again, "
        "as multiples of the stock handler's (latency: below 1 is faster); "
        "Ray, which takes a tenth of a core unasked, was stopped between its "
        "turns. Which format is the fastest depends on the processor; a server finds "
        "out when it starts. bfloat16 is far ahead of float32 only where the processor has AMX.",
        "",
        *_speed(turns, servers),
        "",
        *_limits(turns),
        "",
        *_shares(turns),
        "",
        *_starts(starts),
        "",
        *_memory(memory),
    ]


def _speed(turns: Turns, servers: Sequence[str]) -> list[str]:
    return [
        "| clients at once | server | requests a second | latency, median | latency, 99th percentile |",
        "|---|---|---|---|---|",
        *(
            f"| {clients} | {name} | {ratio(throughput, turns[name, clients], turns[STOCK, clients])} "
            f"| {ratio(lambda part: percentile(50, part), turns[name, clients], turns[STOCK, clients])} "
            f"| {ratio(lambda part: percentile(99, part), turns[name, clients], turns[STOCK, clients])} |"
            for clients in CLIENTS
            for name in servers
        ),
    ]


def _limits(turns: Turns) -> list[str]:
    rows = []
    for clients in CLIENTS:
        for name, loop in LOOPS.items():
            served, alone = turns[name, clients], turns[loop, clients]
            of_limit = interval(lambda one, other, clients=clients: share(one, other, clients), served, alone)
            rows.append(
                f"| {clients} | {name} | {ratio(throughput, alone, turns[STOCK, clients])} "
                f"| {ratio(throughput, served, alone)} | {of_limit} |"
            )
    return [
        "What is possible: the same engine in as many processes, with all that a worker does of a request and no "
        "server. On the same cores the load client and the front take their part; in the last column the limit has "
        "room for them, so that what is missing there is Java's and the way between processes.",
        "",
        "| clients at once | server | the loop alone, times the stock handler | reached of it "
        "| reached of it beside client and front |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _shares(turns: Turns) -> list[str]:
    kinds = (CLIENT, FRONT, JAVA, WORKERS)
    return [
        "Whose the processor's time of a request is, in percent:",
        "",
        "| clients at once | server | " + " | ".join(kinds) + " |",
        "|---|---" + "|---" * len(kinds) + "|",
        *(
            f"| {clients} | {name} | "
            + " | ".join(
                interval(lambda part, kind=kind: percent(kind, part, kinds), turns[name, clients], digits=1)
                for kind in kinds
            )
            + " |"
            for clients in CLIENTS
            for name in OURS
        ),
    ]


def _starts(starts: Sequence[Mapping[str, float]]) -> list[str]:
    rows = []
    for name in starts[0]:
        times = [each[name] / each[STOCK] for each in starts]
        rows.append(f"- {name}: {statistics.median(times):.2f} ({min(times):.2f} .. {max(times):.2f})")
    return [
        f"From the command to the first right answer, times the stock handler's, median (smallest .. largest) of "
        f"{len(starts)} starts in turns. Ours has by then unpacked the archive, chosen its format, and reproduced the "
        "golden samples before its workers were forked and once more through HTTP:",
        "",
        *rows,
    ]


def _memory(memory: Memory) -> list[str]:
    rows = [f"- {name}: {sum(mb for _, mb in kinds.values()):.0f} MB" for name, kinds in memory.items() if kinds]
    number, of_workers = memory[INT8_SERVER][WORKERS]
    _, of_parent = memory[INT8_SERVER][PARENT]
    return [
        "Memory (proportional set size) of all processes of a server that runs alone and has answered. A worker of "
        f"{INT8_SERVER} has {of_workers / number:.0f} MB of it, what they are forked from {of_parent:.0f} MB:",
        "",
        *rows,
    ]
