"""`deploy.py train` and `tune` here, killed and starved of disk at random moments, and what they end with."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from tests.full_disk import fill_disk_of

from image_classifier.launch.runs import Run, Status, list_runs
from image_classifier.vision.artifact import load_model, unpack

DEPLOY = Path(__file__).parents[1] / "deploy.py"
DEADLINE_S = 240.0
MOMENTS = 0.8  # of the time that it takes undisturbed: later ones would find most that were resumed at their end
VARIES = ("seconds", "train:images_per_second")  # from one undisturbed run to the next


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """A command to be disturbed.

    Args:
        program: deploy.py, or what stands in for it.
        command: `train` or `tune`.
        largest_file: bytes; on a full disk files up to some random size below can still be written.
        seconds: that it takes undisturbed.
    """

    program: Path
    command: str
    largest_file: float
    seconds: float = 0.0


def start(folder: Path, what: Disturbed, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts the command in `folder`; what it prints is in `out.txt`."""
    with (folder / "out.txt").open("ab") as out:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(what.program), what.command, *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end, its own and that of all it started."""
    family = _family(process)
    status = process.wait(timeout=DEADLINE_S)
    _, alive = psutil.wait_procs(family, timeout=DEADLINE_S)
    assert not alive, "a process outlived its launcher"
    return status


def disturb(process: subprocess.Popen[bytes], chance: random.Random, what_of: Disturbed) -> str:
    """Waits for a random moment and kills the launcher or everything, or fills the disk.

    Returns what was done; nothing, when it had ended before.
    """
    moment = chance.uniform(0.0, MOMENTS * what_of.seconds)
    what = chance.choice(("launcher", "everything", "disk"))
    room = int(math.exp(chance.uniform(0.0, math.log(what_of.largest_file)))) if chance.random() < 0.5 else 0
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGSTOP)  # starts nothing that would be missed
        if process.poll() is not None:  # it ended at that very moment
            return ""
        family = _family(process)
        if what == "disk":
            process.send_signal(signal.SIGCONT)
            fill_disk_of([psutil.Process(process.pid), *family], room)
        else:
            for victim in [psutil.Process(process.pid), *(family if what == "everything" else ())]:
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue
        finish(process)
        return f"{what} after {moment:.1f} s" + (f", {room} bytes left" if what == "disk" else "")
    return ""


def run_disturbed(folder: Path, what: Disturbed, chance: random.Random, times: int) -> tuple[Run, list[str]]:
    """Disturbs the command so many times, if it takes as long, resumes it after each, and lets it end.

    Returns the run, and what was done to it.
    """
    done: list[str] = []
    while True:
        runs = list_runs(folder / "runs")
        if runs and runs[-1].record().status == Status.COMPLETED:
            break
        process = start(folder, what, *(("--resume", runs[-1].name) if runs else ()))
        if len(done) < times:
            done += filter(None, [disturb(process, chance, what)])
        else:
            assert finish(process) == 0, f"{done}\n{(folder / 'out.txt').read_text()[-3000:]}"
    said = (folder / "out.txt").read_text(errors="replace")
    assert "Traceback" not in said, f"{done}\n{said}"
    assert "defect" not in said, f"{done}\n{said}"
    return list_runs(folder / "runs")[-1], done


def trained(run: Run) -> dict[str, Any]:
    """What a finished training says and is, without what differs between two undisturbed ones."""
    assert run.record().status == Status.COMPLETED
    data = run.paths.output_data
    artifact = load_model(run.paths.model)
    unpacked = unpack(run.archive, run.path / "unpacked")
    assert unpacked.fingerprint == artifact.fingerprint
    tables = {name: (data / name).read_text() for name in ("per_class.csv", "confusion.csv", "test_predictions.csv")}
    assert (data / "report.html").is_file()
    return {
        "weights": hashlib.sha256(artifact.weights_path.read_bytes()).hexdigest(),
        "classes": artifact.classes,
        "golden": [(sample.name, sample.probabilities) for sample in artifact.golden],
        "history": [_stable(row) for row in run.history()],
        "result": _stable(json.loads((data / "metrics.json").read_text())),
        "bad": sorted(Path(name).name for name in json.loads((data / "bad_images.json").read_text())),
        "findings": json.loads((data / "findings.json").read_text()),
        **tables,
    }


def searched(run: Run) -> dict[str, Any]:
    """The same of a finished search: every trial, and the model of the best one."""
    assert run.record().status == Status.COMPLETED
    best = json.loads((run.path / "best.json").read_text())
    trial = Run(path=run.path / "trials" / f"{best['trial']:03}")
    rows = [line.split(",") for line in (run.path / "trials.csv").read_text().splitlines()]
    seconds = rows[0].index("seconds")
    assert (run.path / "report.html").is_file()
    return {
        "best": {name: value for name, value in best.items() if name not in ("run", "data")},
        "trials": [[*row[:seconds], *row[seconds + 1 :]] for row in rows],
        "weights": hashlib.sha256((trial.paths.model / "model.safetensors").read_bytes()).hexdigest(),
        "models": [path.parent.parent.name for path in sorted(run.path.glob("trials/*/model/model.safetensors"))],
        "checkpoints": [path.name for path in run.path.glob("trials/*/checkpoints")],
    }


def timed(folder: Path, what: Disturbed) -> Disturbed:
    """Lets it end undisturbed, which succeeds, and takes the time."""
    started = time.monotonic()
    assert finish(start(folder, what)) == 0, (folder / "out.txt").read_text()
    return replace(what, seconds=time.monotonic() - started)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _stable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what varies, at any depth."""
    return {
        name: _stable(value) if isinstance(value, dict) else value for name, value in row.items() if name not in VARIES
    }
