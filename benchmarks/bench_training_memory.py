"""What memory a training takes from epoch to epoch, with as much data as the cache of images holds, and with more.

    PYTHONPATH=code:. python benchmarks/bench_training_memory.py [--epochs 6] [--times 1 4 16]

A whole job, its observers at their defaults, on generated pictures of 96 pixels, seen at 32; the cache is given a bound
of half a megabyte, which the smallest set does not fill. Read at the end of every epoch: the proportional share (PSS)
of all processes of the job. Writes benchmarks/results/training_memory.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from benchmarks.record import write_result

from image_classifier.contract.metrics import parse_metric_line
from image_classifier.vision.sample_data import make_sample_data

CLASSES = 4
PER_CLASS = 8  # in the set of the smallest size
BOUND = 500_000  # bytes of decoded images
JOB = f"""
import sys
from image_classifier.contract.machine import memory
from image_classifier.training import cache
from image_classifier.training.script import main

cache.LARGEST_SHARE = {BOUND} / memory()[0]
sys.exit(main(sys.argv[1:]))
"""
SETTINGS = {"weights": "none", "image_size": 32, "batch_size": 16, "warmup_epochs": 0, "cache": "decoded", "workers": 1}
KEPT = re.compile(r"(?:all|(\d+) of) (\d+) train images are kept decoded")


@dataclass
class Course:
    """What one job took.

    Args:
        kept: decoded training images in memory at the end of its first epoch, of `images`.
        megabytes: at the end of each epoch.
    """

    images: int
    kept: int
    megabytes: list[float]


def run(folder: Path, times: int, epochs: int) -> Course:
    """A job on `times` the smallest set."""
    data = folder / "input" / "data"
    make_sample_data(
        data, num_classes=CLASSES, train_per_class=times * PER_CLASS, valid_per_class=4, test_per_class=1, size=96
    )
    words = [word for name, value in (SETTINGS | {"epochs": epochs}).items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(folder), "SMDEBUG_LOG_LEVEL": "error"}
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, *words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert job.stdout is not None
    course = Course(images=times * CLASSES * PER_CLASS, kept=0, megabytes=[])
    log = []
    for line in job.stdout:
        log.append(line)
        if found := KEPT.search(line):
            course.kept = int(found[1] or found[2])
        if parse_metric_line(line) and len(course.megabytes) < epochs:
            course.megabytes.append(pss(job.pid) / 1e6)
    if job.wait() != 0 or len(course.megabytes) < epochs:
        raise SystemExit("".join(log))
    return course


def pss(pid: int) -> int:
    """Bytes of a process and its children, what they share counted once."""
    job = psutil.Process(pid)
    return sum(int(each.memory_full_info().pss) for each in [job, *job.children(recursive=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    rows = []
    for times in options.times:
        with TemporaryDirectory() as folder:
            course = run(Path(folder), times, options.epochs)
        second, later = course.megabytes[1], course.megabytes[2:]
        relative = [each / second for each in later]
        rows.append(
            f"| {times} x | {course.images} | {course.kept} | {second:.0f} MB | {relative[-1]:.3f} | "
            f"{min(relative):.3f} .. {max(relative):.3f} |"
        )
    text = [
        "# Memory from epoch to epoch",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_training_memory.py --epochs {options.epochs} "
        f"--times {' '.join(map(str, options.times))}`",
        "",
        f"ResNet50 from nothing, one loading process, {options.epochs} epochs, torch {torch.__version__}, Python "
        f"{platform.python_version()}; at most {BOUND / 1e6:g} MB of decoded images. Memory is the PSS of all "
        "processes at an epoch's end; the last columns compare the last epoch, and the least and most of the third on, "
        "with the second.",
        "",
        "| data | images | kept decoded | after epoch 2 | last | least .. most |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("training_memory.md", text)


if __name__ == "__main__":
    main()
