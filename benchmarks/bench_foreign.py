"""Faults that the rules were not made for: how many are caught, for the right cause, and at which false alarms.

    PYTHONPATH=code:. python benchmarks/bench_foreign.py --seeds 5 --processes 2

Writes benchmarks/results/foreign.md. The programs are those of foreign_programs.py and foreign_more.py, watched through
`image_classifier.debugging.door.watch` with default parameters. The defaults may be chosen with FROZEN_ON and the
healthy programs of the first seeds; HELD_OUT is for the table. AWS's formulas (aws_formulas.py) judge the same
records.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from benchmarks.aws_formulas import aws_fires
from benchmarks.foreign_faults import FAULTS, FROZEN_ON, HELD_OUT, LOOKED_AT, SHORT_FAULTS
from benchmarks.foreign_more import MORE_FAULTS, MORE_HEALTHY, UNSEEN_FAULTS
from benchmarks.foreign_programs import HEALTHY_PROGRAMS, run_program
from benchmarks.record import write_result

from image_classifier.debugging.rules import RULES
from image_classifier.debugging.schema import Verdict

PLANTED = FAULTS | SHORT_FAULTS | MORE_FAULTS | UNSEEN_FAULTS
HEALTHY = HEALTHY_PROGRAMS | MORE_HEALTHY
TWINS = list({id(fault.base): fault.base for fault in PLANTED.values()}.values())  # most faults share theirs


@dataclass(frozen=True)
class Said:
    """What was said of one run: rules of ours (causes, with symptoms, errors), and of AWS's."""

    ours: tuple[str, ...]
    all_of_ours: tuple[str, ...]
    errors: tuple[str, ...]
    aws: tuple[str, ...]


def look(kind: str, seed: int) -> Said:
    """Runs a sick program, a twin (`twin NUMBER`) or a healthy one, and asks the rules."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if kind.startswith("twin "):
        program = TWINS[int(kind.removeprefix("twin "))]
    else:
        program = PLANTED[kind].sick if kind in PLANTED else HEALTHY[kind]
    seen = run_program(program, seed)
    asked = {rule for rule, kind_of in RULES.items() if kind_of.about == "tensors"}  # the machine has other work too
    results = [each for each in seen.results if each.severity != "info" and each.rule in asked]
    fired = [each for each in results if each.verdict is Verdict.ISSUES]
    return Said(
        ours=tuple(each.rule for each in fired if not each.symptom_of),
        all_of_ours=tuple(each.rule for each in fired),
        errors=tuple(each.rule for each in results if each.verdict is Verdict.ERROR),
        aws=tuple(aws_fires(seen.run)),
    )


def twin_of(kind: str) -> str:
    """The healthy twin of a fault, as `look` knows it."""
    return f"twin {next(i for i, each in enumerate(TWINS) if each is PLANTED[kind].base)}"


def half(title: str, kinds: Sequence[str], said: dict[str, list[Said]]) -> list[str]:
    """The table of a half of the faults."""
    rows, caught, right, aws = [], 0, 0, 0
    runs = sum(len(said[kind]) for kind in kinds)
    for kind in kinds:
        found = said[kind]
        causes = set(PLANTED[kind].causes)
        hits = sum(bool(each.ours) for each in found)
        named = sum(bool(causes & set(each.ours)) for each in found)
        theirs = sum(bool(each.aws) for each in found)
        twins = said[twin_of(kind)]
        alarms, their_alarms = sum(bool(each.ours) for each in twins), sum(bool(each.aws) for each in twins)
        caught, right, aws = caught + hits, right + named, aws + theirs
        names = ", ".join(sorted({name for each in found for name in each.ours})) or "-"
        total = len(found)
        rows.append(
            f"| {kind} | {hits} of {total} | {named} of {total} | {alarms} of {total} | {theirs} of {total} "
            f"| {their_alarms} of {total} | {names} |"
        )
    kinds_caught = sum(2 * sum(bool(each.ours) for each in said[kind]) > len(said[kind]) for kind in kinds)
    return [
        f"## {title}",
        "",
        f"{kinds_caught} of {len(kinds)} kinds caught in most of their runs; {caught} of {runs} runs caught "
        f"({caught / runs:.0%}), {right} of these for the planted cause ({right / max(caught, 1):.0%}). AWS's formulas "
        f"fire on {aws} of {runs} ({aws / runs:.0%}).".replace("%", " %"),
        "",
        "| fault | caught | cause right | alarms on the twin | AWS's formulas | AWS's on the twin | findings |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def healthy(said: dict[str, list[Said]]) -> list[str]:
    """The table of the healthy programs."""
    names = list(HEALTHY)
    runs = [each for name in names for each in said[name]]
    twins = [each for number in range(len(TWINS)) for each in said[f"twin {number}"]]
    alarms, theirs = sum(bool(each.ours) for each in runs), sum(bool(each.aws) for each in runs)
    quiet = sum(bool(set(each.aws) - {"LossNotDecreasing"}) for each in runs)
    of_twins = sum(bool(each.ours) for each in twins)
    rows = [
        f"| {name} | {sum(bool(each.ours) for each in said[name])} of {len(said[name])} "
        f"| {sum(bool(each.aws) for each in said[name])} of {len(said[name])} "
        f"| {', '.join(sorted({rule for each in said[name] for rule in each.ours})) or '-'} |"
        for name in names
    ]
    return [
        "## Healthy programs",
        "",
        f"False alarms: {alarms} of {len(runs)} runs of {len(names)} programs ({alarms / len(runs):.1%}), {of_twins} "
        f"of {len(twins)} runs of the faults' twins ({of_twins / len(twins):.1%}). AWS's formulas: {theirs} of "
        f"{len(runs)} ({theirs / len(runs):.0%}), without LossNotDecreasing {quiet} ({quiet / len(runs):.0%}). Rules "
        f"of ours that failed: {sum(bool(each.errors) for each in [*runs, *twins])}.".replace("%", " %"),
        "",
        "| program | false alarms | AWS's formulas | findings |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=100, help="defaults were chosen with seeds below 10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    kinds = [*PLANTED, *(f"twin {number}" for number in range(len(TWINS))), *HEALTHY]
    tasks = [(kind, seed) for kind in kinds for seed in range(options.first_seed, options.first_seed + options.seeds)]
    said: dict[str, list[Said]] = defaultdict(list)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for (kind, _), found in zip(tasks, pool.map(look, *zip(*tasks, strict=True), chunksize=8), strict=True):
            said[kind].append(found)
            print(kind, found.ours, flush=True)
    write_result(
        "foreign.md",
        [
            "# Foreign faults: caught, for the right cause, and at which false alarms",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_foreign.py --seeds {options.seeds}`, seeds from "
            f"{options.first_seed}, {os.cpu_count()} cores, torch {torch.__version__}, default parameters, statistics "
            "every 100 steps and at the first.",
            "",
            "The faults are ports of published kinds into programs written here, by the authors of the rules: a set "
            "that others wrote will be harder. A run is caught when a rule about the training fires that is not only "
            "informative; the cause is right when one of the findings (no symptom of another) is a rule that names "
            "what was planted.",
            "",
            *half("Faults that defaults were chosen with", FROZEN_ON, said),
            *half("Held-out faults: no threshold was chosen with them", HELD_OUT, said),
            *half(
                "Faults with which the rules about heads, losses and modes were made, or that were held out at first",
                [*MORE_FAULTS, *LOOKED_AT],
                said,
            ),
            *half("Unseen faults: written after the rules, which were not changed for them", list(UNSEEN_FAULTS), said),
            *half("Short trainings: sixty examples, ten epochs, thirty steps", list(SHORT_FAULTS), said),
            *healthy(said),
        ],
    )


if __name__ == "__main__":
    main()
