"""Made-up recordings of jobs on machines with GPUs, and of stalls, for the rules that need what is not at hand.

Nothing here was measured: a job is a row of phases (start, warm-up, epochs, validations, checkpoints, restarts of the
loading processes), each with levels that such machines show, noise that drifts, dips, samples that come late or not at
all. What it proves is that the rules compute what their docstrings say, and keep quiet through a job's ordinary pauses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from benchmarks.rule_replay import Record, Recording, in_order

from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.framework import MaxInitializationTime
from image_classifier.debugging.rules.system import (
    BatchSize,
    CPUBottleneck,
    GPUMemoryIncrease,
    IOBottleneck,
    LoadBalancing,
    LowGPUUtilization,
)
from image_classifier.debugging.rules.waiting import StalledTraining
from image_classifier.debugging.rundata import Floats
from image_classifier.debugging.schema import JobFacts, Mode, StepRecord, SystemSample

CORES = 8
BEGIN = 1_000_000_000.0  # Unix seconds
STEPS_A_SECOND = 3
WARM_UP_S = 8  # kernels are chosen
MISSING = 0.003  # share of the samples that never come


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One kind of job.

    Args:
        rules: that should fire; empty for a healthy one.
        gpus: how many.
        epochs: how many, of `epoch_s` seconds of training, `eval_s` of validation, `checkpoint_s` of writing a
            checkpoint and `restart_s` of starting to load images, in which the GPU has nothing to do.
        start_s: from the process's start to the first step.
        gpu, eval_gpu: percent of utilization while training and validating.
        spread: standard deviation of the GPU's utilization from second to second.
        first_gpu: the same as `gpu`, for the first epoch: files are read for the first time.
        last_gpu: the same of the last GPU.
        memory: percent of the GPU's memory in use, from the first validation on `eval_memory` points more; a leak adds
            `leak` points by the end.
        cpu, iowait: percent; `cpu` is the busiest core's.
        starved: share of the training's seconds in which the GPU waits for images.
    """

    rules: tuple[type[Rule], ...] = ()
    gpus: int = 1
    epochs: int = 6
    epoch_s: int = 60
    eval_s: int = 6
    checkpoint_s: int = 1
    restart_s: int = 1
    start_s: int = 40
    gpu: float = 93.0
    eval_gpu: float = 70.0
    spread: float = 4.0
    first_gpu: float | None = None
    last_gpu: float | None = None
    memory: float = 62.0
    eval_memory: float = 3.0
    leak: float = 0.0
    cpu: float = 55.0
    iowait: float = 2.0
    starved: float = 0.0


MACHINES: Mapping[str, Machine] = {
    "healthy: busy GPU": Machine(),
    "healthy: GPU and a core busy": Machine(cpu=97),
    "healthy: four busy GPUs": Machine(gpus=4),
    "healthy: two GPUs, one a little slower": Machine(gpus=2, gpu=92, last_gpu=86, spread=2.5),
    "healthy: memory rises with the first validation": Machine(memory=45, eval_memory=17),
    "healthy: small network": Machine(gpu=78, spread=8, memory=18, cpu=80),
    "healthy: GPU half as busy in long validations": Machine(epoch_s=45, eval_s=15, eval_gpu=35),
    "healthy: checkpoints of four seconds": Machine(epochs=10, epoch_s=30, checkpoint_s=4),
    "healthy: short epochs": Machine(epochs=20, epoch_s=15, eval_s=2, restart_s=2),
    "healthy: two minutes in all": Machine(epochs=4, epoch_s=18, eval_s=3, start_s=30),
    "healthy: first epoch reads from far": Machine(first_gpu=30, iowait=20, epoch_s=90, epochs=4),
    "GPU at 40 %": Machine(rules=(LowGPUUtilization,), gpu=40, spread=10, eval_gpu=40),
    "GPU starved by a busy core": Machine(rules=(CPUBottleneck, LowGPUUtilization), starved=0.7, cpu=97),
    "GPU starved by the disk": Machine(rules=(IOBottleneck, LowGPUUtilization), starved=0.7, cpu=40, iowait=75),
    "GPU idle for a third of the time": Machine(rules=(LowGPUUtilization,), starved=0.35, cpu=70),
    "GPU memory fills up": Machine(rules=(GPUMemoryIncrease,), memory=40, leak=35),
    "GPU memory fills up slowly": Machine(rules=(GPUMemoryIncrease,), memory=55, leak=12),
    "small batch on a large machine": Machine(rules=(BatchSize,), gpu=35, spread=8, eval_gpu=35, memory=15, cpu=30),
    "one GPU has half the work": Machine(rules=(LoadBalancing,), gpus=2, last_gpu=45),
    "one GPU of four has two thirds of the work": Machine(rules=(LoadBalancing,), gpus=4, last_gpu=62),
}
TIMES: Mapping[
    str, tuple[tuple[type[Rule], ...], float, float]
] = {  # rules, seconds to the first step, pause in the middle
    "healthy: starts and goes on": ((), 90.0, 0.0),
    "healthy: pauses 10 minutes": ((), 90.0, 600.0),
    "25 minutes to the first step": ((MaxInitializationTime,), 1500.0, 0.0),
    "stalls for 40 minutes": ((StalledTraining,), 90.0, 2400.0),
}


@dataclass(frozen=True)
class Second:
    """What a machine does in one second: the phase, the epoch, and the GPU's level."""

    phase: str  # start, train, eval, pause
    epoch: int
    gpu: float


def seconds_of(machine: Machine) -> Iterator[Second]:
    """The job, second by second."""
    yield from (Second("start", 1, 0.0) for _ in range(machine.start_s))
    for epoch in range(1, machine.epochs + 1):
        yield from (Second("pause", epoch, 1.0) for _ in range(machine.restart_s))
        usual = machine.gpu if epoch > 1 or machine.first_gpu is None else machine.first_gpu
        for second in range(machine.epoch_s):
            warming_up = epoch == 1 and second < WARM_UP_S
            yield Second("train", epoch, usual * (second + 1) / WARM_UP_S if warming_up else usual)
        yield from (Second("eval", epoch, machine.eval_gpu) for _ in range(machine.eval_s))
        yield from (Second("pause", epoch, 1.0) for _ in range(machine.checkpoint_s))


def record(machine: Machine, seed: int) -> Recording:
    """The recording of one job."""
    rng = np.random.default_rng(seed)
    seconds = list(seconds_of(machine))
    count = len(seconds)
    training = np.array([each.phase == "train" for each in seconds])
    working = np.array([each.phase in ("train", "eval") for each in seconds])
    starved = training & (rng.random(count) < machine.starved)
    levels = np.tile([each.gpu for each in seconds], (machine.gpus, 1))
    if machine.last_gpu is not None:
        levels[-1] *= machine.last_gpu / machine.gpu
    noise = np.stack([drift(rng, count, machine.spread) for _ in range(machine.gpus)])
    dips = np.where(rng.random((machine.gpus, count)) < 0.01, rng.uniform(0.2, 0.8, (machine.gpus, count)), 1.0)
    gpu = np.where(working, (levels + noise) * dips, rng.uniform(0, 2, (machine.gpus, count)))
    gpu = np.where(starved, rng.uniform(0, 4, (machine.gpus, count)), gpu).clip(0, 100)
    cpu = (np.where(working, machine.cpu, 35) + drift(rng, count, 3 if machine.cpu > 90 else 10)).clip(0, 100)
    waiting = starved if machine.starved else training & (np.array([each.epoch for each in seconds]) == 1)
    iowait = np.where(waiting, machine.iowait, min(machine.iowait, 2)) + rng.normal(0, machine.iowait / 8, count)
    memory = memory_in_use(machine, seconds) + rng.normal(0, 0.3, (machine.gpus, count))
    records: list[Record] = []
    times = BEGIN + np.arange(count) + rng.uniform(0, 0.05, count)
    for index in np.flatnonzero(rng.random(count) >= MISSING):
        now = float(times[index])
        for each in range(machine.gpus):
            records.append(_sample("gpu", f"gpu{each}", "GPUUtilization", gpu[each, index], now))
            records.append(_sample("gpu", f"gpu{each}", "GPUMemoryUtilization", memory[each, index], now))
        records.append(_sample("cpu", "cpu", "I/OWaitPercentage", max(0.0, iowait[index]), now))
        for core in range(CORES):
            records.append(_sample("cpu", f"cpu{core}", "CPUUtilization", cpu[index] * (0.7 if core else 1.0), now))
    records += steps_of(seconds, rng)
    gpus = ["made up"] * machine.gpus
    return Recording(job_facts(machine.epoch_s * STEPS_A_SECOND, gpus), in_order(records))


def drift(rng: np.random.Generator, count: int, spread: float) -> Floats:
    """(count,) noise of that standard deviation, three quarters of which is carried from second to second."""
    noise = rng.normal(0, spread * np.sqrt(1 - 0.75**2), count)
    for index in range(1, count):
        noise[index] += 0.75 * noise[index - 1]
    return noise


def memory_in_use(machine: Machine, seconds: list[Second]) -> Floats:
    """(seconds,) percent: it fills in the start and the warm-up, steps up at the first validation, and leaks."""
    phases = [each.phase for each in seconds]
    first_step, first_eval = phases.index("train"), phases.index("eval")
    at = np.arange(len(seconds))
    filled = np.clip((at - first_step + 1) / WARM_UP_S, 0.03, 1)
    leak = machine.leak * np.clip((at - first_step) / (len(seconds) - first_step), 0, 1)
    return machine.memory * filled + machine.eval_memory * (at >= first_eval) + leak


def steps_of(seconds: list[Second], rng: np.random.Generator) -> Iterator[StepRecord]:
    """STEPS_A_SECOND steps in each second of training or validation."""
    counts: dict[Mode, int] = {"train": 0, "eval": 0}
    for index, second in enumerate(seconds):
        mode: Mode | None = {"train": "train", "eval": "eval"}.get(second.phase)  # type: ignore[assignment]
        if mode is None:
            continue
        for part in range(1, STEPS_A_SECOND + 1):
            seconds_taken = float(rng.lognormal(0, 0.05)) / STEPS_A_SECOND
            yield _step(mode, counts[mode], second.epoch, BEGIN + index + part / STEPS_A_SECOND, seconds_taken)
            counts[mode] += 1


def timed(start_s: float, pause_s: float) -> Recording:
    """Only steps, for five minutes, with a pause in the middle."""
    count = 300 * STEPS_A_SECOND
    times = BEGIN + start_s + np.arange(count) / STEPS_A_SECOND + pause_s * (np.arange(count) > count // 2)
    records = [_step("train", step, 1, float(now), 1 / STEPS_A_SECOND) for step, now in enumerate(times)]
    return Recording(job_facts(count, []), records)


def job_facts(steps_per_epoch: int, gpus: list[str]) -> JobFacts:
    """What such a job says of itself."""
    config = {"batch_size": 32, "lr": 0.01}
    return JobFacts(config=config, started=BEGIN, cores=CORES, gpus=gpus, workers=2, steps_per_epoch=steps_per_epoch)


def _step(mode: Mode, step: int, epoch: int, now: float, seconds: float) -> StepRecord:
    return StepRecord(step=step, epoch=epoch, mode=mode, time=now, seconds=seconds, images=32, loss=1.0, clean_loss=1.0)


def _sample(kind: str, name: str, dimension: str, value: float, now: float) -> SystemSample:
    return SystemSample(type=kind, name=name, dimension=dimension, value=float(value), node="algo-1", time=now)
