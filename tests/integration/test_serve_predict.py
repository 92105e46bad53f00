"""`deploy.py serve` and `predict` against the real model server."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from image_classifier.contract.endpoint import MAX_PORT
from image_classifier.launch.runs import Status, create_run, find_run
from image_classifier.vision.artifact import load_model, pack

DEPLOY = Path(__file__).parents[2] / "deploy.py"


def free_port() -> int:
    """A port that nothing listens on, below the highest one that the model server takes."""
    for port in random.Random(os.getpid()).sample(range(20_000, MAX_PORT), 50):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port found")


def deploy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_newest_model_is_served_until_ctrl_c_and_predicts_as_trained(model_dir: Path, tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs", "train")
    pack(model_dir, run.archive)
    run.end(Status.COMPLETED)
    golden = load_model(model_dir).golden
    images = tmp_path / "images"
    images.mkdir()
    for sample in golden:
        (images / sample.name).write_bytes(sample.image)
    (images / "text.jpg").write_text("no image")
    names = load_model(model_dir).classes
    for sample in golden:
        labelled = tmp_path / "labelled" / max(zip(sample.probabilities, names, strict=True))[1]
        labelled.mkdir(parents=True, exist_ok=True)
        (labelled / sample.name).write_bytes(sample.image)

    port = str(free_port())
    serve = [sys.executable, str(DEPLOY), "serve", "--port", port]
    with subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
        served = find_run(tmp_path / "runs", kind="serve")
        assert served.record().status == Status.IN_PROGRESS
        started = psutil.Process(server.pid).children(recursive=True)
        assert len(started) > 2

        url = f"http://127.0.0.1:{port}"
        done = deploy(tmp_path, "predict", "images", "--url", url, "--top-k", "6", "--json")
        table = deploy(tmp_path, "predict", str(images / golden[0].name), "--url", url, "--top-k", "1")
        second = deploy(tmp_path, "serve", "--port", port)
        evaluated = deploy(tmp_path, "evaluate", "labelled", url, "--json")

        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    assert not psutil.wait_procs(started, timeout=5)[1]
    assert served.record().status == Status.STOPPED

    assert done.returncode == 1  # the text file
    answers = {Path(each["file"]).name: each for each in map(json.loads, done.stdout.splitlines())}
    assert answers["text.jpg"]["error"]
    classes = load_model(model_dir).classes
    for sample in golden:
        given = {each["label"]: each["probability"] for each in answers[sample.name]["predictions"]}
        assert [given[name] for name in classes] == pytest.approx(sample.probabilities, abs=1e-3)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["metrics"]["accuracy"] == 1.0
    best = max(zip(golden[0].probabilities, classes, strict=True))[1]
    assert table.returncode == 0
    header, row = table.stdout.splitlines()
    assert header == "file\tlabel\tprobability"
    assert row.split("\t")[1] == best
    assert second.returncode == 1
    assert f"error: port {port} on 127.0.0.1 is in use" in second.stderr

    nobody = deploy(tmp_path, "predict", "images", "--url", url)
    assert nobody.returncode == 1
    assert f"error: no endpoint answers at {url}" in nobody.stderr
