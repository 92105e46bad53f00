"""How often each rule misses its disease, and how often it speaks up without one: at the end, and live on the way.

    PYTHONPATH=code:. python benchmarks/bench_rules.py [--photos FOLDER]

Writes benchmarks/results/rules.md. Trainings are real (rule_cases.py, rule_runs.py); what needs a GPU or hours is made
up (system_runs.py) and said so. The rules' defaults were chosen with seeds below 100: start there to change them, and
measure them with others.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.rule_cases import CASES, PHOTOGRAPHS
from benchmarks.rule_replay import Keeper, Recording, read_recording
from benchmarks.rule_runs import train
from benchmarks.rule_tables import Run, tables
from benchmarks.system_runs import MACHINES, TIMES, record, timed

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobError
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.rules import RULES
from image_classifier.training.job import run as run_job
from image_classifier.training.stop import StopFlag
from image_classifier.vision.sample_data import make_sample_data

JOB = TrainConfig(
    weights="none", image_size=64, batch_size=16, epochs=10, lr=0.02, augment="light", workers=0, profile=False
)
JOBS: dict[str, tuple[tuple[str, ...], TrainConfig]] = {  # rules that should fire, and the job
    "healthy: ResNet50, SGD": ((), JOB),
    "healthy: ResNet50, AdamW": ((), JOB.replace(optimizer="adamw", lr=0.001)),
    "ResNet50, learning rate 1e-8": (("WeightUpdateRatio",), JOB.replace(lr=1e-8)),
    "ResNet50, AdamW, learning rate 3": (("WeightUpdateRatio",), JOB.replace(optimizer="adamw", lr=3.0)),
}
RESULT = Path(__file__).parent / "results" / "rules.md"


def trainings(seeds: range, photos: Path | None) -> Iterator[Run]:
    """Every little training with every seed."""
    for name, case in (CASES | (PHOTOGRAPHS if photos else {})).items():
        started = time.time()
        for seed in seeds:
            keeper = Keeper()
            run = train(case, seed, (keeper,), photos)
            yield name, case.rules, Recording(run.job, keeper.records)
        print(f"{name}: {len(seeds)} runs in {time.time() - started:.0f} s", flush=True)


def jobs(seeds: range) -> Iterator[Run]:
    """Whole jobs of the project's trainer on sample images, each a process, read back from the files it leaves."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_sample_data(data)
        for name, (rules, config) in JOBS.items():
            started = time.time()
            for seed in seeds:
                base = Path(folder) / f"{list(JOBS).index(name)}-{seed}"
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    process.submit(run_one, config.replace(seed=seed), base, data).result()
                yield name, rules, read_recording(MlPaths(base=base).output_data)
            print(f"{name}: {len(seeds)} jobs in {time.time() - started:.0f} s", flush=True)


def run_one(config: TrainConfig, base: Path, data: Path) -> None:
    """One job, in a process of its own."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    paths = MlPaths(base=base)
    paths.data.parent.mkdir(parents=True)
    paths.data.symlink_to(data)
    with suppress(JobError):  # a training that diverged
        run_job(config, paths, StopFlag())


def recordings(seeds: range) -> Iterator[Run]:
    """The made-up recordings."""
    for name, machine in MACHINES.items():
        for seed in seeds:
            yield name, machine.rules, record(machine, seed)
    for name, (rules, start_s, pause_s) in TIMES.items():
        yield name, rules, timed(start_s, pause_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1000, help="never one that defaults were chosen with")
    parser.add_argument("--seeds", type=int, default=6, help="of each little training and recording")
    parser.add_argument("--job-seeds", type=int, default=3, help="of each whole job")
    parser.add_argument("--photos", type=Path, help="folders of photographs by class (train/CLASS, valid/CLASS)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # the rules' own words
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    job_seeds = range(options.first_seed, options.first_seed + options.job_seeds)
    rules = [rule() for rule in RULES]
    of_machines = [rule for rule in rules if rule.about == "system"]
    photos = "Photographs were given." if options.photos else "No photographs were given: their cases are left out."
    text = [
        "# Rules: misses and false alarms",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_rules.py{' --photos FOLDER' if options.photos else ''}`, seeds "
        f"{seeds[0]} to {seeds[-1]} (whole jobs: to {job_seeds[-1]}), {os.cpu_count()} cores, torch "
        f"{torch.__version__}, default parameters. {photos}",
        "",
        "The rules' defaults were chosen with other seeds, but with the same kinds of runs in view: on other networks "
        "and images expect more of both.",
        "",
        "- missed: sick runs whose rule had not fired at the end.",
        "- false alarms: healthy runs for which it said IssuesFound at the end, of those it judged.",
        "- would have stopped: healthy runs that it would have ended as the job's `stop_on`, asked every 100 steps and "
        "after each epoch as in a job; those at the end among them.",
        "- caught after: the share of the training's steps after which it would have stopped a sick run: median "
        "(smallest .. largest).",
        "",
        "## Real little trainings",
        "",
        "Networks of four to seven layers, 32-pixel pictures, 80 to 1,200 steps; see rule_cases.py. In a sick run "
        "other rules may fire with good reason: a network whose weights are far too small does not learn either.",
        "",
        *tables(trainings(seeds, options.photos), rules),
        "## Whole jobs of the trainer",
        "",
        "ResNet50 from scratch on generated images, 64 pixels, 80 steps, 32 validation images, judged by the files the "
        "job leaves.",
        "",
        *tables(jobs(job_seeds), rules),
        "## Made-up recordings of machines with GPUs, and of time",
        "",
        "Not measured: phases, levels and noise as such jobs have them; see system_runs.py.",
        "",
        *tables(recordings(seeds), of_machines),
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    print(RESULT)


if __name__ == "__main__":
    main()
