"""`docker run IMAGE serve` with a model folder, for both serving images."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.container.conftest import SERVE, SERVE_CPU, Container, container, docker

from image_classifier.contract.paths import MlPaths
from image_classifier.vision.artifact import load_model

PORT = 8765
# As strict as a container can be run; Docker mounts a tmpfs noexec.
LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp", "--user", "10001:10001", "--cap-drop", "ALL")


def serve_flags(model: Path) -> list[str]:
    return [
        *("--env", f"SAGEMAKER_BIND_TO_PORT={PORT}", "--env", "SAGEMAKER_MODEL_SERVER_WORKERS=1"),
        *("--publish", f"127.0.0.1::{PORT}", "--volume", f"{model}:/opt/ml/model:ro"),
    ]


def connect(server: Container) -> http.client.HTTPConnection:
    host, port = docker("port", server.id, f"{PORT}/tcp").stdout.strip().split(":")
    return http.client.HTTPConnection(host, int(port), timeout=30)


def post(server: Container, body: bytes) -> tuple[int, dict[str, object]]:
    with closing(connect(server)) as connection:
        connection.request("POST", "/invocations", body, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def model(trained: tuple[MlPaths, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, readable for any user."""
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(trained[0].model, folder)
    for path in (folder, *folder.parents[:1], *folder.parents[1:2], *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module", params=[SERVE, SERVE_CPU], ids=["serve", "serve-cpu"])
def image(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(image: str, model: Path) -> Iterator[Container]:
    with container(image, "serve", *serve_flags(model), *LOCKED_DOWN) as started:
        started.wait_for("ready url=")
        yield started


def test_served_probabilities_are_those_of_training(server: Container, model: Path) -> None:
    artifact = load_model(model)
    for sample in artifact.golden:
        status, answer = post(server, sample.image)
        assert status == 200
        got = {row["label"]: row["probability"] for row in answer["predictions"]}  # type: ignore[attr-defined]
        want = dict(zip(artifact.classes, sample.probabilities, strict=True))
        assert got == pytest.approx(want, abs=artifact.manifest.widest_tolerance)


def test_bad_image_is_a_sentence(server: Container) -> None:
    status, answer = post(server, b"not an image")
    assert status == 400
    assert set(answer) == {"error", "hint"}


def test_multi_model_contract_is_neither_claimed_nor_served(server: Container, image: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    assert "com.amazonaws.sagemaker.capabilities.multi-models" not in labels
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    with closing(connect(server)) as connection:
        connection.request("GET", "/models")
        assert connection.getresponse().status >= 400


def test_sigterm_ends_within_two_seconds_and_answers_what_was_asked(server: Container, model: Path) -> None:
    sample = load_model(model).golden[0]
    with closing(connect(server)) as connection:
        connection.request("POST", "/invocations", sample.image, {"Content-Type": "image/jpeg"})
        assert server.stop(2) == 0, server.log  # 137 if it had not ended by itself
        assert connection.getresponse().status == 200


def test_damaged_model_ends_the_container_with_the_reason(image: str, model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged)
    weights = load_model(damaged).weights_path
    weights.write_bytes(weights.read_bytes()[:-1])
    with container(image, "serve", *serve_flags(damaged)) as started:
        assert started.wait() == 1
        assert started.log.startswith("error: ")
        assert weights.name in started.log
        assert "Traceback" not in started.log


def test_the_small_image_asked_for_torch_says_where_it_is(model: Path) -> None:
    with container(SERVE_CPU, "serve", *serve_flags(model), "--env", "CLASSIFIER_ENGINE=torch") as started:
        assert started.wait() == 1
        assert "error: there is no torch here" in started.log
        assert "Traceback" not in started.log.split("error: ", 1)[1]
