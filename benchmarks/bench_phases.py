"""Where the time of a head's training goes, from the command to its exit: a first job, a second on the same pictures.

    PYTHONPATH=code:. python benchmarks/bench_phases.py [--data FOLDER] [--weights FILE] [--rounds 2] [--epochs 10]

FOLDER holds train, valid and test; without it, pictures are generated. Without --weights both start from the seeded
random weights of bench_training.py. Each job is `deploy.py train --fine-tune head` with default settings, a process of
its own that nothing is added to: the moments are those at which the lines of its log and its files appear. Cores are
those that it kept busy: processor time of all its processes over the time that passed. Writes
benchmarks/results/phases.md, with shares, and phases.json, with seconds. --quick tries the script on a few generated
pictures and writes nothing.
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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from benchmarks.bench_training import PASSES, generated, random_weights
from benchmarks.processes import ROOT
from benchmarks.record import RESULTS, processor, write_result

from image_classifier.contract.outputs import ARCHIVE
from image_classifier.vision.sample_data import make_sample_data

POLL_S = 0.005
JOBS = ("first", "second")
BEGUN, PACKED = "the job's log is there", "the archive is there"
FIRST_STEP = "the first steps of the head"
LAST_STEP = "the other epochs"
# What ends with the first line of the log that holds these words, in their order
PHASES = (
    ("the command: arguments, a look at the data, a run is made", BEGUN),
    ("the training program starts: toolkit, imports", " device: "),
    ("images listed", " data: "),
    ("files read for their digests, weights loaded", " weights: "),
    ("features of the training images, two views", " features of train: "),
    ("features of the validation images", " features of valid: "),
    (FIRST_STEP, " epoch=1/"),
    (LAST_STEP, " temperature "),
    ("labels judged", " labels: "),
    ("features of the test images, float32", " features of test: "),
    ("the test", " test:loss="),
    ("number formats: bf16 of the test images, ranges, int8", " int8: "),
    ("golden samples, the model is written", " done: "),
    ("report", " report: "),
    ("the job ends, the archive is written", PACKED),
    ("the command ends", ""),
)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a phase took: seconds, and seconds of the processors."""

    seconds: float
    core_seconds: float


class Timeline:
    """A job and the moments at which its phases ended."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], runs: Path, name: str) -> None:
        self._started = time.perf_counter()
        self._process = psutil.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._runs, self._name = runs, name
        self._moments: list[tuple[float, float]] = []
        self._waiting = [words for _, words in PHASES]

    def follow(self) -> list[Spent]:
        """Waits for the end. Raises RuntimeError when the job fails, or a line did not come."""
        log, rest, done = None, "", False
        while not done:
            done = self._process.poll() is not None
            run = next(self._runs.glob(f"train-*-{self._name}"), None)
            if log is None and run is not None and (run / "logs" / "job.log").exists():
                log = (run / "logs" / "job.log").open(encoding="utf-8")
                self._reach(BEGUN)
            if log is not None:
                *lines, rest = (rest + log.read()).split("\n")
                for line in lines:
                    self._reach(next((words for words in self._waiting if words and words in line), None))
            if run is not None and (run / ARCHIVE).exists() and PACKED in self._waiting:
                self._reach(PACKED)
            time.sleep(POLL_S)
        if self._process.returncode != 0 or log is None or self._waiting != [""]:
            said = self._process.stderr.read().decode()[-2000:]
            raise RuntimeError(f"the job ended with {self._process.returncode}, {self._waiting} did not come\n{said}")
        self._reach("")
        before = [(0.0, 0.0), *self._moments]
        return [
            Spent(seconds=now - then, core_seconds=max(0.0, cores - earlier))
            for (then, earlier), (now, cores) in zip(before, self._moments, strict=False)
        ]

    def _reach(self, words: str | None) -> None:
        """A phase has ended, and with it those before it that no line told of."""
        if words is None:
            return
        moment = time.perf_counter() - self._started, self._core_seconds()
        while self._waiting:
            self._moments.append(moment)
            if self._waiting.pop(0) == words:
                break

    def _core_seconds(self) -> float:
        """Of the processes that run, and of those that they have waited for; the largest so far once they are gone."""
        total = 0.0
        with suppress(psutil.Error):
            for each in (self._process, *self._process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += sum(each.cpu_times()[:4])
        return max([total, *(cores for _, cores in self._moments[-1:])])


def job(name: str, data: Path, weights: Path, runs: Path, flags: Sequence[str]) -> list[Spent]:
    """A job's phases, in the order of PHASES."""
    words = ["--runs-dir", runs, "train", "--name", name, "--data", data, "--weights", weights, *flags]
    command = [sys.executable, str(ROOT / "deploy.py"), *map(str, words), "--fine-tune", "head"]
    return Timeline(command, {**os.environ, "CLASSIFIER_FEATURES": ""}, runs, name).follow()


def spread(values: Sequence[float], form: str) -> str:
    """Median (smallest .. largest)."""
    middle, *ends = (format(each, form) for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({' .. '.join(ends)})"


def table(found: dict[str, list[list[Spent]]]) -> list[str]:
    """A row a phase."""
    lines = ["| phase | first job, share | cores | second job, share | cores |", "|---|---|---|---|---|"]
    for number, (phase, _) in enumerate(PHASES):
        cells = []
        for name in JOBS:
            spent = [rounds[number] for rounds in found[name]]
            whole = [sum(each.seconds for each in rounds) for rounds in found[name]]
            cells.append(spread([each.seconds / all_ for each, all_ in zip(spent, whole, strict=True)], ".1%"))
            seconds = sum(each.seconds for each in spent)
            cells.append(f"{sum(each.core_seconds for each in spent) / seconds:.1f}" if seconds > 0.02 else "")
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return lines


def fixed(rounds: Sequence[Spent]) -> tuple[float, float]:
    """Seconds from the command to the first steps, without the computing of features; and from the last to the exit,
    without the network's work."""
    seconds = {phase: each.seconds for (phase, _), each in zip(PHASES, rounds, strict=True)}
    names = [phase for phase, _ in PHASES]
    computed = [phase for phase in names if phase.startswith(("features", "number formats"))]
    before, after = names[: names.index(FIRST_STEP) + 1], names[names.index(LAST_STEP) + 1 :]
    return sum(seconds[each] for each in before if each not in computed), sum(
        seconds[each] for each in after if each not in computed
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="try the script; write nothing")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder, data = Path(temporary), options.data
        flags = ["--epochs", str(options.epochs)]
        if options.quick:
            options.rounds, data = 1, folder / "data"
            flags += ["--image-size", "64"]
            make_sample_data(data, num_classes=2, train_per_class=12, valid_per_class=12, test_per_class=2, size=64)
        data = data or generated(folder / "data")
        weights = (options.weights or folder / "random.pth").resolve()
        if options.weights is None:
            random_weights(data, weights, passes=2 if options.quick else PASSES)
        found: dict[str, list[list[Spent]]] = {name: [] for name in JOBS}
        for number in range(options.rounds):
            for name in JOBS:
                found[name].append(job(name, data, weights, folder / f"runs-{number}", flags))
                print(number, name, *told(found[name][-1]), sep="\n", flush=True)
        photos = {split: len(list((data / split).glob("*/*"))) for split in ("train", "valid", "test")}
    if not options.quick:
        publish(options, photos, found)


def told(rounds: Sequence[Spent]) -> list[str]:
    """Lines for who watches."""
    before, after = fixed(rounds)
    lines = [
        f"{each.seconds:8.2f} s {each.core_seconds:8.2f} core s  {phase}"
        for (phase, _), each in zip(PHASES, rounds, strict=True)
    ]
    whole = sum(each.seconds for each in rounds)
    return [*lines, f"{whole:8.2f} s in all; fixed: {before:.2f} s to the first steps, {after:.2f} s after the last"]


def publish(options: argparse.Namespace, photos: dict[str, int], found: dict[str, list[list[Spent]]]) -> None:
    """Writes the results."""
    given = "".join(f" --{name} {name.upper()}" for name in ("data", "weights") if getattr(options, name))
    text = [
        "# Where the time of a head's training goes",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_phases.py{given} --rounds {options.rounds} "
        f"--epochs {options.epochs}`",
        "",
        f"{', '.join(f'{count} {split}' for split, count in photos.items())} "
        f"{'photographs' if options.data else 'generated pictures'}, {os.cpu_count()} cores ({processor()}), torch "
        f"{torch.__version__}, Python {platform.python_version()}. Shares of the whole job, from the command to its "
        f"exit; median (smallest .. largest) of {options.rounds} rounds. Cores are those that were kept busy.",
        "",
        *table(found),
        "",
        *(
            f"Of the {name} job, {spread(before, '.1%')} lie between the command and the first steps, features left "
            f"out, and {spread(after, '.1%')} between the last step and the exit, features and number formats left out."
            for name in JOBS
            for before, after in [zip(*(fixed_shares(each) for each in found[name]), strict=True)]
        ),
    ]
    write_result("phases.md", text)
    record = {name: [[asdict(each) for each in rounds] for rounds in found[name]] for name in JOBS}
    phases = [phase for phase, _ in PHASES]
    (RESULTS / "phases.json").write_text(json.dumps({"photos": photos, "phases": phases, "found": record}, indent=1))


def fixed_shares(rounds: Sequence[Spent]) -> tuple[float, float]:
    """What `fixed` says, over the whole."""
    before, after = fixed(rounds)
    return before / total(rounds), after / total(rounds)


def total(rounds: Sequence[Spent]) -> float:
    """Seconds of the whole job."""
    return sum(each.seconds for each in rounds)


if __name__ == "__main__":
    main()
