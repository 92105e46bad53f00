"""The serving image for arm64 processors, where it was built; under qemu it takes minutes."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from tests.container.conftest import container, docker

from image_classifier.contract.paths import MlPaths

SERVE_ARM64 = "image-classifier-serve-arm64:latest"
PATIENCE_S = 900


@pytest.fixture(scope="module")
def arm64(engine: None) -> str:
    """Skips where the image is not built, or nothing on this machine runs its programs."""
    if docker("image", "inspect", SERVE_ARM64, check=False).returncode != 0:
        pytest.skip("the image for arm64 is not built (./build_and_push.sh build serve-arm64)")
    if docker("run", "--rm", "--platform", "linux/arm64", SERVE_ARM64, "true", check=False).returncode != 0:
        pytest.skip("this machine does not run programs for arm64 (qemu-user-static)")
    return SERVE_ARM64


def flags(model: Path, **variables: str) -> list[str]:
    slow = {"SAGEMAKER_STARTUP_TIMEOUT": str(PATIENCE_S), "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    slow["SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"] = "300"
    settings = [f"--env={name}={value}" for name, value in (slow | variables).items()]
    return [*settings, "--platform=linux/arm64", f"--volume={model}:/opt/ml/model:ro", "--publish=127.0.0.1::8080"]


def test_a_model_is_served_on_arm64(arm64: str, trained: tuple[MlPaths, str], data: Path) -> None:
    with container(arm64, "serve", *flags(trained[0].model)) as server:
        server.wait_for("ready url=", PATIENCE_S)  # the golden samples were reproduced
        address = docker("port", server.id, "8080/tcp").stdout.strip()
        photo = next((data / "test").rglob("*.jpg"))
        with urllib.request.urlopen(f"http://{address}/invocations", photo.read_bytes(), timeout=300) as answer:
            assert answer.status == 200
            assert answer.headers["X-Engine"].startswith("openvino/float32")
        assert server.stop(60) == 0


def test_arm64_does_not_serve_float16_by_the_name_of_bfloat16(arm64: str, trained: tuple[MlPaths, str]) -> None:
    with container(arm64, "serve", *flags(trained[0].model, CLASSIFIER_SERVE_PRECISION="bfloat16")) as server:
        assert server.wait() != 0
        assert "OpenVINO cannot compute bfloat16 on this processor" in server.log
