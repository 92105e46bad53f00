"""Job and tuning folders as the trainer and the launcher leave them, made up from a seed in a second.

What is learned and what is confused follows simple curves; the formats are written by the schema itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import (
    BAD_IMAGES,
    BEST,
    CONFUSION,
    HISTORY,
    JOB,
    PER_CLASS,
    RESULT,
    RULES,
    SETUP,
    STATISTICS,
    STEPS,
    SYSTEM_FOLDER,
    TEST_PREDICTIONS,
    TRIALS,
    TRIALS_END,
    TRIALS_FOLDER,
)  # fmt: skip
from image_classifier.debugging.schema import (
    PHASES,
    Evidence,
    JobFacts,
    Mode,
    RuleResult,
    StatisticsRecord,
    StepRecord,
    SystemSample,
    Verdict,
    of_rank,
    rule_results_to_json,
    to_json,
)
from image_classifier.vision import network

CLASSES = ("aster", "bluebell", "crocus", "daffodil", "foxglove", "iris", "lily", "poppy", "rose", "tulip")
HOSTILE = "<script>alert(1)</script>"
DIVERGED = "the training loss became nan in epoch 1, by step 10: the training has diverged"
CONFIG = TrainConfig(weights="none", epochs=12, batch_size=16, image_size=64, lr=0.02, augment="light")
STARTED = 1_790_000_000.0
STEPS_PER_EPOCH = 40
STEP_S = 0.31
LAST_WAITS_S = 0.12  # longer than the others, the last of several processes, for its data


def make_job(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    epochs: int = CONFIG.epochs,
    test_per_class: int = 12,
    processes: int = 1,
) -> Path:
    """A finished job with everything a report can show; two of the classes are often confused.

    Of several processes, each on a host of its own, the last one waits longest for its data.
    """
    data = folder / "output" / "data"
    data.mkdir(parents=True)
    random = np.random.default_rng(7)
    predictions = _write_images(folder / "input" / "data", classes, test_per_class, random)
    history = _write_history(data, epochs)
    _write_answers(data, classes, predictions)
    steps = _steps(epochs, random)
    if processes > 1:
        steps = [_of_process(step, LAST_WAITS_S) for step in steps]
    write_lines(data / STEPS.name, steps)
    for rank in range(1, processes):
        late = 0.0 if rank == processes - 1 else LAST_WAITS_S
        own = [_of_process(step, late) for step in _steps(epochs, random) if step.mode == "train"]
        write_lines(data / of_rank(STEPS.name, rank), own)
    write_lines(data / STATISTICS.name, _statistics(epochs, random))
    (data / RULES.name).write_text(rule_results_to_json(_rules()), encoding="utf-8")
    for host in range(1, processes + 1):
        _write_system(folder / "output", steps, random, node=f"algo-{host}", idle=25.0 * (host - 1))
    hits = sum(label == predicted for _, label, predicted, _ in predictions)
    best = max(range(epochs), key=lambda i: history[i]["validation:accuracy"])
    test = {"test:loss": 0.52, "test:accuracy": hits / len(predictions), "test:top5_accuracy": 0.98}
    images = {"train": 60 * len(classes), "valid": 12 * len(classes), "test": len(predictions)}
    RESULT.write(data, {
        "best_epoch": best + 1, "epochs": epochs,
        "metrics": {name: value for name, value in history[best].items() if ":" in name} | test,
        "classes": len(classes), "images": images,
        "answered": _answered(len(classes), images), "unreadable_images": 1, "seconds": steps[-1].time - STARTED + 4,
        "device": "NVIDIA H200", "bf16": True,
    })  # fmt: skip
    config = {name: getattr(CONFIG, name) for name in CONFIG.to_hyperparameters()}
    facts = JobFacts(
        config=config,
        classes=list(classes),
        images=images,
        steps_per_epoch=STEPS_PER_EPOCH,
        started=STARTED,
        cores=8,
        gpus=["NVIDIA H200"],
        environment={"python": "3.11.2", "torch": "2.14.1", "platform": "Linux x86_64", "host": "algo-1"},
    )
    (data / SETUP.name).write_text(to_json(facts), encoding="utf-8")
    unreadable = "/opt/ml/input/data/train/iris/0007.jpg"
    BAD_IMAGES.write(data, {unreadable: f"{unreadable} is truncated"})
    return folder


def make_tuning(folder: Path, *, trials: int = 16) -> Path:
    """A finished search over learning rate, batch size and optimiser, with pruned and failed trials."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    rows: list[list[Any]] = []
    for number in range(1, trials + 1):
        lr, batch = 10 ** random.uniform(-3, -1), int(random.choice([16, 32, 64, 128]))
        optimizer = str(random.choice(["sgd", "adamw"]))
        peak = 0.93 - 0.18 * (math.log10(lr) + 1.9) ** 2 - 0.03 * math.log2(batch / 16) / 3 + random.normal(0, 0.01)
        status = "Failed" if number == 5 else "Pruned" if peak < 0.8 else "Completed"
        epochs = {"Failed": 0, "Pruned": 3, "Completed": 8}[status]
        curve = [peak * (1 - math.exp(-(epoch + 1) / 2.2)) + random.normal(0, 0.008) for epoch in range(epochs)]
        value = f"{max(curve)!r}" if curve else ""
        best_epoch = curve.index(max(curve)) + 1 if curve else ""
        failure = (
            "the training loss became nan in epoch 1, by step 10: the training has diverged" if number == 5 else ""
        )
        end = [best_epoch, epochs, f"{epochs * 9.2:.1f}", failure, f"{TRIALS_FOLDER}/{number:03}"]
        rows.append([number, status, repr(float(f"{lr:.6g}")), batch, optimizer, value, *end])
        if curve:
            data = folder / TRIALS_FOLDER / f"{number:03}" / "output" / "data"
            data.mkdir(parents=True)
            HISTORY.write(data, [{"epoch": i, "validation:accuracy": v} for i, v in enumerate(curve, 1)])
    TRIALS.write(folder, rows, further=["lr", "batch_size", "optimizer", "validation:accuracy", *TRIALS_END])
    best = max((row for row in rows if row[1] == "Completed"), key=lambda row: float(row[5]))
    found = {"lr": best[2], "batch_size": str(best[3]), "optimizer": best[4]}
    BEST.write(folder, {
        "hyperparameters": found, "objective": "validation:accuracy", "value": float(best[5]), "epoch": best[6],
        "trial": best[0],
    })  # fmt: skip
    JOB.write(folder, {"kind": "tune", "config": CONFIG.to_hyperparameters()})
    return folder


def _write_images(
    root: Path, classes: Sequence[str], test_per_class: int, random: np.random.Generator
) -> list[tuple[str, str, str, float]]:
    """Pictures of every split, and what the network is said to answer to those of test."""
    predictions = []
    for split, images in (("train", 2), ("valid", 1), ("test", test_per_class)):
        for label, name in enumerate(classes):
            place = root / split / name.replace("/", "_")
            place.mkdir(parents=True)
            for index in range(images):
                path = place / f"{index:04}.jpg"
                _picture(label, random).save(path, quality=80)
                if split == "test":
                    wrong = random.random() < (0.4 if label == 1 else 0.12)
                    other = 2 if label == 1 and random.random() < 0.8 else int(random.integers(len(classes)))
                    predicted = classes[other % len(classes)] if wrong else name
                    predictions.append(
                        (f"{place.name}/{path.name}", name, predicted, float(random.uniform(0.4, 0.999)))
                    )
    return predictions


def _picture(label: int, random: np.random.Generator) -> Image.Image:
    """96 x 72 pixels: a soft disc of the class's hue on a dim ground."""
    y, x = np.mgrid[0:72, 0:96]
    distance = np.hypot(x - 48 + random.normal(0, 8), y - 36 + random.normal(0, 6))
    disc = np.clip((26 - distance + 5 * np.cos((label + 3) * np.arctan2(y - 36, x - 48))) / 6, 0, 1)[..., None]
    hue = np.array([127 + 120 * math.cos(label), 127 + 120 * math.cos(label + 2.1), 127 + 120 * math.cos(label + 4.2)])
    pixels = disc * hue + (1 - disc) * np.array([60, 90, 70]) + random.normal(0, 12, (72, 96, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _answered(num_classes: int, images: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What guessing gets where all classes have equally many images."""
    return {
        split: {
            "images": images[split],
            "largest_class": images[split] // num_classes,
            "largest_five": images[split] // num_classes * min(5, num_classes),
        }
        for split in ("valid", "test")
    }


def _write_history(data: Path, epochs: int) -> list[dict[str, float]]:
    history = []
    for epoch in range(1, epochs + 1):
        learned = 1 - math.exp(-epoch / 3.5)
        history.append(
            {
                "epoch": epoch,
                "train:loss": 2.3 - 1.9 * learned,
                "train:accuracy": 0.1 + 0.87 * learned,
                "train:images_per_second": 51.0,
                "validation:loss": 2.3 - 1.75 * learned + 0.03 * max(0, epoch - 9),
                "validation:accuracy": 0.1 + 0.74 * learned - 0.004 * abs(epoch - 10),
                "validation:top5_accuracy": 0.5 + 0.48 * learned,
                "seconds": STEPS_PER_EPOCH * STEP_S,
            }
        )
    HISTORY.write(data, history)
    return history


def _write_answers(data: Path, classes: Sequence[str], predictions: Sequence[tuple[str, str, str, float]]) -> None:
    counts = [[sum((label, said) == (t, o) for _, label, said, _ in predictions) for o in classes] for t in classes]
    CONFUSION.write(data, [[name, *row] for name, row in zip(classes, counts, strict=True)], further=classes)
    rows = []
    for i, name in enumerate(classes):
        images, answered = sum(counts[i]), sum(row[i] for row in counts)
        recall, precision = counts[i][i] / max(images, 1), counts[i][i] / max(answered, 1)
        f1 = 2 * counts[i][i] / max(images + answered, 1)
        rows.append([name, images, f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}"])
    PER_CLASS.write(data, rows)
    TEST_PREDICTIONS.write(data, [[*row[:3], f"{row[3]:.6f}"] for row in predictions])


def _steps(epochs: int, random: np.random.Generator) -> list[StepRecord]:
    steps, now, evaluations = [], STARTED + 6, 0
    for step in range(epochs * STEPS_PER_EPOCH):
        wait = 2.4 if step == 0 else abs(random.normal(0.17, 0.03)) + (0.5 if step % 97 == 0 else 0)
        alone = [phase for phase in PHASES if phase != "sync_s"]
        phases = dict(zip(alone, (wait, 0.004, 0.041, 0.079, 0.008, 0.0006), strict=True))
        seconds = sum(phases.values()) + 0.006
        now += seconds
        loss = 2.25 * math.exp(-step / 140) + 0.25 + random.normal(0, 0.12)
        epoch = step // STEPS_PER_EPOCH + 1
        steps.append(
            StepRecord(
                step=step, epoch=epoch, mode="train", time=now, seconds=seconds, images=16, loss=loss + 0.2,
                clean_loss=loss, **phases,
            )
        )  # fmt: skip
        if (step + 1) % STEPS_PER_EPOCH == 0:
            for _ in range(8):
                now += 0.2
                steps.append(_evaluated(evaluations, epoch, "eval", now, loss))
                evaluations += 1
    for step in range(8):
        now += 0.2
        steps.append(_evaluated(step, epochs, "test", now, 0.5))
    return steps


def _evaluated(step: int, epoch: int, mode: Mode, time: float, loss: float) -> StepRecord:
    return StepRecord(step=step, epoch=epoch, mode=mode, time=time, seconds=0.2, images=15, loss=loss, clean_loss=loss)


def _statistics(epochs: int, random: np.random.Generator) -> list[StatisticsRecord]:
    names, records = network.layers(), []
    for step in range(0, epochs * STEPS_PER_EPOCH, 10):
        gradients, weights, activations = {}, {}, {}
        for depth, name in enumerate(names):
            size = 1e-3 * math.exp(-step / 300 - 0.05 * depth) * random.lognormal(0, 0.3)
            gradients[f"{name}.weight"] = {"abs_mean": size, "l2": size * 300, "abs_max": size * 20}
            ratio = 4e-3 * math.exp(-step / 400) * random.lognormal(0, 0.2) * (4 if name == network.HEAD else 1)
            norm = 10 + depth * 0.3 + step / 300
            weights[f"{name}.weight"] = {"abs_mean": 0.02, "l2": norm, "abs_max": 0.4, "update_ratio": ratio}
            if name.endswith("conv3"):
                dead = 0.0 if step < 60 else 0.01 * depth * random.random()
                seen = {"input_std": 1.0, "abs_max": 6.0, "zero_share": 0.5, "dead_share": dead}
                activations[f"{name[:-5]}relu_output_2"] = seen
        records.append(StatisticsRecord(step=step, gradients=gradients, weights=weights, activations=activations))
    return records


def _rules() -> list[RuleResult]:
    wait = tuple(Evidence(step=97 * i, name="data_wait share", value=0.55 + 0.01 * i) for i in range(1, 5))
    fine, issues, unknown = Verdict.NO_ISSUES, Verdict.ISSUES, Verdict.INSUFFICIENT_DATA
    return [
        RuleResult(rule="VanishingGradient", verdict=fine, severity="critical", datapoints=2400,
                   summary="The smallest gradient, 2.1e-05, is far above 1e-07.", parameters={"threshold": 1e-7}),
        RuleResult(rule="LossNotDecreasing", verdict=fine, severity="critical", datapoints=480,
                   summary="The 50-step mean fell from 2.1 to 0.31.", parameters={"window": 50}),
        RuleResult(rule="Dataloader", verdict=issues, severity="warning", datapoints=480,
                   summary="Data wait is 56 % of the step.", advice="Set workers=8, or store the images smaller.",
                   evidence=wait, parameters={"share": 0.3}),
        RuleResult(rule="Overfit", verdict=issues, severity="warning", datapoints=12,
                   summary="Validation loss is 34 % above training loss in epoch 12.",
                   advice="Use augment=standard, or raise weight_decay.", parameters={"ratio": 0.1, "patience": 3},
                   evidence=(Evidence(step=479, name="valid / train loss - 1", value=0.34),)),
        RuleResult(rule="LowGPUUtilization", verdict=unknown, severity="warning", datapoints=160,
                   summary="The job was shorter than the window of 500 s."),
        RuleResult(rule="OverallSystemUsage", verdict=fine, severity="info", datapoints=320,
                   summary="CPU 61 %, GPU 43 % on average.",
                   evidence=(Evidence(step=None, name="CPUUtilization mean", value=61.0),)),
    ]  # fmt: skip


def _of_process(step: StepRecord, waits_s: float) -> StepRecord:
    """The step of a process that has its data earlier by `waits_s` than the last one, and waits for that."""
    if step.mode != "train":
        return step
    if not waits_s:
        return replace(
            step, data_wait_s=(step.data_wait_s or 0) + LAST_WAITS_S, sync_s=0.001, seconds=step.seconds + LAST_WAITS_S
        )
    return replace(step, sync_s=waits_s, seconds=step.seconds + waits_s)


def _write_system(
    output: Path, steps: Sequence[StepRecord], random: np.random.Generator, *, node: str = "algo-1", idle: float = 0.0
) -> None:
    """`idle`: percent by which CPU and GPU are less busy."""
    place = output / SYSTEM_FOLDER / "2026092112"
    place.mkdir(parents=True, exist_ok=True)
    lines, now = [], STARTED
    while now < steps[-1].time + 3:
        busy = 0.0 if now < STARTED + 6 else 1.0
        for kind, name, dimension, value in (
            *(
                ("cpu", f"cpu{core}", "CPUUtilization", 10 + busy * (55 + 10 * math.sin(now / 9)) + random.normal(0, 6))
                for core in range(8)
            ),
            ("cpu", "cpu", "I/OWaitPercentage", abs(random.normal(2, 1.5))),
            ("memory", "memory", "MemoryUsedPercent", 20 + busy * 12 + (now - STARTED) / 60),
            ("memory", "process", "ProcessMemoryBytes", 3.2e9),
            ("disk", "disk", "DiskReadBytesPerSecond", busy * 21e6),
            ("gpu", "gpu0", "GPUUtilization", busy * (43 + 20 * random.random())),
            ("gpu", "gpu0", "GPUMemoryUtilization", busy * 31.0),
            ("gpu", "gpu0", "GPUPowerWatts", 120 + busy * 180),
        ):
            shown = float(value)
            if "Utilization" in dimension:
                shown = min(max(shown * (1 - idle / 100), 0.0), 100.0)
            sample = SystemSample(type=kind, name=name, dimension=dimension, value=shown, node=node, time=now)
            lines.append(sample.to_line())
        now += 1.0
    (place / f"29833333.{node}.json").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_lines(path: Path, records: Sequence[StepRecord | StatisticsRecord]) -> None:
    """One JSON object a line, as the recorder writes them."""
    path.write_text("".join(to_json(record) + "\n" for record in records), encoding="utf-8")
