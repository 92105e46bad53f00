"""What watching a training costs: ResNet50 with our recorder, without, and with smdebug's register_module.

    PYTHONPATH=code:. python benchmarks/bench_hook.py [--rounds 5] [--turn 1] [--image-size 224] [--batch-size 32]

Each way of watching trains in a process of its own. They take turns of a few steps, and those whose turn it is not are
stopped with all their threads, so that none pays for another's sampler or writer and a busy machine is busy for all. A
round is as many steps as lie between two recorded ones, the recorded one included. A GPU is used where there is one.
Writes benchmarks/results/hook.md: ratios, and on a GPU the time of a step.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmarks.record import write_result
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.training.observe import Watched, make_hook
from image_classifier.training.setup import Setup, choose_device, describe_device, use_bf16
from image_classifier.training.stop import StopFlag
from image_classifier.vision.model import build_model

CLASSES = 133
INTERVAL = TrainConfig().debug_interval
FIRST = INTERVAL + 1  # the many records of the first steps are over
WAYS = {"nothing": "not watched", "ours": "our defaults", "smdebug": "smdebug's register_module"}


class Training:
    """One network in training with one way of watching it; the ways differ in nothing else."""

    def __init__(self, way: str, size: int, batch_size: int, folder: Path) -> None:
        torch.manual_seed(0)
        config = TrainConfig(batch_size=batch_size, trace_steps=0)
        self.device = choose_device()
        self.bf16 = use_bf16("auto", self.device)
        self.model = build_model(CLASSES).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(batch_size, 3, size, size, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (batch_size,), device=self.device)
        self.criterion = nn.CrossEntropyLoss()
        self.hook = Observer()
        if way == "smdebug":
            self._register(folder)
        elif way == "ours":
            self.hook = make_hook(self._watched(config), MlPaths(base=folder), StopFlag(), on_hang=print)

    def run(self, first: int, steps: int) -> float:
        """Seconds of so many steps, numbered from `first`."""
        self.hook.begin("train", 1, first)
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._wait()
        return time.perf_counter() - started

    def calls(self, first: int, steps: int) -> float:
        """Seconds of what so many steps tell the observers, without the steps: too little to be seen beside them."""
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
        return time.perf_counter() - started

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
            begun=time.time(),
            done={"train": 0, "eval": 0, "test": 0},
            setup=Setup(device=self.device, device_name=describe_device(self.device), bf16=self.bf16),
        )

    def _register(self, folder: Path) -> None:
        """What smdebug's manual says: the hook on every module, losses every step, the rest at the same interval."""
        import smdebug.pytorch as smd

        hook = smd.Hook(
            out_dir=str(folder / "tensors"),
            save_config=smd.SaveConfig(save_interval=INTERVAL),
            include_collections=["losses", "gradients", "weights"],
        )
        hook.register_module(self.model)
        hook.register_loss(self.criterion)


def serve(pipe: Connection, way: str, size: int, batch_size: int, folder: Path) -> None:
    """A process that trains: answers ("run" | "calls", first, steps) with seconds, until told None."""
    logging.disable()
    os.environ["SMDEBUG_LOG_LEVEL"] = "error"
    training = Training(way, size, batch_size, folder)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        method, first, steps = order
        pipe.send(getattr(training, method)(first, steps))
    training.hook.close()


class Process:
    """A Training in a process that stands still but while it is asked."""

    def __init__(self, way: str, size: int, batch_size: int, folder: Path) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, way, size, batch_size, folder))
        self._process.start()
        other.close()
        self._pipe.recv()
        self._signal(signal.SIGSTOP)

    def run(self, first: int, steps: int) -> float:
        return self._ask("run", first, steps)

    def calls(self, first: int, steps: int) -> float:
        return self._ask("calls", first, steps)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._pipe.send(None)
        self._process.join()

    def _ask(self, method: str, first: int, steps: int) -> float:
        self._signal(signal.SIGCONT)
        self._pipe.send((method, first, steps))
        seconds: float = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        return seconds

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def measure(rounds: int, turn: int, size: int, batch_size: int, folder: Path) -> list[str]:
    """The rows of the result."""
    processes = {way: Process(way, size, batch_size, folder / way) for way in WAYS}
    try:
        for process in processes.values():
            process.run(FIRST, 3)  # smdebug saves its first step
        permutations = list(itertools.permutations(WAYS))  # so that none always comes behind the same other
        seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}  # by way and round, of each turn
        for number in range(rounds):
            for way in WAYS:
                seconds[way].append([])
            for step in range(0, INTERVAL, turn):
                for way in permutations[step // turn % len(permutations)]:
                    spent = processes[way].run(FIRST + number * INTERVAL + step, turn)
                    seconds[way][-1].append(spent / turn)
        step_s = statistics.median(value for part in seconds["nothing"] for value in part)
        return [
            *(table_row(way, seconds[way], seconds["nothing"]) for way in WAYS),
            "",
            *parts(processes["ours"], step_s, FIRST + rounds * INTERVAL),
            *([f"A step that nothing watches takes {1000 * step_s:.1f} ms."] if torch.cuda.is_available() else []),
        ]
    finally:
        for process in processes.values():
            process.close()


def table_row(way: str, mine: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> str:
    """Whole rounds against whole rounds, and the turns between recorded steps in pairs."""
    whole = [sum(ours) / sum(theirs) for ours, theirs in zip(mine, plain, strict=True)]
    pairs = sorted(
        ours / theirs
        for mine_round, plain_round in zip(mine, plain, strict=True)
        for ours, theirs in zip(mine_round, plain_round, strict=True)
    )
    total = sum(map(sum, mine)) / sum(map(sum, plain))
    low, high = median_interval(pairs)
    return (
        f"| {WAYS[way]} | {percent(total)} | {percent(min(whole))} .. {percent(max(whole))} | "
        f"{percent(statistics.median(pairs))} | {percent(low)} .. {percent(high)} |"
    )


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The distribution-free 95 % confidence interval of a median: order statistics, by the normal approximation of
    the binomial."""
    half = 0.98 * len(ordered) ** 0.5  # 1.96 * sqrt(n) / 2
    middle = len(ordered) / 2
    return ordered[max(int(middle - half), 0)], ordered[min(int(middle + half), len(ordered) - 1)]


def percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f} %"


def once(action: Callable[[], float], times: int = 5) -> float:
    """Median of an action's seconds."""
    return statistics.median(action() for _ in range(times))


def parts(training: Process, step_s: float, after: int) -> list[str]:
    """What a recorded step takes on top, and what that is of all steps at the default intervals."""
    config = TrainConfig()
    both_at = config.activation_interval * (after // config.activation_interval + 1)
    weights_at = both_at + config.debug_interval
    plain = once(lambda: training.run(weights_at + 3, 1))
    weights = max(once(lambda: training.run(weights_at, 1)) - plain, 0.0)  # due: gradients and weights, no activations
    both = max(once(lambda: training.run(both_at, 1)) - plain, 0.0)
    # of 80 steps, four are fetched at, none is recorded
    calls = statistics.median(training.calls(weights_at + 1 + 100 * turn, 80) / 80 for turn in range(5))
    share = calls + weights / config.debug_interval + max(both - weights, 0.0) / config.activation_interval
    return [
        f"By parts: what any step tells the observers is {100 * calls / step_s:.3f} % of a step; statistics of "
        f"gradients and weights, every {config.debug_interval} steps, take {weights / step_s:.2f} steps; with "
        f"activations, every {config.activation_interval} steps, {both / step_s:.2f} steps. In all "
        f"{100 * share / step_s:.2f} % of the training; smdebug writes in a thread behind it.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=int, default=1, help="steps of one way before the next has its turn")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = measure(options.rounds, options.turn, options.image_size, options.batch_size, Path(folder))
    device = choose_device()
    where = (
        describe_device(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    )
    number_format = "bf16" if use_bf16("auto", device) else "float32"
    text = [
        "# What watching a training costs",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_hook.py --rounds {options.rounds} --turn {options.turn} "
        f"--image-size {options.image_size} --batch-size {options.batch_size}`",
        "",
        f"ResNet50, {where}, torch {torch.__version__}, Python {platform.python_version()}, {number_format}. "
        f"{options.rounds} rounds of {INTERVAL} steps, each with one recorded step of ours and one of smdebug's, every "
        f"{TrainConfig().activation_interval} steps with activations in ours; the three took turns of {options.turn}. "
        "Against the network that nothing watches:",
        "",
        "| watched by | all steps | smallest .. largest round | median pair of turns | its 95 % interval |",
        "|---|---|---|---|---|",
        *rows,
    ]
    write_result("hook.md", text)


if __name__ == "__main__":
    main()
