"""`deploy.py` with a stand-in for the training program, which learns in no time: a search can be disturbed often.

Run as a program, with the arguments of deploy.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "code"))

from image_classifier.cli.main import main
from image_classifier.contract.errors import EXIT_PLATFORM
from image_classifier.launch import local
from image_classifier.launch.process import Job
from image_classifier.launch.runs import Run
from image_classifier.launch.view import SILENT, View

STAND_IN = f"""
import json, os, pathlib, signal, sys, time
base = pathlib.Path.cwd()
hyper = json.loads((base / "input/config/hyperparameters.json").read_text())
quality, epochs = float(hyper["lr"]) * 10 + int(hyper["batch_size"]) / 100, int(hyper["epochs"])

def leave(reason, status):
    try:
        (base / "output/failure").write_text(reason)
    except OSError:
        pass
    os._exit(status)

def write(name, text):
    whole = base / name
    half = whole.with_name(whole.name + ".tmp")
    half.write_text(text)
    half.replace(whole)

signal.signal(signal.SIGTERM, lambda *_: leave("stopped by SIGTERM in an epoch", 143))
try:
    kept = base / "checkpoints/rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for epoch in range(len(rows) + 1, epochs + 1):
        accuracy = min(1.0, quality * epoch / epochs)
        values = {{"validation:accuracy": accuracy, "validation:loss": 1 - accuracy}}
        rows.append({{"epoch": epoch, **values}})
        write("output/data/history.jsonl", "".join(json.dumps(row) + "\\n" for row in rows))
        write("checkpoints/rows.json", json.dumps(rows))
        pairs = " ".join(f"{{name}}={{value:.6g}}" for name, value in values.items())
        print(f"metrics epoch={{epoch}} train:loss=1 {{pairs}}", flush=True)
        time.sleep(0.3)  # three looks of the search at the log
    tried = (base / "input/config/trial.json").exists()
    if not tried:
        time.sleep(0.3)
        write("model/model.safetensors", json.dumps(hyper, sort_keys=True))
    write("output/data/metrics.json", json.dumps({{"outcome": "tried" if tried else "completed"}}))
except OSError as error:
    leave(f"cannot write: {{error}}", {EXIT_PLATFORM})
"""


def start_training(run: Run, *, share: int = 1, view: View = SILENT) -> Job:
    """As `local.start_training`."""
    local.clear_attempt(run)
    job = Job.start([sys.executable, "-c", STAND_IN], env=os.environ, cwd=run.path, log=run.log)
    run.begin(job.pid)
    return job


if __name__ == "__main__":
    local.start_training = start_training
    sys.exit(main(sys.argv[1:]))
