"""A sick and a healthy run for every rule, made up by hand: one line for each, keyed by the rule's class.

What real trainings make the rules say is in benchmarks/rule_cases.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.rule_replay import Recording, play
from benchmarks.system_runs import MACHINES, record, timed

from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.batches import (
    ConstantOutput,
    HeavyDropout,
    LabelsOutside,
    NormMode,
    ShortTraining,
)
from image_classifier.debugging.rules.before_start import (
    AugmentedInputs,
    FrozenUntrained,
    GradientReach,
    InitialLoss,
    InputsForWeights,
    ModesAgree,
    OneBatch,
)
from image_classifier.debugging.rules.classes import (
    CheckInputImages,
    ClassImbalance,
    LabelsPermuted,
    NoBetterThanGuessing,
)
from image_classifier.debugging.rules.dynamics import (
    OscillatingLoss,
    Plateau,
    Regulariser,
    RepeatedOrder,
    ReplicasDrift,
)
from image_classifier.debugging.rules.framework import MaxInitializationTime, StepOutlier
from image_classifier.debugging.rules.heads import LossForm, NoActivation, WrongHead
from image_classifier.debugging.rules.losses import ExplodingTensor, LossNotDecreasing, StartsAnew
from image_classifier.debugging.rules.optimizers import DecayedNorms, LearningRate, LeftOutParameters, StaleGradient
from image_classifier.debugging.rules.overall import OverallFrameworkMetrics, OverallSystemUsage
from image_classifier.debugging.rules.overfitting import Overfit, Overtraining
from image_classifier.debugging.rules.system import (
    BatchSize,
    CPUBottleneck,
    GPUMemoryIncrease,
    IOBottleneck,
    LoadBalancing,
    LowGPUUtilization,
)
from image_classifier.debugging.rules.tensors import (
    AllZero,
    DeadRelu,
    PoorWeightInitialization,
    UnchangedTensor,
    VanishingGradient,
)
from image_classifier.debugging.rules.waiting import Dataloader, StalledTraining
from image_classifier.debugging.rules.weights import WeightUpdateRatio
from image_classifier.debugging.rundata import Floats, RunData
from image_classifier.debugging.schema import ClassCounts, JobFacts, StatisticsRecord, StepRecord

Counts = tuple[int, ...]
CONFIG = {"lr": 0.01, "warmup_epochs": 0.0, "workers": 0, "batch_size": 32, "epochs": 8, "image_size": 224}


def run_with(losses: list[float], evals: list[float] | None = None, *, per_epoch: int = 20, epochs: int = 8) -> RunData:
    """Training losses step by step, and one validation loss an epoch, of so many planned epochs."""
    run = RunData(JobFacts(config=CONFIG | {"epochs": epochs}, steps_per_epoch=per_epoch))
    for mode, values, size in (("train", losses, per_epoch), ("eval", evals or [], 1)):
        for step, loss in enumerate(values):
            run.add_step(
                StepRecord(
                    step=step,
                    epoch=step // size + 1,
                    mode=mode,  # type: ignore[arg-type]
                    time=1000.0 + step,
                    seconds=1.0,
                    images=32,
                    loss=loss,
                    clean_loss=loss,
                )
            )
    return run


def noise(count: int, spread: float = 0.15) -> Floats:
    """What single batches add to a loss, the same each time."""
    return np.random.default_rng(0).normal(0, spread, count)


def classes_of(labels: Counts, *, valid: Sequence[tuple[Counts, Counts]] = ()) -> RunData:
    """A run of 8 planned epochs with those training labels in the first, and labels and hits of validations."""
    run = RunData(JobFacts(config=CONFIG))
    run.add_classes(ClassCounts(mode="train", step=9, epoch=1, labels=labels, hits=(0,) * len(labels)))
    for epoch, (images, hits) in enumerate(valid, start=1):
        run.add_classes(ClassCounts(mode="eval", step=epoch, epoch=epoch, labels=images, hits=hits))
    return run


def timed_steps(seconds: Sequence[float], *, data_wait_s: float = 0.0) -> RunData:
    """Training steps that take so long, each with the same wait for data."""
    run = RunData(JobFacts(config=CONFIG))
    now = 1000.0
    for step, each in enumerate(seconds):
        now += each
        values = {"seconds": each, "loss": 1.0, "clean_loss": 1.0, "data_wait_s": data_wait_s}
        run.add_step(StepRecord(step=step, epoch=1, mode="train", time=now, images=32, **values))
    return run


def recorded(kind: str, **layers: Sequence[Mapping[str, float]]) -> RunData:
    """Statistics of `kind` (a field of StatisticsRecord) by layer, every tenth step."""
    run = RunData(JobFacts(config=CONFIG))
    for index, values in enumerate(zip(*layers.values(), strict=True)):
        by_layer = {name: dict(each) for name, each in zip(layers, values, strict=True)}
        run.add_statistics(StatisticsRecord(step=10 * index, **{kind: by_layer}))
    return run


def batches(**parts: Mapping[str, float]) -> RunData:
    """What was made of ten batches of four classes; a part that is given changes what is healthy."""
    healthy_parts: dict[str, dict[str, float]] = {
        "outputs": {"min": -2.0, "max": 3.0, "spread": 0.5, "images": 16.0, "columns": 4.0},
        "labels": {"min": 0.0, "max": 3.0, "distinct": 4.0},
        "row_sums": {"min": -1.0, "max": 2.0},
        "fit": {"as_logits": 0.0, "as_probabilities": 2.0},
        "norms": {"count": 0.0, "evaluating": 0.0, "moving": 0.0},
    }
    named = {name: healthy_parts.get(name, {}) | dict(parts.get(name, {})) for name in {**healthy_parts, **parts}}
    run = recorded("batch", **{name: always(**part) for name, part in named.items()})
    for step in range(100):
        values = {"seconds": 1.0, "loss": 1.0, "clean_loss": 1.0}
        run.add_step(StepRecord(step=step, epoch=1, mode="train", time=1000.0 + step, images=16, **values))
    return run


def paired(**distances: float) -> RunData:
    """Ten batches of numbers; how far the loss lies from each form of it."""
    far = dict.fromkeys(("squared", "absolute", "huber", "logistic", "shares", "negated", "crossed"), 0.9)
    return batches(pairs={**far, "low": -2.0, "high": 2.0, "spread": 1.0, "explained": 0.1, **distances})


LOOKED: Mapping[str, Any] = {
    "initial": {"loss": 1.4, "cross_entropy": 1.4, "columns": 4},
    "one_batch": {"first": 1.4, "best": 0.5, "steps": 4, "rate": 0.001, "distinct": 4},
    "gradients": {"trained": 5, "unreached": []},
    "augmentation": {"shift": 0.1, "stretch": 0.9},
    "modes": {"difference": 1e-6, "norms": 4, "several": 0},
    "inputs": {"as_given": 0.4, "reversed": 0.5},
    "frozen": {"looked_at": 20, "fresh": []},
}


def penalised(excess: float) -> RunData:
    """A run of four classes whose loss is that much above the cross entropy."""
    run = RunData(JobFacts(config=CONFIG, classes=list("abcd"), steps_per_epoch=20))
    for step, loss in enumerate(1.4 + noise(160)):
        values = {"seconds": 1.0, "loss": float(loss) + excess, "clean_loss": float(loss)}
        run.add_step(StepRecord(step=step, epoch=step // 20 + 1, mode="train", time=1000.0 + step, images=32, **values))
    return run


def replicas(*differing: int) -> RunData:
    """The epochs of two processes, of which so many had other weights than the first."""
    return RunData(JobFacts(config=CONFIG, world_size=2, replicas=list(differing)))


def named(valid_hits: int) -> RunData:
    """A run whose training images are nearly all right, and of 80 validation images so many."""
    run = RunData(JobFacts(config=CONFIG))
    for epoch in range(1, 9):
        run.add_classes(ClassCounts(mode="train", step=epoch, epoch=epoch, labels=(50,) * 4, hits=(48,) * 4))
        hits = (valid_hits, 0, 0, 0)
        run.add_classes(ClassCounts(mode="eval", step=epoch, epoch=epoch, labels=(20,) * 4, hits=hits))
    return run


ORDER = noise(20)


def looked(**parts: Mapping[str, Any]) -> RunData:
    """A run before its first step; a part that is given changes what the preflight found."""
    found = {name: {**part, **parts.get(name, {})} for name, part in LOOKED.items()}
    return RunData(JobFacts(config=CONFIG, preflight=found))


def answered(hits: Counts) -> RunData:
    """A run of 8 epochs with ten training images of each of four classes, of which so many are right."""
    run = RunData(JobFacts(config=CONFIG))
    for epoch in range(1, 9):
        run.add_classes(ClassCounts(mode="train", step=epoch, epoch=epoch, labels=(10,) * 4, hits=hits))
    return run


def planned(steps: int) -> RunData:
    """The beginning of a training of so many steps in one epoch."""
    run = RunData(JobFacts(config={**CONFIG, "epochs": 1}, steps_per_epoch=steps))
    for step in range(4):
        values = {"seconds": 1.0, "loss": 1.4, "clean_loss": 1.4}
        run.add_step(StepRecord(step=step, epoch=1, mode="train", time=1000.0 + step, images=16, **values))
    return run


def always(**statistics: float) -> list[Mapping[str, float]]:
    """The same statistics of a layer at ten steps."""
    return [statistics] * 10


def falling(**statistics: float) -> list[Mapping[str, float]]:
    """Statistics of a layer that become smaller by a tenth, ten times."""
    return [{name: value * 0.9**index for name, value in statistics.items()} for index in range(10)]


def played(recording: Recording) -> RunData:
    """All of a recording."""
    run = RunData(recording.job)
    play(recording.records, run, ())
    return run


def machine(kind: str) -> RunData:
    """A job on one of MACHINES."""
    return played(record(MACHINES[kind], seed=1))


TENTH_OF_A_SECOND = np.full(400, 0.1)
EVERY_TWENTIETH = np.where(np.arange(400) % 20 == 19, 1.0, 0.0)
LEARNED = np.repeat(np.linspace(1.4, 0.1, 8), 20).tolist()


@dataclass(frozen=True)
class Example:
    """Two runs that differ in what the rule looks for. `sick` is None for a rule that never fires."""

    sick: Callable[[], RunData] | None
    healthy: Callable[[], RunData]


EXAMPLES: Mapping[type[Rule], Example] = {
    InitialLoss: Example(lambda: looked(initial={"cross_entropy": 40.0}), looked),
    OneBatch: Example(lambda: looked(one_batch={"best": 1.3}), looked),
    GradientReach: Example(lambda: looked(gradients={"unreached": ["conv1.weight"]}), looked),
    AugmentedInputs: Example(lambda: looked(augmentation={"shift": 3.0}), looked),
    ModesAgree: Example(lambda: looked(modes={"difference": 1.5}), looked),
    InputsForWeights: Example(lambda: looked(inputs={"as_given": 80.0}), looked),
    FrozenUntrained: Example(lambda: looked(frozen={"fresh": ["conv1.weight"] * 20}), looked),
    ExplodingTensor: Example(lambda: run_with([1.0, 2.0, math.nan]), lambda: run_with([1.0, 0.9, 0.8])),
    LossNotDecreasing: Example(
        lambda: run_with((1.4 + noise(300)).tolist()),
        lambda: run_with((1.5 * np.exp(-np.arange(300) / 150) + 0.5 + noise(300)).tolist()),
    ),
    OscillatingLoss: Example(
        lambda: run_with((1.5 + 0.7 * np.sign(np.sin(np.arange(320) / 6)) + noise(320)).tolist(), per_epoch=40),
        lambda: run_with((1.5 * np.exp(-np.arange(320) / 150) + 0.5 + noise(320)).tolist(), per_epoch=40),
    ),
    Plateau: Example(
        lambda: run_with((1.5 * np.exp(-np.arange(300) / 15) + 0.8 + noise(300)).tolist()),
        lambda: run_with((1.5 * np.exp(-np.arange(300) / 150) + 0.5 + noise(300, 0.05)).tolist()),
    ),
    Regulariser: Example(lambda: penalised(6.0), lambda: penalised(0.3)),
    RepeatedOrder: Example(
        lambda: run_with((np.tile(ORDER, 8) + 1.4 + noise(160, 0.03)).tolist()),
        lambda: run_with((1.4 + noise(160)).tolist()),
    ),
    ReplicasDrift: Example(lambda: replicas(0, 1, 1), lambda: replicas(0, 0, 0)),
    LabelsPermuted: Example(lambda: named(2), lambda: named(18)),
    HeavyDropout: Example(
        lambda: batches(norms={"dropouts": 2.0, "idle": 0.0, "heaviest": 0.98}),
        lambda: batches(norms={"dropouts": 2.0, "idle": 0.0, "heaviest": 0.5}),
    ),
    DecayedNorms: Example(lambda: batches(optimizer={"decayed": 6.0}), lambda: batches(optimizer={"decayed": 0.0})),
    VanishingGradient: Example(
        lambda: recorded("gradients", first=always(abs_mean=1e-12), last=always(abs_mean=1e-3)),
        lambda: recorded("gradients", first=always(abs_mean=1e-4), last=always(abs_mean=1e-3)),
    ),
    PoorWeightInitialization: Example(
        lambda: recorded("activations", first=always(input_std=1.0), last=always(input_std=0.01)),
        lambda: recorded("activations", first=always(input_std=1.0), last=always(input_std=0.5)),
    ),
    DeadRelu: Example(
        lambda: recorded("activations", relu=always(zero_share=0.9, dead_share=0.8)),
        lambda: recorded("activations", relu=always(zero_share=0.5, dead_share=0.1)),
    ),
    WeightUpdateRatio: Example(
        lambda: recorded("weights", fc=always(update_ratio=0.5)),
        lambda: recorded("weights", fc=always(update_ratio=1e-3)),
    ),
    UnchangedTensor: Example(
        lambda: recorded("weights", fc=always(abs_mean=1.0, l2=3.0, abs_max=2.0)),
        lambda: recorded("weights", fc=falling(abs_mean=1.0, l2=3.0, abs_max=2.0)),
    ),
    AllZero: Example(
        lambda: recorded("gradients", fc=always(abs_max=0.0)), lambda: recorded("gradients", fc=always(abs_max=0.1))
    ),
    LabelsOutside: Example(
        lambda: batches(labels={"min": 0.0, "max": 4.0, "distinct": 4.0}),
        lambda: batches(labels={"min": 0.0, "max": 3.0, "distinct": 4.0}),
    ),
    WrongHead: Example(
        lambda: batches(outputs={"min": 0.1, "max": 0.8}, row_sums={"min": 1.0, "max": 1.0}),
        lambda: batches(
            outputs={"min": 0.1, "max": 0.8},
            row_sums={"min": 1.0, "max": 1.0},
            fit={"as_logits": 0.4, "as_probabilities": 0.0},
        ),
    ),
    LossForm: Example(lambda: paired(squared=0.4, crossed=1e-6), lambda: paired(squared=1e-6, crossed=0.4)),
    NoActivation: Example(lambda: batches(network={"bend": 1e-7}), lambda: batches(network={"bend": 0.3})),
    ConstantOutput: Example(lambda: batches(outputs={"spread": 1e-9}), batches),
    NormMode: Example(
        lambda: batches(norms={"count": 6.0, "evaluating": 6.0, "moving": 0.0}),
        lambda: batches(norms={"count": 6.0, "evaluating": 0.0, "moving": 0.0}),
    ),
    LeftOutParameters: Example(
        lambda: batches(optimizer={"trained": 5.0, "strangers": 2.0, "without_gradient": 0.0}),
        lambda: batches(optimizer={"trained": 5.0, "strangers": 0.0, "without_gradient": 0.0}),
    ),
    StaleGradient: Example(lambda: batches(gradient={"stale": 0.7}), lambda: batches(gradient={"stale": 1e-7})),
    LearningRate: Example(lambda: batches(optimizer={"lr_max": 0.0}), lambda: batches(optimizer={"lr_max": 0.1})),
    NoBetterThanGuessing: Example(lambda: answered((3, 2, 3, 2)), lambda: answered((9, 8, 9, 9))),
    StartsAnew: Example(
        lambda: run_with((np.linspace(1.4, 0.4, 20).tolist()) * 8),
        lambda: run_with(np.linspace(1.4, 0.4, 160).tolist()),
    ),
    ShortTraining: Example(lambda: planned(5), lambda: planned(50)),
    Overfit: Example(
        lambda: run_with(LEARNED, [1.3, 1.0, 0.8, 0.7, 0.8, 0.9, 1.0, 1.1]),
        lambda: run_with(LEARNED, [1.3, 1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7]),
    ),
    Overtraining: Example(
        lambda: run_with([0.1] * 300, [0.2] * 15), lambda: run_with([0.1] * 300, np.linspace(0.6, 0.2, 15).tolist())
    ),
    ClassImbalance: Example(lambda: classes_of((240, 200, 8, 210)), lambda: classes_of((240, 200, 30, 210))),
    CheckInputImages: Example(
        lambda: recorded("inputs", red=always(mean=2.5, std=1.0, images=64)),
        lambda: recorded("inputs", red=always(mean=0.3, std=1.0, images=64)),
    ),
    StalledTraining: Example(lambda: played(timed(90.0, 2400.0)), lambda: played(timed(90.0, 600.0))),
    Dataloader: Example(
        lambda: timed_steps(TENTH_OF_A_SECOND.tolist(), data_wait_s=0.06),
        lambda: timed_steps(TENTH_OF_A_SECOND.tolist(), data_wait_s=0.01),
    ),
    LowGPUUtilization: Example(lambda: machine("GPU at 40 %"), lambda: machine("healthy: busy GPU")),
    CPUBottleneck: Example(lambda: machine("GPU starved by a busy core"), lambda: machine("healthy: busy GPU")),
    IOBottleneck: Example(lambda: machine("GPU starved by the disk"), lambda: machine("healthy: busy GPU")),
    GPUMemoryIncrease: Example(lambda: machine("GPU memory fills up"), lambda: machine("healthy: busy GPU")),
    BatchSize: Example(lambda: machine("small batch on a large machine"), lambda: machine("healthy: busy GPU")),
    LoadBalancing: Example(lambda: machine("one GPU has half the work"), lambda: machine("healthy: four busy GPUs")),
    StepOutlier: Example(
        lambda: timed_steps((TENTH_OF_A_SECOND + EVERY_TWENTIETH).tolist()),
        lambda: timed_steps(TENTH_OF_A_SECOND.tolist()),
    ),
    MaxInitializationTime: Example(lambda: played(timed(1500.0, 0.0)), lambda: played(timed(90.0, 0.0))),
    OverallSystemUsage: Example(None, lambda: machine("healthy: busy GPU")),
    OverallFrameworkMetrics: Example(None, lambda: timed_steps(TENTH_OF_A_SECOND.tolist())),
}
