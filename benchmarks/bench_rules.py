"""How often each rule misses its disease, and how often it speaks up without one.

    PYTHONPATH=code:. python benchmarks/bench_rules.py [--seeds 10]

Writes benchmarks/results/rules.md. Trainings are real (rule_runs.py); what needs a GPU or hours is made up
(system_runs.py) and said so.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from benchmarks.rule_runs import CASES, pictures, train
from benchmarks.system_runs import LEVELS, TIMES, machine_run, timed_run

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import JobError
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.rules import RULES, judge
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import read_files
from image_classifier.debugging.schema import Verdict
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
Expected = tuple[str, ...]


def trainings(seeds: int) -> Iterator[tuple[str, Expected, RunData]]:
    """Name, rules that should fire, and the run, of every case and seed."""
    pictures()
    for name, case in CASES.items():
        started = time.time()
        for seed in range(seeds):
            yield name, case.rules, train(case, seed)
        print(f"{name}: {seeds} runs in {time.time() - started:.0f} s", flush=True)


def jobs(seeds: int) -> Iterator[tuple[str, Expected, RunData]]:
    """The same of whole jobs of the project's trainer, on sample images, read back from the files they leave."""
    with TemporaryDirectory() as folder:
        data = make_sample_data_in(Path(folder))
        for name, (rules, config) in JOBS.items():
            started = time.time()
            for seed in range(seeds):
                paths = MlPaths(base=Path(folder) / f"{list(JOBS).index(name)}-{seed}")
                paths.data.parent.mkdir(parents=True)
                paths.data.symlink_to(data)
                with suppress(JobError):  # a training that diverged
                    run_job(config.replace(seed=seed), paths, StopFlag())
                yield name, rules, read_files(paths.output)
            print(f"{name}: {seeds} jobs in {time.time() - started:.0f} s", flush=True)


def make_sample_data_in(folder: Path) -> Path:
    """Sample images below `folder`."""
    make_sample_data(folder / "data")
    return folder / "data"


def recordings(seeds: int) -> Iterator[tuple[str, Expected, RunData]]:
    """The same of the made-up recordings."""
    for name, (rules, levels) in LEVELS.items():
        for seed in range(seeds):
            yield name, rules, machine_run(levels(np.random.default_rng(seed)))
    for name, (rules, start_s, pause_s) in TIMES.items():
        yield name, rules, timed_run(start_s, pause_s)


def count(runs: Iterator[tuple[str, Expected, RunData]], rules: Sequence[Rule]) -> tuple[list[str], list[str]]:
    """The rows of both tables: by case, and by rule."""
    names = [rule.name for rule in rules]
    total: Counter[str] = Counter()
    expected: dict[str, Expected] = {}
    fired: dict[str, Counter[str]] = defaultdict(Counter)
    silent: dict[str, Counter[str]] = defaultdict(Counter)
    for case, wanted, run in runs:
        total[case] += 1
        expected[case] = wanted
        for result in judge(run, rules):
            fired[case][result.rule] += result.verdict is Verdict.ISSUES
            silent[case][result.rule] += result.verdict in (Verdict.INSUFFICIENT_DATA, Verdict.ERROR)
    by_case = []
    for case, runs_made in total.items():
        also = [f"{name} {n}" for name, n in fired[case].items() if n and name not in expected[case]]
        hits = [f"{name} {fired[case][name]}" for name in expected[case]]
        by_case.append(f"| {case} | {runs_made} | {', '.join(hits) or '-'} | {', '.join(also) or '-'} |")
    by_rule = []
    for name in names:
        sick = [case for case in total if name in expected[case]]
        healthy = [case for case in total if not expected[case]]
        judged = sum(total[case] - silent[case][name] for case in healthy)
        false = sum(fired[case][name] for case in healthy)
        missed = sum(total[case] - fired[case][name] for case in sick)
        if sick or judged:
            of_sick = f"{missed} of {sum(total[case] for case in sick)}" if sick else "-"
            by_rule.append(f"| {name} | {of_sick} | {false} of {judged} |")
    return by_case, by_rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--job-seeds", type=int, default=3)
    options = parser.parse_args()
    seeds, job_seeds = options.seeds, options.job_seeds
    torch.set_num_threads(1)
    case_head = ["| run | runs | expected rules, times fired | other rules that fired |", "|---|---|---|---|"]
    rule_head = ["| rule | missed | false alarms on healthy runs it judged |", "|---|---|---|"]
    rules = [rule() for rule in RULES]
    of_machines = [rule for rule in rules if rule.about == "system"]
    real_cases, real_rules = count(trainings(seeds), rules)
    job_cases, job_rules = count(jobs(job_seeds), rules)
    made_cases, made_rules = count(recordings(seeds), of_machines)
    text = [
        "# Rules: misses and false alarms",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_rules.py --seeds {seeds} --job-seeds {job_seeds}`, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, default parameters.",
        "",
        "The defaults were chosen while looking at these same cases and seeds: on other data expect more of both.",
        "Verdicts are those at the end of a run; a rule that looks at the last epochs (Overfit, ClassImbalance) may",
        "speak up on the way and take it back, which counts for `stop_on` and not here.",
        "",
        "## Real little trainings",
        "",
        "Networks of seven layers, 32-pixel pictures, 160 to 1,200 steps; see rule_runs.py. In a sick run other rules",
        "may fire with good reason: a network whose weights are far too small does not learn either.",
        "",
        *rule_head,
        *real_rules,
        "",
        *case_head,
        *real_cases,
        "",
        "## Whole jobs of the trainer",
        "",
        "ResNet50 from scratch on generated images, 64 pixels, 80 steps, judged by the files the job leaves. They run "
        "in the",
        "benchmark's process, whose age MaxInitializationTime takes for the job's.",
        "",
        *rule_head,
        *job_rules,
        "",
        *case_head,
        *job_cases,
        "",
        "## Made-up recordings of machines with GPUs, and of time",
        "",
        "Not measured: values drawn around levels; see system_runs.py.",
        "",
        *rule_head,
        *made_rules,
        "",
        *case_head,
        *made_cases,
        "",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(text), encoding="utf-8")
    print(RESULT)


if __name__ == "__main__":
    main()
