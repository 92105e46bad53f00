"""The endpoint's speed: ours in each number format, SageMaker's stock handler, LitServe, BentoML and Ray Serve.

    PYTHONPATH=code:. python benchmarks/bench_serve.py [--rounds 10] [--starts 3] [--limit-s SECONDS] [--without NAME]

Servers on loopback answer for the same ResNet50 of 133 classes, each with one process a core and one thread a process.
They take turns of some requests, all for the same photographs, by one client and by four at once. Every answer is
checked, and no two photographs have the same: the network is untrained, but its head was solved for so that each of
them has a class of its own. In the same rounds our engine answers without a server: the limit.

Each of the others is installed by pip in an environment of its own below build/. What is finished is kept there
(--folder) and not measured again while code and machine are the same: after an interruption, or --limit-s, the same
command goes on. Writes benchmarks/results/serve.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compared_servers import OURS, PACKAGES, ROOT, deploy_serve, plain_environment, starters
from benchmarks.distinct_answers import find_or_make_model
from benchmarks.in_process import InProcess
from benchmarks.load_client import Answers, Question, Server, Turn, Turns, one_round, warm
from benchmarks.record import processor, write_result
from benchmarks.serve_tables import LOOPS, page

from image_classifier.vision.artifact import pack
from image_classifier.vision.gate import INT8

AGAIN = 75  # exit code: the time is up, call again (EX_TEMPFAIL)


class Kept:
    """What earlier runs have finished, in a folder: rounds, starts and memory, one line of JSON each.

    Lines of another code or machine are removed, and with them the model that they were measured on.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "finished.jsonl"
        self.model = folder / "model"
        key = {"key": hashlib.sha256("\n".join(_sources()).encode()).hexdigest(), "processor": processor()}
        self._lines: list[dict[str, Any]] = []
        if self._file.is_file():
            self._lines = [json.loads(line) for line in self._file.read_text().splitlines()]
        if not self._lines or self._lines[0] != key:
            shutil.rmtree(self.model, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = [key]
            self._file.write_text(json.dumps(key) + "\n")

    def all(self, kind: str) -> list[Any]:
        """What was kept under this name, in order."""
        return [line[kind] for line in self._lines if kind in line]

    def keep(self, kind: str, value: Any) -> None:
        """Adds one thing that is finished."""
        self._lines.append({kind: value})
        with self._file.open("a") as file:
            file.write(json.dumps({kind: value}) + "\n")


def _sources() -> list[str]:
    paths = [*(ROOT / "code").rglob("*.py"), *Path(__file__).parent.glob("baselines/*.py")]
    return [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(paths)]


def measure_rounds(
    starts: Mapping[str, Callable[[], Answers]], rounds: int, questions: Sequence[Question], kept: Kept, until: float
) -> bool:
    """All servers run, and answer in turns. Whether all rounds are done; not when the time is up."""
    done = [each for each in kept.all("round") if set(starts) <= {name for name, _, _ in each}]
    if len(done) >= rounds:
        return True
    servers: dict[str, Answers] = {}
    try:
        for name, start in starts.items():
            print(f"starting {name}", flush=True)
            servers[name] = start()
            servers[name].wait(questions[0])
        warm(servers, questions)
        for number in range(len(done), rounds):
            turns = one_round(servers, questions)
            kept.keep("round", [[name, clients, turn.to_json()] for (name, clients), turn in turns.items()])
            print(f"round {number + 1} of {rounds}", flush=True)
            if time.monotonic() > until and number + 1 < rounds:
                return False
    finally:
        for server in servers.values():
            server.close()
    return True


def measure_starts(
    starts: Mapping[str, Callable[[], Server]], times: int, question: Question, kept: Kept, until: float
) -> bool:
    """Seconds from the command to the first right answer; one server at a time. Whether all are done."""
    for _ in range(len(kept.all("start")), times):
        seconds = {}
        for name, start in starts.items():
            started = time.perf_counter()
            server = start()
            try:
                server.wait(question)
                seconds[name] = time.perf_counter() - started
            finally:
                server.close()
        kept.keep("start", seconds)
        print("starts:", ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), flush=True)
        if time.monotonic() > until:
            return len(kept.all("start")) >= times
    return True


def measure_memory(starts: Mapping[str, Callable[[], Server]], questions: Sequence[Question], kept: Kept) -> None:
    """Of each server while it runs alone: several of ours would share the pages of the same libraries."""
    found = {}
    for name, start in starts.items() if not kept.all("memory") else ():
        server = start()
        try:
            warm({name: server}, questions)
            found[name] = server.memory_mb()
        finally:
            server.close()
    if found:
        kept.keep("memory", found)


def turns_of(kept: Kept, names: Sequence[str], rounds: int) -> Turns:
    """Of the rounds in which all of these took part."""
    complete = [each for each in kept.all("round") if set(names) <= {name for name, _, _ in each}]
    turns: Turns = {}
    for each in complete[:rounds]:
        for name, clients, turn in each:
            turns.setdefault((name, clients), []).append(Turn.from_json(turn))
    return turns


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--starts", type=int, default=3, help="of each server")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="stop after so long, to go on another time")
    parser.add_argument("--without", nargs="*", default=[], choices=list(PACKAGES), metavar="NAME", help="of others")
    parser.add_argument("--port", type=int, default=18_100, help="the first of eight")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench-serve", help="for what is finished")
    parser.add_argument("--prepare", action="store_true", help="make model and environments, and measure nothing")
    parser.add_argument("--print", action="store_true", help="print the page and write no result")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended then as well
    folder = options.folder.resolve()
    kept = Kept(folder)
    questions = find_or_make_model(kept.model)
    archive, port = kept.model / "model.tar.gz", options.port + 7
    if not archive.is_file():
        pack(kept.model / "ours" / "model", archive)
    servers = starters(kept.model, folder / "environments", options.port, options.without)
    until = time.monotonic() + options.limit_s
    if options.prepare:
        return 0
    environment = plain_environment()
    loops = {
        name: partial(
            InProcess, kept.model / "ours" / "model", kept.model / "shown", OURS[server], environment=environment
        )
        for server, name in LOOPS.items()
    }
    commands = {
        f"`deploy.py serve --precision {precision}`": partial(deploy_serve, archive, kept.model, port, precision)
        for precision in ("auto", INT8)
    }
    others = {name: start for name, start in servers.items() if name not in OURS}
    measured: dict[str, Callable[[], Answers]] = {**servers, **loops}
    if not (
        measure_rounds(measured, options.rounds, questions, kept, until)
        and measure_starts({**commands, **others}, options.starts, questions[0], kept, until)
    ):
        print("the time is up: call again to go on")
        return AGAIN
    measure_memory(servers, questions, kept)
    turns = turns_of(kept, list(measured), options.rounds)
    text = page(turns, kept.all("start")[: options.starts], kept.all("memory")[-1], list(servers))
    if options.print:
        print("\n".join(text))
    else:
        write_result("serve.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
