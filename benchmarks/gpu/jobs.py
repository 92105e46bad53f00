"""Training jobs of the GPU check: the product's training script as a process, in a folder laid out like /opt/ml."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit import ROOT, Kit, child_environment

from image_classifier.contract.config import parameter
from image_classifier.contract.errors import ArtifactError
from image_classifier.contract.outputs import HISTORY, RESULT, RULES
from image_classifier.contract.paths import BASE_DIR_VARIABLE, MlPaths
from image_classifier.debugging.measures import counted_time
from image_classifier.debugging.rules import RULES as KNOWN
from image_classifier.debugging.rules import judge
from image_classifier.debugging.rules.system import SystemRule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import read_files
from image_classifier.vision.artifact import load_model

SHORT_S = 8.0  # of steps, after which the system rules may speak here; as shipped they wait for a minute
POLL_S = 0.05
PROGRESS = " step="  # in the log, from its first progress line on
WATCHER_FAILED = (
    "switched off",
    "no trace",
    "no debug hook",
    "no observations",
    "no report",
    "cannot write",
    "as it is:",
)


@dataclass(kw_only=True)
class TrainingJob:
    """A training that was started, and what it left."""

    paths: MlPaths
    command: list[str]
    environment: dict[str, str]
    started: float = field(default_factory=time.perf_counter)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it printed so far."""
        return (self.paths.base / "job.log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Starts it, or starts it again."""
        with (self.paths.base / "job.log").open("ab") as log:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.paths.base, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self, stop_after_s: float | None = None, until: Callable[[], bool] | None = None) -> float:
        """Seconds until it ended, or until `until` held and it was killed with SIGKILL.

        Args:
            stop_after_s: seconds of steps after which it is asked to stop, as a user would.
        """
        assert self.process is not None
        training_since = None
        while self.process.poll() is None:
            if until is not None and until():
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                break
            if stop_after_s is not None:
                if training_since is None and PROGRESS in self.log:
                    training_since = time.perf_counter()
                if training_since is not None and time.perf_counter() - training_since > stop_after_s:
                    self.process.send_signal(signal.SIGTERM)
                    stop_after_s = None
            time.sleep(POLL_S)
        return time.perf_counter() - self.started

    def require(self, *codes: int) -> None:
        """Raises RuntimeError, with the log's last lines, unless it ended with one of these exit codes."""
        assert self.process is not None
        if self.process.returncode not in codes:
            tail = " | ".join(self.log.strip().splitlines()[-12:])
            raise RuntimeError(f"a training ended with {self.process.returncode}: {tail}")

    @property
    def complaints(self) -> list[str]:
        """What the log says of watchers that failed: such a training was not watched, and goes on all the same."""
        return [line for line in self.log.splitlines() if any(words in line for words in WATCHER_FAILED)]

    @property
    def history(self) -> list[dict[str, Any]]:
        return HISTORY.read(self.paths.output_data)

    @property
    def metrics(self) -> dict[str, float]:
        """Of the finished job, by name."""
        found: dict[str, float] = RESULT.read_object(self.paths.output_data).get("metrics", {})
        return found

    @property
    def run(self) -> RunData:
        """What its recorder and its sampler saw."""
        return read_files(self.paths.output)

    def verdicts(self, *names: str) -> dict[str, str]:
        """Rule -> what the job itself said: `IssuesFound: ...`."""
        found = {
            each["rule"]: f"{each['verdict']}: {each['summary']}" for each in RULES.read(self.paths.output_data) or ()
        }
        return {name: found.get(name, "no verdict") for name in names}

    def early_verdicts(self, *names: str) -> dict[str, str]:
        """The same rules over this short job: those about the machine do not wait for a minute of steps."""
        rules = []
        for name in names:
            rule = KNOWN[name]()
            if isinstance(rule, SystemRule):
                rule = replace(rule, min_s=SHORT_S, first_epoch_s=SHORT_S, warmup_s=SHORT_S / 2)
                if hasattr(rule, "window_size"):
                    rule = replace(rule, window_size=4)  # type: ignore[call-arg]  # GPUMemoryIncrease's
            rules.append(rule)
        return {each.rule: f"{each.verdict.value}: {each.summary}" for each in judge(self.run, rules)}

    def gpu_use(self) -> dict[str, float]:
        """Mean percent of the sampled GPU's utilization and memory after the first epoch, and the number of samples."""
        run = self.run
        window = counted_time(run, min_s=0.0, first_epoch_s=0.0, warmup_s=0.0)
        found: dict[str, float] = {}
        for dimension in ("GPUUtilization", "GPUMemoryUtilization", "GPUPowerWatts"):
            for series in list(run.system(dimension).values())[:1]:
                keep = (series.steps >= window[0]) & (series.steps <= window[1]) if window else series.steps > 0
                values = series.values[keep]
                if len(values):
                    found |= {dimension: float(values.mean()), f"{dimension} samples": len(values)}
        return found


def make_job(kit: Kit, name: str, *, faults: Sequence[str] = (), **hyperparameters: Any) -> TrainingJob:
    """A training on the check's photos, ready to be started, with an empty folder of its own.

    Args:
        faults: of planted.py.
        hyperparameters: of TrainConfig; what is not named is as the product has it, but for random weights, crops of
            one size, so that epochs compare, and toy sizes with --fake.
    """
    base = kit.folder / "jobs" / name
    number = 1
    while base.exists():  # of an earlier run that was killed
        number += 1
        base = kit.folder / "jobs" / f"{name}-{number}"
    paths = MlPaths(base=base)
    paths.data.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        paths.channel(split).symlink_to(kit.photos / split, target_is_directory=True)
    toy = {
        "image_size": kit.image_size,
        "epochs": 2,
        "batch_size": 8,
        "workers": 0,
        "debug_interval": 2,
        "rules": "all",
    }
    settings = {"weights": "none"} | (toy if kit.fake else {}) | hyperparameters
    words = [word for key, value in settings.items() for word in (f"--{parameter(key).name}", str(value))]
    script = ["-m", "benchmarks.gpu.planted", *faults, "--"] if faults else [str(ROOT / "code" / "train.py")]
    return TrainingJob(
        paths=paths,
        command=[sys.executable, *script, *words],
        environment=child_environment(**{BASE_DIR_VARIABLE: str(base)}),
    )


def finished_model(kit: Kit) -> Path:
    """The model folder of the part that trained the whole network; trained briefly here where that part left none."""
    for made in sorted((kit.folder / "jobs").glob("full*")):
        with suppress(ArtifactError):  # a training that was killed
            return load_model(made / "model").directory
    job = make_job(kit, "stand-in", epochs=2, batch_size=kit.size(128, 8), trace_steps=0)
    job.start()
    job.wait()
    job.require(0)
    return job.paths.model
