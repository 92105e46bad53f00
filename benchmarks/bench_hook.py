"""What watching a training costs: a step of ResNet50 with our recorder, without, and with smdebug's register_module.

    PYTHONPATH=code:. python benchmarks/bench_hook.py [--rounds 5] [--steps 10] [--image-size 224] [--batch-size 32]

The variants take turns, so that a busy machine is busy for all of them. A GPU is used where there is one. Writes
benchmarks/results/hook.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.training.device import choose_device, describe_device, use_bf16
from image_classifier.training.observe import Watched, make_hook
from image_classifier.training.stop import StopFlag
from image_classifier.vision.model import build_model

RESULT = Path(__file__).parent / "results" / "hook.md"
CLASSES = 133


class Variant:
    """One network in training with one way of watching it; the ways differ in nothing else."""

    def __init__(self, name: str, config: TrainConfig, folder: Path, *, size: int, register: bool = False) -> None:
        torch.manual_seed(0)
        self.name = name
        self.device = choose_device()
        self.bf16 = use_bf16("auto", self.device)
        self.model = build_model(CLASSES).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(config.batch_size, 3, size, size, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (config.batch_size,), device=self.device)
        self.criterion = nn.CrossEntropyLoss()
        self.seconds: list[float] = []
        self.hook = Observer()
        if register:
            self._register(folder)
        elif config.debug or config.profile:
            self.hook = make_hook(self._watched(config), MlPaths(base=folder), StopFlag())

    def run(self, first: int, steps: int) -> float:
        """Mean seconds of so many steps, numbered from `first`."""
        self.hook.begin("train", 1, first)
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._wait()
        return (time.perf_counter() - started) / steps

    def calls(self, first: int, steps: int) -> float:
        """Mean seconds of what a step tells the observers, without the step: too little to be seen beside one."""
        logits = torch.zeros((len(self.labels), CLASSES), device=self.device)
        loss = torch.ones((), device=self.device)
        hook = self.hook
        hook.begin("train", 1, first)
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            for phase in ("data_wait_s", "h2d_s", "forward_s", "backward_s", "optimizer_s"):
                hook.mark(phase)
            hook.before_forward(self.images)
            hook.after_backward()
            hook.after_update()
            hook.end_step(loss, logits, self.labels)
        self._wait()
        return (time.perf_counter() - started) / steps

    def _step(self) -> None:
        hook = self.hook
        hook.mark("data_wait_s")
        hook.mark("h2d_s")
        hook.before_forward(self.images)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(self.images)
        loss = self.criterion(logits.float(), self.labels)
        hook.mark("forward_s")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        hook.mark("backward_s")
        hook.after_backward()
        self.optimizer.step()
        hook.mark("optimizer_s")
        hook.after_update()
        hook.end_step(loss, logits, self.labels)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _watched(self, config: TrainConfig) -> Watched:
        return Watched(
            config=config,
            model=self.model,
            classes=tuple(str(index) for index in range(CLASSES)),
            images={},
            steps_per_epoch=1_000,
            done={"train": 0, "eval": 0, "test": 0},
            device=self.device,
            bf16=self.bf16,
        )

    def _register(self, folder: Path) -> None:
        """What smdebug's manual says: the hook on every module, losses every step, the rest every 100."""
        import smdebug.pytorch as smd

        hook = smd.Hook(
            out_dir=str(folder / "tensors"),
            save_config=smd.SaveConfig(save_interval=100),
            include_collections=["losses", "gradients", "weights"],
        )
        hook.register_module(self.model)
        hook.register_loss(self.criterion)


def once(action: Callable[[], object], times: int = 5) -> float:
    """Median seconds of an action."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(rounds: int, steps: int, size: int, batch_size: int, folder: Path) -> list[str]:
    """The rows of the result."""
    config = TrainConfig(batch_size=batch_size, trace_steps=0)
    variants = [
        Variant("nothing", config.replace(debug=False, profile=False), folder / "a", size=size),
        Variant("our defaults", config, folder / "b", size=size),
        Variant(
            "smdebug register_module",
            config.replace(debug=False, profile=False),
            folder / "c",
            size=size,
            register=True,
        ),
    ]
    first = [variant.run(101, 1) for variant in variants]  # smdebug saves its first step
    for variant in variants:
        variant.run(102, 2)  # warm; from step 101 on, our next statistics are due at step 200
    for _ in range(rounds):
        for variant in variants:
            variant.seconds.append(variant.run(103, steps))
    base = variants[0]
    rows = []
    for variant in variants:
        ratios = [mine / plain for mine, plain in zip(variant.seconds, base.seconds, strict=True)]
        rows.append(
            f"| {variant.name} | {1000 * statistics.median(variant.seconds):.1f} | "
            f"{100 * (statistics.median(ratios) - 1):+.2f} % | {100 * (min(ratios) - 1):+.2f} .. "
            f"{100 * (max(ratios) - 1):+.2f} % |"
        )
    rows += ["", *extra_costs(variants[1], statistics.median(base.seconds))]
    rows.append(
        f"The step that smdebug's register_module saves took {1000 * (first[2] - first[0]):.0f} ms longer than the "
        "first step of the network that nothing watches; it is not in the table."
    )
    for variant in variants:
        variant.hook.close()
    return rows


def extra_costs(variant: Variant, step_s: float) -> list[str]:
    """What a recorded step takes on top, and what that is of all steps at the default intervals."""
    config = TrainConfig()
    plain = once(lambda: variant.run(103, 1))
    weights = max(once(lambda: variant.run(100 * 7, 1)) - plain, 0.0)  # due: gradients and weights, not activations
    both = max(once(lambda: variant.run(500 * 3, 1)) - plain, 0.0)
    calls = statistics.median(variant.calls(501 + 100 * turn, 80) for turn in range(5))  # 80: four fetches, none due
    share = calls + weights / config.debug_interval + max(both - weights, 0.0) / config.activation_interval
    return [
        f"A step with gradient and weight statistics takes {1000 * weights:.0f} ms longer, one with activations too "
        f"{1000 * both:.0f} ms.",
        f"What any step tells the observers takes {1000 * calls:.2f} ms; smdebug writes in a thread behind it.",
        f"At the default intervals ({config.debug_interval} and {config.activation_interval} steps) that is in all "
        f"{1000 * share:.2f} ms a step, {100 * share / step_s:.2f} % of a step of {1000 * step_s:.0f} ms.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = measure(options.rounds, options.steps, options.image_size, options.batch_size, Path(folder))
    device = choose_device()
    text = [
        "# What watching a training costs",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_hook.py --rounds {options.rounds} --steps {options.steps} "
        f"--image-size {options.image_size} --batch-size {options.batch_size}`",
        "",
        f"ResNet50, {describe_device(device)}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {'bf16' if use_bf16('auto', device) else 'float32'}; the variants took "
        f"turns in {options.rounds} rounds. Steps between recorded ones: losses, phases and system metrics only.",
        "",
        "| watched by | ms a step, median | against nothing, median | smallest .. largest round |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
