"""The look before the first step: what it finds, at which false alarms, and how long it takes on a ResNet50.

    PYTHONPATH=code:. python benchmarks/bench_preflight.py --seeds 5

Writes benchmarks/results/preflight.md: ratios, and on a GPU seconds; those of a CPU are only printed. The cases are
those of preflight_cases.py. Every case is also a test that nothing is changed: weights, statistics of batch norms,
gradients and random states are compared bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from benchmarks.preflight_cases import HEALTHY_STARTS, SICK_STARTS, Look
from benchmarks.record import write_result

from image_classifier.debugging.preflight import look_ahead
from image_classifier.debugging.rules import RULES, before_start
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, Verdict
from image_classifier.training.setup import use_bf16
from image_classifier.vision.model import build_model

ASKED = [rule for rule in RULES.values() if rule.__module__ == before_start.__name__]
STEP_IMAGES = 32
REFERENCE_IMAGES, REFERENCE_CLASSES = 8_351, 133  # of the set that the project is measured by
ROUNDS = 3


def found_in(look: Look) -> tuple[list[str], bool]:
    """The rules that fire, and whether anything was changed."""
    before = copy.deepcopy(look.network.state_dict())
    random_state = torch.get_rng_state()
    preflight = look_ahead(look.network, look.inputs, look.labels, look.criterion, plain=look.plain)
    same = torch.equal(random_state, torch.get_rng_state()) and all(
        torch.equal(value, before[name]) for name, value in look.network.state_dict().items()
    )
    same = same and all(each.grad is None for each in look.network.parameters())
    run = RunData(JobFacts(config={}, preflight=preflight))
    results = [rule().check(run) for rule in ASKED]
    return [each.rule for each in results if each.verdict in (Verdict.ISSUES, Verdict.ERROR)], not same


def quietly_on_one_thread() -> None:
    """How each process of the benchmark works."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the networks are small


def look_at(name: str, seed: int) -> tuple[list[str], bool]:
    """The case of that name, see `found_in`."""
    return found_in(SICK_STARTS[name][1](seed) if name in SICK_STARTS else HEALTHY_STARTS[name](seed))


def tables(first_seed: int, seeds: int, processes: int) -> list[str]:
    """What is found in sick and in healthy cases."""
    tasks = [(name, first_seed + seed) for name in [*SICK_STARTS, *HEALTHY_STARTS] for seed in range(seeds)]
    seen: dict[str, list[tuple[list[str], bool]]] = defaultdict(list)
    with ProcessPoolExecutor(processes, get_context("spawn"), quietly_on_one_thread) as pool:
        for (name, _), each in zip(tasks, pool.map(look_at, *zip(*tasks, strict=True), chunksize=4), strict=True):
            seen[name].append(each)
    changed = caught = right = alarms = runs = 0
    rows: list[str] = []
    for name, (causes, _) in SICK_STARTS.items():
        found = seen[name]
        changed += sum(each for _, each in found)
        hits, named = sum(bool(fired) for fired, _ in found), sum(bool(set(causes) & set(fired)) for fired, _ in found)
        caught, right = caught + hits, right + named
        rules = ", ".join(sorted({rule for fired, _ in found for rule in fired})) or "-"
        rows.append(f"| {name} | {hits} of {seeds} | {named} of {seeds} | {rules} |")
        print(rows[-1], flush=True)
    wrong: list[str] = []
    for name in HEALTHY_STARTS:
        found = seen[name]
        changed += sum(each for _, each in found)
        alarms, runs = alarms + sum(bool(fired) for fired, _ in found), runs + seeds
        if rules := ", ".join(sorted({rule for fired, _ in found for rule in fired})):
            wrong.append(f"| {name} | {sum(bool(fired) for fired, _ in found)} of {seeds} | {rules} |")
            print(wrong[-1], flush=True)
    total = seeds * len(SICK_STARTS)
    return [
        f"{caught} of {total} sick runs of {len(SICK_STARTS)} kinds are caught, {right} for the planted cause; "
        f"{alarms} of {runs} healthy runs of {len(HEALTHY_STARTS)} kinds are accused. Weights, statistics, gradients "
        f"or random states were changed in {changed} runs.",
        "",
        "| fault | caught | cause right | findings |",
        "|---|---|---|---|",
        *rows,
        "",
        *(["| healthy | accused | findings |", "|---|---|---|", *wrong, ""] if wrong else []),
    ]


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def wall_time() -> list[str]:
    """On a ResNet50 at 224 pixels, beside a training step of the same process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = use_bf16("auto", device)
    torch.manual_seed(0)
    model = build_model(REFERENCE_CLASSES).to(device, memory_format=torch.channels_last)
    inputs = torch.randn(STEP_IMAGES, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(STEP_IMAGES, device=device) * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(inputs)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def look() -> None:
        look_ahead(model, inputs, labels, plain=inputs, bf16=bf16)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    pairs = [(seconds(look), seconds(step)) for _ in range(ROUNDS)]
    looks, steps = [each for each, _ in pairs], [each for _, each in pairs]
    ratios = [one / other for one, other in pairs]
    where = f"{torch.cuda.get_device_name()}" if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    times = f"{statistics.median(looks):.1f} s ({min(looks):.1f} .. {max(looks):.1f})"
    times += f", a step {statistics.median(steps):.2f} s"
    print(f"a look takes {times}", flush=True)
    epoch = statistics.median(ratios) * STEP_IMAGES / REFERENCE_IMAGES
    return [
        "## Wall time",
        "",
        f"ResNet50, random weights, {REFERENCE_CLASSES} classes, 224 pixels, {where}, {'bf16' if bf16 else 'float32'}: "
        f"a look takes as long as {statistics.median(ratios):.1f} ({min(ratios):.1f} .. {max(ratios):.1f}, {ROUNDS} "
        f"times) training steps of {STEP_IMAGES} images in the same process, which is {epoch:.1%} of an epoch of "
        f"{REFERENCE_IMAGES:,} images.".replace("%", " %")
        + (f" {times}." if device.type == "cuda" else ""),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=100, help="parameters were chosen with seeds below 10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    wall = wall_time()
    found = tables(options.first_seed, options.seeds, options.processes)
    write_result(
        "preflight.md",
        [
            "# The look before the first step",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_preflight.py --seeds {options.seeds}`, seeds from "
            f"{options.first_seed}, {os.cpu_count()} cores, torch {torch.__version__}, default parameters.",
            "",
            *found,
            *wall,
        ],
    )


if __name__ == "__main__":
    main()
