"""`build_and_push.sh push` against a real registry server and a server that speaks ECR's API, with tiny images."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import bcrypt
import boto3
import pytest
from moto.server import ThreadedMotoServer
from tests.container.conftest import ROOT, docker

ACCOUNT, REGION = "123456789012", "eu-central-1"
PASSWORD = f"{ACCOUNT}-auth-token"  # what moto's ECR hands out
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}/storage}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host:port of a registry that asks for a password, as ECR does."""
    program = shutil.which("docker-registry", path=f"{os.environ['PATH']}:/usr/bin")
    if program is None:
        pytest.skip("there is no docker-registry program (Debian's package of that name)")
    root = tmp_path_factory.mktemp("registry")
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    (root / "htpasswd").write_text(f"AWS:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    (root / "config.yml").write_text(CONFIG.format(root=root, port=port))
    with (root / "log").open("w") as log:
        server = subprocess.Popen([program, "serve", root / "config.yml"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def ecr() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def environment(engine: None, tmp_path: Path, ecr: str, registry: str) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": ecr, "AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "DOCKER_CONFIG": str(tmp_path / "docker"), "REPOSITORY_PREFIX": "tiny", "ECR_ENDPOINT": registry,
    }  # fmt: skip


NETWORK = "code/image_classifier/vision/network.py"  # names the file of weights


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A git checkout with the script and images of one file."""
    root = tmp_path / "checkout"
    for kind in ("train", "serve"):
        (root / "docker" / kind).mkdir(parents=True)
        (root / "docker" / kind / "Dockerfile").write_text(
            "FROM base AS serve-cpu\nCOPY build_and_push.sh /\nFROM serve-cpu\n"
        )
    (root / "docker" / "shared.Dockerfile").write_text("FROM scratch AS base\n")
    shutil.copy(ROOT / "build_and_push.sh", root)
    (root / NETWORK).parent.mkdir(parents=True)
    shutil.copy(ROOT / NETWORK, root / NETWORK)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "1"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    yield root
    tags = docker("image", "ls", "--filter", "reference=*tiny-*", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    tags += docker(
        "image", "ls", "--filter", "reference=*/tiny-*", "--format", "{{.Repository}}:{{.Tag}}"
    ).stdout.split()
    if tags:
        docker("image", "rm", "--force", *tags, check=False)


def push(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [checkout / "build_and_push.sh", "push"]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


def test_pushed_images_can_be_pulled_by_the_digest_that_is_printed(
    checkout: Path, environment: dict[str, str], ecr: str, registry: str
) -> None:
    done = push(checkout, environment)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((checkout / "build" / "images.json").read_text())
    for kind in ("train", "serve", "serve-cpu"):
        uri = recorded[kind]["uri"]
        assert uri in done.stdout
        assert uri.startswith(f"{registry}/tiny-{kind}@sha256:")
        pulled = subprocess.run(["docker", "pull", uri], check=False, env=environment, capture_output=True, text=True)
        assert pulled.returncode == 0, pulled.stderr
    client = boto3.client("ecr", region_name=REGION, endpoint_url=ecr, aws_access_key_id="k", aws_secret_access_key="s")
    for repository in client.describe_repositories(repositoryNames=["tiny-train", "tiny-serve", "tiny-serve-cpu"])[
        "repositories"
    ]:
        assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
        assert repository["imageTagMutability"] == "IMMUTABLE"
    again = push(checkout, environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_a_tag_that_is_in_ecr_is_not_pushed_again(checkout: Path, environment: dict[str, str], ecr: str) -> None:
    assert push(checkout, environment).returncode == 0
    tag = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], cwd=checkout, text=True).strip()
    client = boto3.client("ecr", region_name=REGION, endpoint_url=ecr, aws_access_key_id="k", aws_secret_access_key="s")
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []})
    for kind in ("train", "serve", "serve-cpu"):
        client.put_image(repositoryName=f"tiny-{kind}", imageManifest=manifest, imageTag=tag)
    done = push(checkout, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is in the registry already") == 3
    found = client.describe_images(repositoryName="tiny-serve-cpu", imageIds=[{"imageTag": tag}])["imageDetails"][0]
    assert done.stdout.splitlines()[-1].endswith(f"/tiny-serve-cpu@{found['imageDigest']}")


def test_a_registry_that_does_not_take_the_password_is_a_sentence(
    checkout: Path, environment: dict[str, str], registry: str
) -> None:
    done = push(checkout, environment | {"REGISTRY": registry})
    assert done.returncode == 1
    assert f"error: {registry} refuses the push: " in done.stderr
    assert f"hint: log in again: docker login {registry}" in done.stderr
