"""Made-up recordings of machines, sick and healthy, for the rules that need a GPU, a stalled job or hours of time.

Nothing here was measured: values are drawn around levels that real machines have. What it proves is that the rules
compute what their docstrings say, with noise on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from image_classifier.debugging.rundata import Floats, RunData
from image_classifier.debugging.schema import JobFacts, StepRecord, SystemSample

SECONDS = 300
CORES = 8
START = 1_000_000_000.0

Levels = dict[str, Floats]  # gpu, memory, cpu, iowait: (SECONDS,) or (GPUs, SECONDS) percent


def around(rng: np.random.Generator, level: float, spread: float, gpus: int = 1) -> Floats:
    """(gpus, SECONDS) percents around a level."""
    return np.clip(rng.normal(level, spread, (gpus, SECONDS)), 0, 100)


def busy(rng: np.random.Generator, gpus: int = 1) -> Levels:
    """A machine whose GPUs have work all the time."""
    return {
        "gpu": around(rng, 93, 4, gpus),
        "memory": around(rng, 62, 0.5, gpus),
        "cpu": around(rng, 45, 15),
        "iowait": around(rng, 2, 2),
    }


def starved(rng: np.random.Generator, **others: Floats) -> Levels:
    """GPUs idle for about seven seconds in ten."""
    idle = rng.random((1, SECONDS)) < 0.7
    return {**busy(rng), "gpu": np.where(idle, around(rng, 2, 1), around(rng, 90, 5)), **others}


def ramp(rng: np.random.Generator) -> Levels:
    """GPU memory fills up."""
    return {**busy(rng), "memory": np.clip(np.linspace(40, 75, SECONDS) + around(rng, 1, 1), 0, 100)}


def step_up(rng: np.random.Generator) -> Levels:
    """GPU memory rises once, when the first validation comes: healthy."""
    return {**busy(rng), "memory": np.where(np.arange(SECONDS) < 50, 45.0, 62.0) + around(rng, 1, 0.5)}


def uneven(rng: np.random.Generator) -> Levels:
    """The second of two GPUs has half the work."""
    levels = busy(rng, 2)
    levels["gpu"][1] = around(rng, 45, 8)[0]
    return levels


def small(rng: np.random.Generator) -> Levels:
    """Nothing has much to do."""
    return {
        "gpu": around(rng, 35, 8),
        "memory": around(rng, 15, 0.5),
        "cpu": around(rng, 25, 8),
        "iowait": around(rng, 1, 1),
    }


LEVELS: Mapping[str, tuple[tuple[str, ...], Callable[[np.random.Generator], Levels]]] = {
    "healthy: busy GPU": ((), busy),
    "healthy: two busy GPUs": ((), lambda rng: busy(rng, 2)),
    "healthy: memory rises once": ((), step_up),
    "GPU at 40 %": (("LowGPUUtilization",), lambda rng: {**busy(rng), "gpu": around(rng, 40, 10)}),
    "GPU starved by a busy core": (
        ("CPUBottleneck", "LowGPUUtilization"),
        lambda rng: starved(rng, cpu=around(rng, 97, 1)),
    ),
    "GPU starved by the disk": (
        ("IOBottleneck", "LowGPUUtilization"),
        lambda rng: starved(rng, iowait=around(rng, 75, 8)),
    ),
    "GPU memory fills up": (("GPUMemoryIncrease",), ramp),
    "small batch on a large machine": (("BatchSize",), small),
    "one GPU has half the work": (("LoadBalancing",), uneven),
}
TIMES: Mapping[str, tuple[tuple[str, ...], float, float]] = {  # rules, seconds to the first step, pause in the middle
    "healthy: starts and goes on": ((), 90.0, 0.0),
    "healthy: pauses 10 minutes": ((), 90.0, 600.0),
    "25 minutes to the first step": (("MaxInitializationTime",), 1500.0, 0.0),
    "stalls for 40 minutes": (("StalledTraining",), 90.0, 2400.0),
}


def machine_run(levels: Levels) -> RunData:
    """The recording: a sample and three steps a second."""
    run = timed_run(start_s=30.0, pause_s=0.0)
    for second in range(SECONDS):
        for dimension, values in (("GPUUtilization", levels["gpu"]), ("GPUMemoryUtilization", levels["memory"])):
            for gpu, row in enumerate(values):
                run.add_system(_sample("gpu", f"gpu{gpu}", dimension, row[second], second))
        run.add_system(_sample("cpu", "cpu", "I/OWaitPercentage", levels["iowait"][0, second], second))
        for core in range(CORES):
            value = levels["cpu"][0, second] * (1.0 if core == 0 else 0.7)
            run.add_system(_sample("cpu", f"cpu{core}", "CPUUtilization", value, second))
    return run


def timed_run(start_s: float, pause_s: float) -> RunData:
    """Only steps: three a second, for SECONDS seconds."""
    config = {"batch_size": 32, "workers": 2, "lr": 0.01}
    run = RunData(JobFacts(config=config, started=START - start_s, cores=CORES, gpus=["made up"]))
    for step in range(3 * SECONDS):
        late = pause_s if step > SECONDS else 0.0
        run.add_step(
            StepRecord(
                step=step,
                epoch=1,
                mode="train",
                time=START + step / 3 + late,
                seconds=1 / 3,
                images=32,
                loss=1.0,
                clean_loss=1.0,
            )
        )
    return run


def _sample(kind: str, name: str, dimension: str, value: float, second: int) -> SystemSample:
    return SystemSample(
        type=kind, name=name, dimension=dimension, value=float(value), node="algo-1", time=START + second
    )
