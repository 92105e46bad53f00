"""Part (a): the trainer from its start to the model, beside the limit that the same network sets without loading."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu.jobs import TrainingJob, make_job
from benchmarks.gpu.kit import CLASSES, IMAGES, Kit, spread, synchronised

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import FEATURES_VARIABLE
from image_classifier.training.norm_trial import fuse
from image_classifier.training.optim import make_optimizer
from image_classifier.training.setup import Setup, choose_device, describe_device, use_bf16
from image_classifier.training.step_graph import SAME_SHAPE, Answer, Passes, StepGraph
from image_classifier.vision.artifact import load_model
from image_classifier.vision.model import build_model

EPOCHS = 10
BATCH = 128
GOAL_SHARE, GOAL_SECONDS, GOAL_IMAGES_A_SECOND = 0.95, 90.0, 4000.0
Compiler = Callable[[torch.nn.Module], Callable[[torch.Tensor], torch.Tensor]]
SYSTEM_RULES = ("LowGPUUtilization", "Dataloader", "CPUBottleneck", "IOBottleneck", "GPUMemoryIncrease", "BatchSize")


def run(kit: Kit) -> None:
    """The whole network first: the model that other parts use is its."""
    batch = kit.size(BATCH, 8)
    before = synthetic_limit(kit, batch)
    kit.note("synthetic_images_per_s", {"before": before})
    settings = kit.size({}, {"workers": 1, "batch_size": 4})  # with --fake, enough steps for a trace
    full = make_job(
        kit,
        "full",
        **{"epochs": kit.size(EPOCHS, 2), "batch_size": batch, "optimizer": "adamw", "lr": 0.002} | settings,
    )
    full.start()
    seconds = full.wait()
    full.require(0)
    speeds = [row["train:images_per_second"] for row in full.history]
    later = statistics.median(speeds[1:])
    kit.note(
        "full",
        {
            "seconds_from_start_to_model": seconds,
            "images_per_s_first_epoch": speeds[0],
            "images_per_s_later_epochs": spread(speeds[1:]),
            "seconds_in_steps": sum(row["seconds"] for row in full.history),
            "seconds_before_first_step": _first_step(full),
            "gpu": full.gpu_use(),
            "accuracy": {name: value for name, value in full.metrics.items() if name.endswith(":accuracy")},
            "rules": full.verdicts(*SYSTEM_RULES),
            "rules_after_8_s": full.early_verdicts(*SYSTEM_RULES),
        },
    )
    after, as_a_graph = synthetic_limit(kit, batch), synthetic_limit(kit, batch, replayed=True)
    ours = synthetic_limit(kit, batch, replayed=True, ours=True)
    torchs = max(statistics.mean([before, after]), as_a_graph)
    limit = max(torchs, ours)
    kit.note(
        "synthetic_images_per_s",
        {
            "before": before,
            "after": after,
            "as_a_graph": as_a_graph,
            "as_a_graph_with_our_kernels": ours,
            "training_over_the_fastest": later / limit,
        },
    )
    kit.claim("our step is faster than torch's own", ours > torchs, f"{ours / torchs:.2f} times")
    kit.claim(
        f"later epochs run at {GOAL_SHARE:.0%} of the synthetic limit or more",
        later >= GOAL_SHARE * limit,
        f"{later:.0f} of {limit:.0f} images/s, {later / limit:.1%}",
    )
    kit.claim(
        f"{GOAL_IMAGES_A_SECOND:.0f} images/s or more",
        later >= GOAL_IMAGES_A_SECOND,
        f"{later:.0f} images/s at {batch}",
    )
    kit.claim(
        f"{sum(IMAGES.values())} photos, {EPOCHS} epochs, from process start to model in {GOAL_SECONDS:.0f} s or less",
        seconds <= GOAL_SECONDS,
        f"{seconds:.1f} s",
    )
    complaints = full.complaints + train_head(kit, full)
    kit.note("watchers_that_failed", complaints)
    kit.claim("nothing that watches a training fails", not complaints, "; ".join(complaints) or "none did")


def train_head(kit: Kit, full: TrainingJob) -> list[str]:
    """The last layer alone, anew, on the body that was just trained; then once more on the features that were kept.
    Returns complaints."""
    found: dict[str, Any] = {}
    complaints: list[str] = []
    for name in ("first", "second"):
        job = make_job(
            kit,
            f"head-{name}",
            fine_tune="head",
            epochs=kit.size(EPOCHS, 2),
            batch_size=kit.size(BATCH, 8),
            weights=load_model(full.paths.model).weights_path,
        )
        job.environment[FEATURES_VARIABLE] = str(kit.folder / "features")
        job.start()
        seconds = job.wait()
        job.require(0)
        found[name] = {
            "seconds_from_start_to_model": seconds,
            "features": [line.partition("features of ")[2] for line in job.log.splitlines() if "features of" in line],
            "accuracy": {name: value for name, value in job.metrics.items() if name.endswith(":accuracy")},
        }
        kit.note("head", found)
        complaints += job.complaints
    return complaints


def _first_step(job: TrainingJob) -> float:
    """Seconds from the start of the process, as the rules count it, to the end of the first step."""
    run = job.run
    return float(run.times("train").values.min() - run.job.started)


def synthetic_limit(
    kit: Kit, batch: int, *, replayed: bool = False, ours: bool = False, compiler: Compiler | None = None
) -> float:
    """Images a second of the same step on a batch that is on the device already, with nothing that watches, and with
    the fastest convolutions that cuDNN has.

    Args:
        replayed: forward and backward pass as a CUDA graph, where that is faster.
        ours: layers end in our kernels, where they are faster, instead of torch's.
        compiler: makes of the network what computes its logits.
    """
    device = choose_device()
    setup = Setup(device=device, device_name=describe_device(device), bf16=use_bf16("auto", device))
    torch.manual_seed(0)
    model = build_model(CLASSES).to(device, memory_format=torch.channels_last).train()
    if ours and not kit.fake:
        fuse(model, device, bf16=setup.bf16)
    forward = compiler(model) if compiler is not None else model
    optimiser = make_optimizer(model, TrainConfig(optimizer="adamw", lr=0.002))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    size = kit.image_size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,), device=device)
    wait = synchronised(device)
    graph = StepGraph(model, criterion, setup, record=_as_it_is if kit.fake else None, wait=wait) if replayed else None

    def passes() -> None:
        with setup.autocast():
            logits = forward(images)
        loss = criterion(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()

    def steps(count: int) -> float:
        wait()
        started = time.perf_counter()
        for _ in range(count):
            if graph is not None and graph.serves(images, labels):
                graph.replay(images, labels)
            else:
                passes()
            optimiser.step()
        wait()
        return time.perf_counter() - started

    torch.backends.cudnn.benchmark = True
    steps(SAME_SHAPE + 5 if replayed else kit.size(15, 1))
    count = kit.size(30, 1)
    return batch * count / statistics.median(steps(count) for _ in range(3))


def _as_it_is(passes: Passes) -> tuple[Callable[[], None], Answer]:
    """With --fake: a recording whose replays leave what the passes gave."""
    return lambda: None, passes()
