"""The trainings of the whole network that bench_training.py compares: by who knows how, ours, and the step alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, run

from image_classifier.contract.outputs import HISTORY, RESULT
from image_classifier.contract.paths import MlPaths

FULL_WAYS = {
    "competent": "competent: DataLoader, channels_last, bf16 where it helps",
    "full": "ours, crops as large as what is served",
    "grows": "ours, crops that grow from 0.57 of their side",
    "smaller": "ours, crops of 0.75 of their side",
    "resident": "competent's step alone, on a batch that lies in memory",
    "alone": "our step alone",
}
ALONE = ("resident", "alone")
OTHER_CROPS = ("grows", "smaller")
SPEED = "images a second"  # of the fastest epoch: in a job of ours the first one fills the cache
ALLOCATORS = {
    "system": {},
    # What is freed stays with the process, in large pages where the system has some, as in a job of ours with "system":
    # no page faults for the activations of every step
    "keeping": {
        "GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}:glibc.malloc.hugetlb=1"
    },
}
Measured = tuple[float, dict[str, float]]  # seconds of the whole process; what it told


@dataclass(frozen=True, kw_only=True)
class FullTrainings:
    """One training of each way; each is a process of its own, all with the same settings and allocator. The round's
    number is the seed: how accurate a network becomes from few photographs is a matter of that, too."""

    data: Path
    weights: Path
    folder: Path
    epochs: int
    size: int
    batch: int
    lr: float
    workers: int
    allocator: str

    def competent(self, number: int) -> Measured:
        return self._baseline(number, [])

    def resident(self, number: int) -> Measured:
        return self._baseline(number, ["--resident"])

    def alone(self, number: int) -> Measured:
        return self._baseline(number, ["--resident", "--ours"])

    def full(self, number: int) -> Measured:
        return self._ours("full", number, ["--start-scale", 1, "--train-scale", 1])

    def grows(self, number: int) -> Measured:
        return self._ours("grows", number, ["--start-scale", 0.57, "--train-scale", 1])

    def smaller(self, number: int) -> Measured:
        return self._ours("smaller", number, ["--start-scale", 1, "--train-scale", 0.75])

    def _ours(self, name: str, number: int, flags: Sequence[object]) -> Measured:
        runs = self.folder / f"{name}-{number}"
        words = [ROOT / "deploy.py", "--runs-dir", runs, "train", "--name", "full", "--data", self.data]
        words += ["--weights", self.weights, "--fine-tune", "full", "--epochs", self.epochs, "--lr", self.lr]
        words += ["--image-size", self.size, "--batch-size", self.batch, "--seed", number, *flags]
        seconds, _ = run(words, ALLOCATORS[self.allocator])
        (job,) = runs.glob("train-*-full")
        output = MlPaths(base=job).output_data
        metrics = RESULT.read_object(output)["metrics"]
        speeds = [row["train:images_per_second"] for row in HISTORY.read(output)]
        found = {split: metrics[f"{split}:accuracy"] for split in ("validation", "test")}
        return seconds, found | {SPEED: max(speeds)}

    def _baseline(self, number: int, flags: Sequence[str]) -> Measured:
        output = self.folder / f"competent-{number}.pth"
        words = [Path(__file__).parent / "competent_training.py", self.data, self.weights, self.epochs, self.size]
        seconds, text = run(
            [*words, self.batch, self.lr, self.workers, output, number, *flags], ALLOCATORS[self.allocator]
        )
        output.unlink(missing_ok=True)
        return seconds, json.loads(text.splitlines()[-1])


def full_table(found: dict[str, list[Measured]]) -> list[str]:
    """Lines of a table: speed in the epochs, as a share of each one's own step alone, whole processes and accuracies,
    of the same round."""
    lines = [
        "| training | images a second | of its step alone | whole process | validation accuracy "
        "| validation, beside competent's | test accuracy | test, beside competent's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, rounds in found.items():
        cells = ["", ""]
        if way not in OTHER_CROPS:  # whose steps are other ones
            cells[0] = _spread(_ratios(rounds, found["competent"]), "{:.2f} of competent's")
            limit = "resident" if way in ("competent", "resident") else "alone"
            if limit in found:
                cells[1] = _spread(_ratios(rounds, found[limit]), "{:.2f}")
        if way in ALONE:
            cells += [""] * 5
        else:
            seconds = [ours / theirs for (ours, _), (theirs, _) in zip(rounds, found["competent"], strict=True)]
            cells.append(_spread(seconds, "{:.2f} of competent's"))
            for split in ("validation", "test"):
                cells += _accuracies(*([told[split] for _, told in each] for each in (rounds, found["competent"])))
        lines.append(f"| {FULL_WAYS[way]} | {' | '.join(cells)} |")
    return lines


def _ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[float]:
    """Of images a second, round by round."""
    return [one[SPEED] / other[SPEED] for (_, one), (_, other) in zip(ours, theirs, strict=True)]


def _accuracies(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """Mean, smallest and largest; the same of the differences with the same seed."""
    away = [one - other for one, other in zip(ours, theirs, strict=True)]
    return tuple(  # type: ignore[return-value]  # two of them
        f"{statistics.mean(each):{form}} ({min(each):{form}} .. {max(each):{form}})"
        for each, form in ((ours, ".2f"), (away, "+.3f"))
    )


def _spread(values: Sequence[float], form: str) -> str:
    """Median, smallest and largest."""
    return f"{form.format(statistics.median(values))} ({min(values):.2f} .. {max(values):.2f})"
