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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.record import write_result
from benchmarks.rule_cases import CASES, PHOTOGRAPHS
from benchmarks.rule_replay import Judgement, Keeper, Recording, judge_recording, read_recording
from benchmarks.rule_runs import train
from benchmarks.rule_tables import tables
from benchmarks.system_runs import MACHINES, TIMES, record, timed

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobError
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.rules import RULES
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.weights import WeightUpdateRatio
from image_classifier.training.distributed import Group
from image_classifier.training.job import run_in
from image_classifier.training.stop import StopFlag
from image_classifier.vision.sample_data import make_sample_data

JOB = TrainConfig(
    weights="none", image_size=64, batch_size=16, epochs=10, lr=0.02, augment="light", workers=0, profile=False
)
JOBS: dict[str, tuple[tuple[type[Rule], ...], TrainConfig]] = {  # rules that should fire, and the job
    "healthy: ResNet50, SGD, 16 epochs": ((), JOB.replace(epochs=16)),
    "healthy: ResNet50, AdamW": ((), JOB.replace(optimizer="adamw", lr=0.001)),
    "ResNet50, learning rate 1e-8": ((WeightUpdateRatio,), JOB.replace(lr=1e-8)),
    "ResNet50, AdamW, learning rate 3": ((WeightUpdateRatio,), JOB.replace(optimizer="adamw", lr=3.0)),
}
RULES_HERE = [rule() for rule in RULES.values()]


def little_training(kind: str, seed: int, photos: Path | None) -> Judgement:
    """One of CASES or PHOTOGRAPHS."""
    keeper = Keeper()
    run = train((CASES | PHOTOGRAPHS)[kind], seed, (keeper,), photos)
    return judge_recording(Recording(run.job, keeper.records), RULES_HERE)


def whole_job(kind: str, seed: int, _photos: Path | None) -> Judgement:
    """One of JOBS, on sample images, read back from the files it leaves."""
    with TemporaryDirectory() as folder:
        paths = MlPaths(base=Path(folder) / "job")
        make_sample_data(paths.data)
        with suppress(JobError):  # a training that diverged
            run_in(Group(), JOBS[kind][1].replace(seed=seed), paths, StopFlag())
        return judge_recording(read_recording(paths.output_data), RULES_HERE)


def made_up(kind: str, seed: int, _photos: Path | None) -> Judgement:
    """One of MACHINES or TIMES; the latter are the same with any seed."""
    recording = record(MACHINES[kind], seed) if kind in MACHINES else timed(*TIMES[kind][1:])
    return judge_recording(recording, [rule for rule in RULES_HERE if rule.about == "system"])


def quietly_on_one_thread() -> None:
    """How each process of the benchmark works."""
    logging.disable(logging.CRITICAL)  # the rules' own words
    torch.set_num_threads(1)


def judged(
    make: Callable[[str, int, Path | None], Judgement],
    kinds: Iterable[str],
    seeds: range,
    options: argparse.Namespace,
) -> Iterator[tuple[str, Judgement]]:
    """Makes a run of every kind with every seed; whole jobs in a process each, as MaxInitializationTime asks its age.

    A kind without randomness is made once.
    """
    tasks = [(kind, seed) for kind in kinds for seed in (seeds[:1] if kind in TIMES else seeds)]
    with ProcessPoolExecutor(
        options.processes,
        mp_context=get_context("spawn"),
        initializer=quietly_on_one_thread,
        max_tasks_per_child=1 if make is whole_job else None,
    ) as pool:
        futures = [pool.submit(make, kind, seed, options.photos) for kind, seed in tasks]
        for (kind, seed), future in zip(tasks, futures, strict=True):
            yield kind, future.result()
            print(f"{kind}, seed {seed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1000, help="never one that defaults were chosen with")
    parser.add_argument("--seeds", type=int, default=6, help="of each little training and recording")
    parser.add_argument("--job-seeds", type=int, default=3, help="of each whole job")
    parser.add_argument("--processes", type=int, default=1, help="runs made at the same time")
    parser.add_argument("--photos", type=Path, help="folders of photographs by class (train/CLASS, valid/CLASS)")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    job_seeds = range(options.first_seed, options.first_seed + options.job_seeds)
    of_machines = [rule for rule in RULES_HERE if rule.about == "system"]
    cases = CASES | (PHOTOGRAPHS if options.photos else {})
    little = tables(
        {kind: case.rules for kind, case in cases.items()}, judged(little_training, cases, seeds, options), RULES_HERE
    )
    whole = tables(
        {kind: job[0] for kind, job in JOBS.items()}, judged(whole_job, JOBS, job_seeds, options), RULES_HERE
    )
    recorded = tables(
        {kind: machine.rules for kind, machine in MACHINES.items()} | {kind: time[0] for kind, time in TIMES.items()},
        judged(made_up, [*MACHINES, *TIMES], seeds, options),
        of_machines,
    )
    load = os.getloadavg()[2]
    photos = "Photographs were given." if options.photos else "No photographs were given: their cases are left out."
    text = [
        "# Rules: misses and false alarms",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_rules.py --seeds {options.seeds} --job-seeds {options.job_seeds}"
        f"{' --photos FOLDER' if options.photos else ''} --processes {options.processes}`, seeds {seeds[0]} to "
        f"{seeds[-1]} (whole jobs: to {job_seeds[-1]}), {os.cpu_count()} cores, torch {torch.__version__}, default "
        f"parameters. {photos} {load:.0f} processes wanted the cores in the last quarter "
        "of an hour: the pauses that they make are in what StepOutlier and Dataloader saw.",
        "",
        "The rules' defaults were chosen with other seeds, but with the same kinds of runs in view: on other networks "
        "and images expect more of both.",
        "",
        "- missed: sick runs whose rule had not fired at the end; mild cases, in which the disease is not always "
        "there, are shown by kind only.",
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
        *little,
        "## Whole jobs of the trainer",
        "",
        "ResNet50 from scratch on generated images, 64 pixels, 8 steps an epoch, 32 validation images, judged by the "
        "files the job leaves. The generated images are learned in a few epochs: where Overtraining speaks up in a "
        "job of 16, it is right to.",
        "",
        *whole,
        "## Made-up recordings of machines with GPUs, and of time",
        "",
        "Not measured: phases, levels and noise as such jobs have them; see system_runs.py.",
        "",
        *recorded,
    ]
    write_result("rules.md", text)


if __name__ == "__main__":
    main()
