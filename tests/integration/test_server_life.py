"""How the real server program starts, loses workers, and ends."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import requests
from safetensors.numpy import load_file
from tests.conftest import jpeg
from tests.server_program import (
    PATIENCE_S,
    WORKERS,
    Program,
    free_port,
    gone,
    runs_program,
    start,
    wait_until,
    wait_until_ready,
)

from image_classifier.contract.endpoint import parse_ready_line
from image_classifier.contract.machine import usable_cores
from image_classifier.vision.artifact import Artifact, load_model, write_model


def test_ping_is_refused_until_every_worker_reproduced_the_golden_samples(server: Program, artifact: Artifact):
    assert server.reports_at_first_ping == WORKERS
    (line,) = [line for line in server.lines if line.startswith("ready ")]
    assert parse_ready_line(line) == (server.url, artifact.fingerprint)
    assert f"workers={WORKERS}" in line
    assert len(server.workers()) == WORKERS


def test_a_killed_worker_is_replaced(server: Program):
    victim = server.workers()[0]
    victim.kill()
    wait_until(lambda: len(server.workers()) == WORKERS and victim.pid not in {p.pid for p in server.workers()}, server)
    for seed in range(4):
        assert server.post(jpeg(seed)).status_code == 200


def test_a_worker_that_dies_over_a_request_costs_the_client_nothing(server: Program):
    victim = server.workers()[0]
    victim.suspend()  # so that one of the two requests is certainly with it when it dies
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        answers = [pool.submit(server.post, jpeg(seed)) for seed in range(WORKERS)]
        time.sleep(0.3)
        victim.kill()
        assert [answer.result(PATIENCE_S).status_code for answer in answers] == [200] * WORKERS
    wait_until(lambda: len(server.workers()) == WORKERS, server)


def test_a_worker_that_is_stopped_is_replaced_and_its_request_answered(server: Program):
    victim = server.workers()[0]
    victim.suspend()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(server.post, [jpeg(seed) for seed in range(WORKERS)]))
    assert [answer.status_code for answer in answers] == [200] * WORKERS
    wait_until(lambda: gone([victim]) and len(server.workers()) == WORKERS, server)


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(server: Program):
    tree, workers = server.tree(), server.workers()
    for worker in workers:
        worker.suspend()  # so that every request is certainly under way when the signal comes
    with concurrent.futures.ThreadPoolExecutor(3 * WORKERS) as pool:
        answers = [pool.submit(server.post, jpeg(seed)) for seed in range(3 * WORKERS)]
        time.sleep(0.5)  # the server reads what the clients wrote
        server.process.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.resume()
        assert [answer.result(PATIENCE_S).status_code for answer in answers] == [200] * len(answers)
    assert server.process.wait(PATIENCE_S) == 0, server.output
    wait_until(lambda: gone(tree), server)
    assert list(server.temporary.iterdir()) == []
    socket.create_server(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))).close()


def test_two_servers_run_side_by_side_and_each_end_is_clean(base: Path, tmp_path: Path):
    first, second = (start(base, tmp_path / name, SAGEMAKER_MODEL_SERVER_WORKERS="1") for name in ("a", "b"))
    wait_until_ready(first)
    wait_until_ready(second)
    trees = first.tree() + second.tree()
    (jvm,) = [p for p in second.tree() if p.name() == "java"]

    first.process.kill()
    jvm.kill()
    first.process.wait(PATIENCE_S)

    assert second.process.wait(PATIENCE_S) == 1
    wait_until(lambda: gone(trees), second)
    wait_until(lambda: not list(first.temporary.iterdir()), first)
    wait_until(lambda: "error: the model server ended by itself" in second.output, second)
    assert list(second.temporary.iterdir()) == []


def test_a_server_that_has_nothing_to_fork_workers_from_ends_with_a_sentence(base: Path, tmp_path: Path):
    program = start(base, tmp_path / "tmp")
    wait_until_ready(program)
    workers = program.workers()
    (parent,) = {worker.ppid() for worker in workers}
    for process in (psutil.Process(parent), *workers):
        process.kill()
    assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: "error: the process that workers are forked from has died" in program.lines, program)
    assert list(program.temporary.iterdir()) == []


@pytest.mark.skipif(usable_cores() < WORKERS, reason="one core")
def test_a_worker_that_is_alone_computes_with_every_core_and_is_replaced_when_it_dies(base: Path, tmp_path: Path):
    program = start(base, tmp_path / "tmp", SAGEMAKER_MODEL_SERVER_WORKERS="1", CLASSIFIER_ENGINE="openvino")
    wait_until_ready(program)
    try:
        assert requests.get(f"{program.url}/ping", timeout=PATIENCE_S).json()["engine"]["threads"] == WORKERS
        alone = program.post(jpeg(0)).json()
        (victim,) = program.workers()
        assert victim.num_threads() > WORKERS
        victim.kill()
        assert program.post(jpeg(0)).json() == alone
    finally:
        program.process.terminate()
        program.process.wait(PATIENCE_S)


@pytest.mark.parametrize("victim", ["supervisor", "toolkit"])
def test_a_server_whose_supervisor_or_program_is_killed_ends_and_leaves_nothing(
    base: Path, tmp_path: Path, victim: str
):
    program = start(base, tmp_path / "tmp", SAGEMAKER_MODEL_SERVER_WORKERS="1")
    wait_until_ready(program)
    tree = program.tree()
    (supervisor,) = psutil.Process(program.process.pid).children()
    (toolkit,) = [p for p in supervisor.children() if runs_program(p, "image_classifier.serving.model_server")]
    {"supervisor": supervisor, "toolkit": toolkit}[victim].kill()
    assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: gone(tree), program)
    ends = ("the model server ended by itself", "the process that workers are forked from has died")
    assert any(f"error: {end}" in program.output for end in ends), program.output  # whichever is noticed first
    assert list(program.temporary.iterdir()) == []


def test_a_port_in_use_is_an_error_before_anything_is_loaded(tmp_path: Path):
    port = str(free_port())
    with socket.create_server(("127.0.0.1", int(port))):
        program = start(tmp_path / "no-model-there", tmp_path / "tmp", SAGEMAKER_BIND_TO_PORT=port)
        assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: f"error: port {port} on 127.0.0.1 is in use" in program.lines, program)
    wait_until(lambda: any(line.startswith("hint: ") for line in program.lines), program)


def test_a_model_that_does_not_reproduce_its_golden_samples_is_not_served(model_dir: Path, tmp_path: Path):
    artifact = load_model(model_dir)
    write_model(
        tmp_path / "base" / "model",
        weights=load_file(artifact.weights_path),
        classes=artifact.classes,
        preprocessing=artifact.preprocessing,
        golden=[dataclasses.replace(s, probabilities=s.probabilities[::-1]) for s in artifact.golden],
        config={},
        metrics={},
        data_fingerprint="",
        versions={},
    )
    program = start(tmp_path / "base", tmp_path / "tmp")
    assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: "error: the model does not reproduce its golden sample" in program.output, program)
    assert list(program.temporary.iterdir()) == []


def test_a_server_told_to_stop_while_starting_stops(base: Path, tmp_path: Path):
    program = start(base, tmp_path / "tmp")
    wait_until(lambda: any(p.name() == "java" for p in program.tree()), program)
    tree = program.tree()
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(PATIENCE_S) == 0, program.output
    wait_until(lambda: gone(tree), program)
    assert not program.ready
    assert list(program.temporary.iterdir()) == []
