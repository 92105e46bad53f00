"""Part (b): what recorder and smdebug cost a step, and how often the host waits for the GPU while a training runs."""

from __future__ import annotations

import itertools
import shutil
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench_hook import FIRST, INTERVAL, LEAD, WAYS, WITH_ACTIVATIONS, Process
from benchmarks.gpu.jobs import make_job
from benchmarks.gpu.kit import Kit, after_steps, lacks
from benchmarks.gpu.trainer import BATCH, synthetic_limit

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import STEPS
from image_classifier.training.distributed import Group
from image_classifier.training.job import run_in
from image_classifier.training.stop import StopFlag, end_workers

MESSAGE = "called a synchronizing CUDA operation"  # torch's, with set_sync_debug_mode
GOAL_OVERHEAD = 0.02
SMALL_BATCH = 32
GOAL_LAUNCH_SHARE = 0.4  # of the step's time
OURS = "image_classifier"


def run(kit: Kit) -> None:
    """Synchronisations first: they are what decides whether a step can be faster than the host."""
    count_synchronisations(kit)
    measure_overhead(kit)
    compare_graph(kit)


def compare_graph(kit: Kit) -> None:
    """Small batches, whose layers a GPU computes faster than they are launched: one by one, and as a CUDA graph."""
    batch = kit.size(SMALL_BATCH, 2)
    launched, replayed = synthetic_limit(kit, batch), synthetic_limit(kit, batch, replayed=True)
    ours = synthetic_limit(kit, batch, replayed=True, ours=True)
    found = {"launched": launched, "as_a_graph": replayed, "as_a_graph_with_our_kernels": ours}
    kit.note("small_batch", {"images": batch, "images_per_s": found})
    kit.claim(
        f"a step of {batch} images is faster as a CUDA graph", replayed > launched, f"{replayed / launched:.2f} times"
    )


def measure_overhead(kit: Kit) -> None:
    """The ways of benchmarks/bench_hook.py in turns, each in a process of its own. All turns of a way hold as many
    steps as lie between two that are recorded with activations.

    What is done for the first time in a process is counted apart: the steps before the turns, by the clock, of which
    one is recorded with activations, and another recorded as a CUDA graph.
    """
    ways = [way for way in WAYS if way != "smdebug" or not lacks("smdebug")]
    if lacks("smdebug"):
        kit.skip("smdebug's overhead", "smdebug is not installed, and carry.py made no folder with it")
    batch, turn, turns = kit.size(BATCH, 4), kit.size(INTERVAL, 2), kit.size(WITH_ACTIVATIONS // INTERVAL, 2)
    folder = kit.folder / "overhead"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run: smdebug refuses a folder that is there
    processes: dict[str, Process] = {}
    first: dict[str, float] = {}
    try:
        for way in ways:
            processes[way] = Process(way, kit.image_size, batch, folder / way)
        for way, process in processes.items():
            begun = time.perf_counter()
            process.run(WITH_ACTIVATIONS + LEAD, kit.size(20, 1))  # behind that step
            first[WAYS[way]] = time.perf_counter() - begun
        kit.note("seconds_of_first_steps", first)
        start = WITH_ACTIVATIONS + FIRST + 40
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        orders = list(itertools.permutations(ways))  # so that none always comes behind the same other
        for number in range(turns):
            for way in orders[number % len(orders)]:
                seconds[way].append(processes[way].run(start + number * turn, turn) / turn)
        calls = processes["ours"].calls(start + turns * turn, kit.size(80, 4)) / kit.size(80, 4)
    finally:
        for process in processes.values():
            process.close()
    plain = statistics.mean(seconds["nothing"])
    kit.note("step_ms", {WAYS[way]: 1000 * statistics.mean(values) for way, values in seconds.items()})
    kit.note("step_ms_by_turn", {WAYS[way]: [1000 * each for each in values] for way, values in seconds.items()})
    over = {WAYS[way]: statistics.mean(seconds[way]) / plain - 1 for way in ways if way != "nothing"}
    kit.note("overhead_share", over)
    kit.note("calls_to_observers_ms_a_step", 1000 * calls)
    mine = over[WAYS["ours"]]
    kit.claim(f"watching a training costs {GOAL_OVERHEAD:.0%} of a step or less", mine <= GOAL_OVERHEAD, f"{mine:.2%}")


def count_synchronisations(kit: Kit) -> None:
    """A whole job in this process; the second epoch's steps are the steady state."""
    settings = kit.size({"batch_size": 128}, {"workers": 1})  # with --fake, so that loading is not counted
    job = make_job(kit, "synchronisations", epochs=2, trace_steps=0, **settings)
    moments: list[tuple[float, str]] = []
    ticks: list[tuple[float, float]] = []
    end_ticks = after_steps(lambda: ticks.append((time.time(), time.thread_time())))
    try:
        with watched(kit, moments):
            run_in(Group(), TrainConfig.from_argv(job.command[2:]), job.paths, StopFlag())
    finally:
        end_ticks()
        end_workers()  # as the training script does: they ignore SIGTERM, and this process would wait for them
    steps = [row for row in STEPS.read(job.paths.output_data) if row["mode"] == "train" and row["epoch"] == 2]
    begin, end = steps[0]["time"], steps[-1]["time"]
    during = Counter(where for moment, where in moments if begin < moment <= end)
    count = max(1, len(steps) - 1)
    kit.note("synchronisations_a_step", sum(during.values()) / count)
    kit.note("synchronisations_by_place", {where: number / count for where, number in during.most_common(12)})
    kit.note("steps_in_steady_state", count)
    kit.claim(
        "in the steady state the host waits for the GPU in fewer than one step of ten",
        sum(during.values()) < 0.1 * count,
        f"{sum(during.values())} in {count} steps",
    )
    launching_thread(
        kit,
        1000 * statistics.median(row["seconds"] for row in steps),
        [cpu for moment, cpu in ticks if begin <= moment <= end],
    )


def launching_thread(kit: Kit, step_ms: float, used: list[float]) -> None:
    """CPU milliseconds that launching a step takes, beside the step's own; what counts the synchronisations included.

    A thread that is ahead of the GPU spins until there is room for another launch. So what launching takes is read off
    the tenth of the steps that used least.

    Args:
        used: seconds of the thread's CPU clock after each step of the steady state.
    """
    found = {"step_ms": step_ms}
    each = sorted(1000 * (later - earlier) for earlier, later in itertools.pairwise(used))
    found["thread_cpu_ms"] = mine = each[len(each) // 10]
    found["thread_cpu_ms_with_spinning"] = statistics.mean(each)
    kit.claim(
        f"launching a step takes {GOAL_LAUNCH_SHARE:.0%} of its time or less",
        mine <= GOAL_LAUNCH_SHARE * step_ms,
        f"{mine:.2f} ms of {step_ms:.2f} ms",
    )
    kit.note("launching_thread", found)


@contextmanager
def watched(kit: Kit, moments: list[tuple[float, str]]) -> Iterator[None]:
    """Takes down when and where in our code the host waits for the GPU, while the block runs."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        if MESSAGE in str(message):
            moments.append((time.time(), place()))

    patches = list(_patches(kit))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown, warnings.showwarning = warnings.showwarning, show
        for owner, name, replacement in patches:
            setattr(owner, name, replacement)
        if not kit.fake:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if not kit.fake:
                torch.cuda.set_sync_debug_mode("default")
            for owner, name, replacement in patches:
                setattr(owner, name, replacement.__wrapped__)  # type: ignore[attr-defined]  # as `wraps` left it
            warnings.showwarning = shown


def _patches(kit: Kit) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """What torch does not warn of: waiting for an event or a stream that is not done. With --fake, what would wait on a
    GPU."""
    targets: list[tuple[Any, str]] = [(torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize")]
    if kit.fake:
        targets = [(torch.Tensor, "tolist"), (torch.Tensor, "item"), (torch.Tensor, "cpu")]
    for owner, name in targets:
        yield owner, name, _warning(getattr(owner, name))


def _warning(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def warned(waited_for: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(waited_for, torch.Tensor) or not waited_for.query():
            warnings.warn(MESSAGE, stacklevel=2)
        return function(waited_for, *arguments, **keywords)

    return warned


def place() -> str:
    """`loop.py:41 train_step`: the innermost line of the product that is being run, or the outermost line of others."""
    frames = traceback.extract_stack()
    for frame in reversed(frames):
        if OURS in Path(frame.filename).parts:
            return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
    return "outside of the product"
