"""What watching a training costs: the processor's time in the recorder's own calls beside a step's, and smdebug's.

    PYTHONPATH=code:. python benchmarks/bench_hook.py [--rounds 3] [--image-size 224] [--batch-size 32]

Differences of whole steps drown in what a machine does besides: a step varies by more than the recorder takes. So the
calls of the recorder are counted themselves, by the process's CPU clock, around each of them within real steps; what
its threads (the sampler, smdebug's writer, the watch over hangs) use meanwhile is added. An interval is what lies
between two recorded steps: the recorded step, one of five with activations, so many others, and the calls after which
what was recorded has been handed out. smdebug's hooks stand within the forward and the backward pass: its steps are
compared with those of a process that nothing watches, in turns. On a GPU: benchmarks/gpu/overhead.py.
Writes benchmarks/results/hook.md: ratios.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.record import processor, write_result
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.training.norm_trial import fuse
from image_classifier.training.observe import Watched, make_hook
from image_classifier.training.setup import Setup, choose_device, describe_device, use_bf16
from image_classifier.training.step_graph import StepGraph
from image_classifier.training.stop import StopFlag
from image_classifier.vision.model import build_model

CLASSES = 133
INTERVAL = TrainConfig().debug_interval
WITH_ACTIVATIONS = TrainConfig().activation_interval
FIRST = INTERVAL + 1  # the many records of the first steps are over
LEAD = 10  # steps
HANDED_OUT = 25  # calls of further steps: what a step left is handed out within 20
SAVED_EVERY = 4  # steps; of smdebug, while its saved steps are counted
WAYS = {"nothing": "not watched", "ours": "our defaults", "smdebug": "smdebug's register_module"}


class Meter:
    """An observer's calls, and the process's CPU seconds in them."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def metered(*arguments: Any) -> Any:
            begun = time.process_time()
            try:
                return getattr(self._observer, name)(*arguments)
            finally:
                self.seconds += time.process_time() - begun

        return metered


@dataclass(frozen=True, kw_only=True)
class Interval:
    """CPU seconds: of the observers' calls in the recorded step, in one of the others, and in those after which
    everything was handed out; of their threads in the time of a step; of a step without them."""

    recorded: float
    other: float
    handing_out: float
    threads: float
    step: float

    @property
    def share(self) -> float:
        """Of the training from one recorded step to the next."""
        calls = self.recorded + self.handing_out + (INTERVAL - 1) * self.other
        return (calls / INTERVAL + self.threads) / self.step


def of_threads() -> float:
    """CPU seconds of the threads that Python knows, but for the main one."""
    seconds = 0.0
    for thread in threading.enumerate():
        schedule = Path(f"/proc/self/task/{thread.native_id}/schedstat")
        if thread is not threading.main_thread() and schedule.is_file():
            seconds += int(schedule.read_text().split()[0]) / 1e9
    return seconds


class Training:
    """One network in training, as a job has it, with one way of watching it; the ways differ in nothing else.

    But for smdebug's hooks on a GPU, which no replay of a CUDA graph would call: torch's operations are launched for
    them.
    """

    def __init__(self, way: str, size: int, batch_size: int, folder: Path, save_interval: int = INTERVAL) -> None:
        torch.manual_seed(0)
        config = TrainConfig(batch_size=batch_size, trace_steps=0)
        self.device = choose_device()
        self.bf16 = use_bf16("auto", self.device)
        self.model = build_model(CLASSES).to(self.device, memory_format=torch.channels_last)
        if self.device.type == "cpu" or way != "smdebug":
            fuse(self.model, self.device, bf16=self.bf16)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=True)
        images = torch.randn(batch_size, 3, size, size, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (batch_size,), device=self.device)
        self.criterion = nn.CrossEntropyLoss()
        self.graph = None if self.device.type == "cpu" or way == "smdebug" else self._graph()
        self.hook = Observer()
        if way == "smdebug":
            self._register(folder, save_interval)
        elif way == "ours":
            self.hook = make_hook(self._watched(config), MlPaths(base=folder), StopFlag(), on_hang=print)

    def run(self, first: int, steps: int) -> float:
        """Seconds of so many steps, numbered from `first`. On a GPU by its own clock, behind LEAD others, so that the
        host is ahead of it as in a training."""
        if self.device.type == "cpu":
            started = time.perf_counter()
            self._steps(first, steps)
            return time.perf_counter() - started
        self._steps(first - LEAD, LEAD)
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        self._steps(first, steps)
        ended.record()
        self._wait()
        return begun.elapsed_time(ended) / 1000

    def _steps(self, first: int, steps: int) -> None:
        self.hook.begin("train", 1, first)
        for _ in range(steps):
            self._step(self.hook)

    def cpu(self, first: int, steps: int) -> float:
        """CPU seconds of so many steps."""
        begun = time.process_time()
        self.run(first, steps)
        return time.process_time() - begun

    def interval(self, first: int, others: int) -> dict[str, float]:
        """What the observers use from the recorded step `first` on, with so many other steps: the fields of Interval,
        which one process cannot hand to another as this module is the main one of both."""
        recorded, _, _ = self._metered(first, 1)
        other, threads, step = (each / others for each in self._metered(first + 1, others))
        begun = time.process_time()
        self.calls(first + 1 + others, HANDED_OUT)
        handing_out = time.process_time() - begun
        return {"recorded": recorded, "other": other, "handing_out": handing_out, "threads": threads, "step": step}

    def _metered(self, first: int, steps: int) -> tuple[float, float, float]:
        """CPU seconds of the observers' calls in so many steps, of their threads meanwhile, and of the rest."""
        meter, threads, begun = Meter(self.hook), of_threads(), time.process_time()
        self.hook.begin("train", 1, first)
        for _ in range(steps):
            self._step(meter)
        whole, meanwhile = time.process_time() - begun, of_threads() - threads
        return meter.seconds, meanwhile, whole - meter.seconds - meanwhile

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

    def _step(self, hook: Any) -> None:
        hook.mark("data_wait_s")
        hook.mark("h2d_s")
        hook.before_forward(self.images)
        if self.graph is not None and self.graph.serves(self.images, self.labels):
            loss, logits = self.graph.replay(self.images, self.labels)
        else:
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

    def _setup(self) -> Setup:
        return Setup(device=self.device, device_name=describe_device(self.device), bf16=self.bf16)

    def _graph(self) -> StepGraph:
        return StepGraph(self.model, self.criterion, self._setup())

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
            setup=self._setup(),
        )

    def _register(self, folder: Path, save_interval: int) -> None:
        """What smdebug's manual says: the hook on every module, losses every step, the rest at the same interval."""
        import smdebug.pytorch as smd

        hook = smd.Hook(
            out_dir=str(folder / "tensors"),
            save_config=smd.SaveConfig(save_interval=save_interval),
            include_collections=["losses", "gradients", "weights"],
        )
        hook.register_module(self.model)
        hook.register_loss(self.criterion)


def serve(pipe: Connection, way: str, shape: tuple[int, int], folder: Path, save_interval: int) -> None:
    """A process that trains: answers (a method of Training, first, steps) with what it returns, until told None."""
    logging.disable()
    os.environ["SMDEBUG_LOG_LEVEL"] = "error"
    training = Training(way, *shape, folder, save_interval)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        method, first, steps = order
        pipe.send(getattr(training, method)(first, steps))
    training.hook.close()


class Process:
    """A Training in a process that stands still but while it is asked."""

    def __init__(self, way: str, size: int, batch_size: int, folder: Path, save_interval: int = INTERVAL) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, way, (size, batch_size), folder, save_interval))
        self._process.start()
        other.close()
        self._pipe.recv()
        self._signal(signal.SIGSTOP)

    def run(self, first: int, steps: int) -> float:
        return float(self._ask("run", first, steps))

    def calls(self, first: int, steps: int) -> float:
        return float(self._ask("calls", first, steps))

    def cpu(self, first: int, steps: int) -> float:
        return float(self._ask("cpu", first, steps))

    def interval(self, first: int, others: int) -> Interval:
        return Interval(**self._ask("interval", first, others))

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._pipe.send(None)
        self._process.join()

    def _ask(self, method: str, first: int, steps: int) -> Any:
        self._signal(signal.SIGCONT)
        self._pipe.send((method, first, steps))
        found = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        return found

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def ours(rounds: int, others: int, size: int, batch_size: int, folder: Path) -> list[str]:
    """What our recorder, sampler and rules use."""
    process = Process("ours", size, batch_size, folder / "ours")
    try:
        process.run(FIRST, 2)
        plain, full = [], []
        for number in range(rounds):
            start = WITH_ACTIVATIONS * (number + 1)
            full.append(process.interval(start, others))
            plain += [process.interval(start + INTERVAL * (turn + 1), others) for turn in range(2)]
    finally:
        process.close()
    shares = [0.8 * statistics.mean(each.share for each in plain[2 * i : 2 * i + 2]) + 0.2 * full[i].share
              for i in range(rounds)]  # fmt: skip
    return [
        f"| our defaults | {spread(shares)} | "
        f"{spread([each.other / each.step for each in [*plain, *full]])} | "
        f"{spread([each.threads / each.step for each in [*plain, *full]])} | "
        f"{spread([(each.recorded + each.handing_out) / each.step for each in plain])} | "
        f"{spread([(each.recorded + each.handing_out) / each.step for each in full])} |"
    ]


def smdebugs(rounds: int, size: int, batch_size: int, folder: Path) -> list[str]:
    """What smdebug's hooks use, as the difference of whole steps."""
    ways = {
        "nothing": Process("nothing", size, batch_size, folder / "nothing"),
        "smdebug": Process("smdebug", size, batch_size, folder / "smdebug", SAVED_EVERY),
    }
    try:
        for process in ways.values():
            process.run(FIRST, SAVED_EVERY)  # it saves its first step
        saved, others = [], []
        for number in range(rounds):
            at = FIRST + (number + 1) * SAVED_EVERY
            plain = [ways["nothing"].cpu(at + turn, 1) for turn in range(2)]
            saved.append(ways["smdebug"].cpu(at, 1) / statistics.mean(plain) - 1)
            others.append(ways["smdebug"].cpu(at + 1, 2) / 2 / statistics.mean(plain) - 1)
            ways["smdebug"].run(at + 3, 1)
    finally:
        for process in ways.values():
            process.close()
    shares = [(one + (INTERVAL - 1) * other) / INTERVAL for one, other in zip(saved, others, strict=True)]
    return [f"| smdebug's register_module | {spread(shares)} | {spread(others)} | - | {spread(saved)} | - |"]


def spread(shares: list[float]) -> str:
    """Median (smallest .. largest), in percent."""
    return f"{percent(statistics.median(shares))} ({percent(min(shares))} .. {percent(max(shares))})"


def percent(share: float) -> str:
    """Two decimals; of more than a tenth none."""
    return f"{100 * share:.{0 if abs(share) > 0.1 else 2}f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", type=int, default=2, help="steps of an interval that are made, beside the recorded")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait use time, too
    with TemporaryDirectory() as folder:
        size = (options.image_size, options.batch_size, Path(folder))
        rows = [*ours(options.rounds, options.others, *size), *smdebugs(options.rounds, *size)]
    number_format = "bf16" if use_bf16("auto", torch.device("cpu")) else "float32"
    text = [
        "# What watching a training costs",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_hook.py --rounds {options.rounds} --image-size "
        f"{options.image_size} --batch-size {options.batch_size}`",
        "",
        f"ResNet50 at {options.image_size} pixels, batches of {options.batch_size}, CPU ({processor()}), "
        f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}, {number_format}. "
        f"CPU time in the observers' own calls and threads, as a share of a step's without them; statistics every "
        f"{INTERVAL} steps, every {WITH_ACTIVATIONS} with activations. Median (smallest .. largest) of "
        f"{options.rounds} rounds, each of three of our intervals; smdebug's are differences of whole steps, "
        "and its hooks leave to torch's operations what our kernels compute without them. The threads look at the "
        "machine by the clock: where other programs make a step longer, they take a larger share.",
        "",
        "| watched by | all steps | a step that is not recorded | threads | a recorded step adds | with activations |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "The first steps of a training are recorded more often (0, 1, 2, 5, 10, 20, 50): in one of 100 steps they "
        "cost about seven recorded steps, in one of 5,000 it is lost in the rest.",
    ]
    write_result("hook.md", text)


if __name__ == "__main__":
    main()
