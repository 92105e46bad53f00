"""build_and_push.sh with stand-ins for docker and aws that record how they are called, or fail as the real ones do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "build_and_push.sh"
NETWORK = "code/image_classifier/vision/network.py"  # names the file of weights
DIGEST = "sha256:" + "0" * 64
DOCKER = f"""
case "$1" in push) echo "latest: digest: {DIGEST} size: 528";; login) read -r password;; esac
"""
AWS = """
case "$2" in
  get-caller-identity) echo 123456789012 ;;
  get-login-password) echo secret ;;
  describe-images) echo "An error occurred (ImageNotFoundException) when calling DescribeImages" >&2; exit 254 ;;
  describe-repositories) echo "An error occurred (RepositoryNotFoundException) when calling it" >&2; exit 254 ;;
esac
"""
TOOLS = ("bash", "cat", "git", "sed", "tail", "cut", "sha256sum", "xargs", "mkdir", "dirname")


class Checkout:
    """A git checkout with the script, Dockerfiles of a line, and a PATH on which docker and aws are stand-ins."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root / "checkout", root / "bin"
        self.calls = root / "calls"
        self.bin.mkdir(parents=True)
        self.calls.touch()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        (self.bin / "python3").symlink_to(sys.executable)
        for kind in ("train", "serve"):
            (self.root / "docker" / kind).mkdir(parents=True)
            (self.root / "docker" / kind / "Dockerfile").write_text(f"FROM base AS {kind}\n")
        (self.root / "docker" / "shared.Dockerfile").write_text("FROM scratch AS base\n")
        shutil.copy(SCRIPT, self.root)
        (self.root / NETWORK).parent.mkdir(parents=True)
        shutil.copy(SCRIPT.parent / NETWORK, self.root / NETWORK)
        (self.root / ".gitignore").write_text("build/\n")
        self.program("docker", DOCKER)
        self.program("aws", AWS)
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("commit", "-qm", "first")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.check_output(["git", *identity, *arguments], cwd=self.root, text=True).strip()

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{body}')
        path.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": os.environ["HOME"], "AWS_REGION": "eu-central-1"} | variables
        return subprocess.run(
            [self.root / "build_and_push.sh", *arguments], check=False, env=environment, capture_output=True, text=True
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-central-1", "123456789012.dkr.ecr.eu-central-1.amazonaws.com"),
        ("us-gov-west-1", "123456789012.dkr.ecr.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_push_goes_to_the_registry_of_account_region_and_partition(checkout: Checkout, region: str, host: str) -> None:
    done = checkout.run("push", "serve", AWS_REGION=region)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{host}/image-classifier-serve@{DIGEST}"
    assert f"login --username AWS --password-stdin {host}\n" in checkout.calls.read_text()
    assert "scanOnPush=true --image-tag-mutability IMMUTABLE" in checkout.calls.read_text()
    recorded = json.loads((checkout.root / "build" / "images.json").read_text())
    assert recorded["serve"]["uri"] == f"{host}/image-classifier-serve@{DIGEST}"
    assert recorded["serve"]["cuda_major"] == "13"
    assert "secret" not in checkout.calls.read_text()


def test_any_other_registry_needs_no_aws(checkout: Checkout) -> None:
    (checkout.bin / "aws").unlink()
    done = checkout.run("push", REGISTRY="registry.example.com/team", REPOSITORY_PREFIX="ic", CUDA="12")
    assert done.returncode == 0, done.stderr
    revision = checkout.git("rev-parse", "--short=12", "HEAD")
    assert f"docker push registry.example.com/team/ic-train:{revision}-cu12\n" in checkout.calls.read_text()
    assert "CUDA_VARIANT=-cu12 --build-arg CUDA_MAJOR=12" in checkout.calls.read_text()


def test_all_images_are_made_of_their_targets_and_the_small_one_is_of_no_cuda(checkout: Checkout) -> None:
    done = checkout.run("build")
    assert done.returncode == 0, done.stderr
    recorded = json.loads((checkout.root / "build" / "images.json").read_text())
    assert {kind: entry["cuda_major"] for kind, entry in recorded.items()} == {
        "train": "13",
        "serve": "13",
        "serve-cpu": "0",
    }
    calls = checkout.calls.read_text()
    assert calls.count("--target ") == calls.count("--target serve-cpu ") == 1
    assert calls.count("--platform ") == calls.count("--platform linux/amd64 ") == 3
    for kind in recorded:
        assert f"--tag image-classifier-{kind}:latest" in calls
    text = checkout.run("dockerfile", "serve-cpu").stdout
    assert text.endswith("FROM base AS serve\n")
    unknown = checkout.run("build", "serve-gpu")
    assert (unknown.returncode, unknown.stderr) == (
        1,
        "error: there is no image serve-gpu\nhint: the images are train, serve, serve-cpu and serve-arm64\n",
    )


def test_the_image_for_arm64_is_built_when_it_is_named(checkout: Checkout) -> None:
    done = checkout.run("push", "serve-arm64")
    assert done.returncode == 0, done.stderr
    calls = checkout.calls.read_text()
    assert calls.count("docker build ") == calls.count("--target serve-cpu --platform linux/arm64 ") == 1
    recorded = json.loads((checkout.root / "build" / "images.json").read_text())["serve-arm64"]
    assert recorded["uri"].endswith(f"/image-classifier-serve-arm64@{DIGEST}")
    assert recorded["cuda_major"] == "0"


def test_a_machine_that_does_not_run_arm64_is_a_sentence(checkout: Checkout) -> None:
    fails = 'if [[ $1 == build ]]; then echo "exec /bin/sh: exec format error"; exit 1; fi\n'
    checkout.program("docker", fails + DOCKER)
    done = checkout.run("build", "serve-arm64")
    assert done.returncode == 1
    assert "this machine does not run programs for its processor" in done.stderr
    assert "qemu-user-static" in done.stderr


def test_a_changed_tree_is_tagged_by_its_change(checkout: Checkout) -> None:
    def tag() -> str:
        done = checkout.run("build", "train")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().rpartition(":")[2]

    revision = checkout.git("rev-parse", "--short=12", "HEAD")
    clean = tag()
    (checkout.root / "docker" / "new.py").write_text("1\n")
    first = tag()
    (checkout.root / "docker" / "new.py").write_text("2\n")
    second = tag()
    assert clean == revision
    assert first.startswith(f"{revision}-dirty-")
    assert len({clean, first, second}) == 3


def test_a_new_build_forgets_what_was_pushed_before(checkout: Checkout) -> None:
    checkout.run("push", "train")
    (checkout.root / "docker" / "new.py").write_text("1\n")
    checkout.run("build", "train")
    assert "uri" not in json.loads((checkout.root / "build" / "images.json").read_text())["train"]


EXPIRED = 'echo "An error occurred (ExpiredToken) when calling the GetCallerIdentity operation" >&2; exit 254'
NONE = 'echo "Unable to locate credentials. You can configure credentials by running aws configure." >&2; exit 253'
DENIED = 'echo "An error occurred (AccessDeniedException) when calling it: not authorized" >&2; exit 254'


@pytest.mark.parametrize(
    ("program", "body", "sentence"),
    [
        ("aws", EXPIRED, "error: the AWS session has expired"),
        ("aws", NONE, "error: there are no valid AWS credentials"),
        ("aws", DENIED, "error: AWS refuses sts get-caller-identity: An error occurred (AccessDeniedException)"),
        ("aws", None, "error: there is no aws program on this machine"),
        ("docker", None, "error: there is no docker program on this machine"),
        (
            "docker",
            '[[ $1 != version ]] || { echo "Cannot connect"; exit 1; }',
            "error: the Docker engine does not answer",
        ),
        (
            "docker",
            '[[ $1 != build ]] || { echo "no space left"; exit 1; }',
            "error: image-classifier-train could not be",
        ),
        ("docker", '[[ $1 != login ]] || { echo "unauthorized" >&2; exit 1; }', "refuses the login: unauthorized"),
        (
            "docker",
            '[[ $1 != push ]] || { echo "tag invalid: The image tag exists and is immutable" >&2; exit 1; }',
            "exists and its tag is immutable",
        ),
        ("docker", '[[ $1 != push ]] || { echo "denied: token has expired" >&2; exit 1; }', "refuses the push: denied"),
        (
            "docker",
            '[[ $1 != push ]] || { echo "connection reset" >&2; exit 1; }',
            "error: the push failed: connection",
        ),
    ],
)
def test_each_failure_is_one_sentence(checkout: Checkout, program: str, body: str | None, sentence: str) -> None:
    if body is None:
        (checkout.bin / program).unlink()
    else:
        checkout.program(program, body)
    done = checkout.run("push", "train")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("error: ") == 1
    assert done.stderr.count("hint: ") == 1


def test_usage_is_printed_without_a_command(checkout: Checkout) -> None:
    done = checkout.run()
    assert done.returncode == 2
    assert "./build_and_push.sh push" in done.stdout
    assert "set -euo" not in done.stdout


def test_a_setting_that_changes_an_image_changes_its_tag(checkout: Checkout) -> None:
    """A tag is never overwritten in ECR: with one tag for both, the image of the first setting would be used."""
    (checkout.root / "weights").mkdir()
    (checkout.root / "weights" / "resnet50-11ad3fa6.pth").touch()
    settings = ({}, {"IMAGENET_WEIGHTS": "file"}, {"IMAGENET_WEIGHTS": "file", "TRIM": "--stubs", "CUDA": "12"})
    revision = checkout.git("rev-parse", "--short=12", "HEAD")
    tags = [checkout.run("build", "train", **setting).stdout.strip().rpartition(":")[2] for setting in settings]
    assert tags == [revision, f"{revision}-imagenet", f"{revision}-imagenet--stubs-cu12"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            '#20 ERROR: Get "https://download.pytorch.org/models/resnet50-11ad3fa6.pth": dial tcp: no such host',
            "error: the ImageNet weights cannot be downloaded from download.pytorch.org\n"
            "hint: put resnet50-11ad3fa6.pth into weights/ and set IMAGENET_WEIGHTS=file\n",
        ),
        (
            "#11 3.996 error: resnet50-11ad3fa6.pth is damaged",
            "error: image-classifier-train could not be built: resnet50-11ad3fa6.pth is damaged\n"
            "hint: the whole log is build/train.log\n",
        ),
    ],
)
def test_a_build_that_fails_for_a_known_reason_says_it_in_a_sentence(
    checkout: Checkout, log: str, message: str
) -> None:
    checkout.program("docker", f"[[ $1 != build ]] || {{ echo '{log}'; exit 1; }}")
    done = checkout.run("build", "train", IMAGENET_WEIGHTS="download")
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize(
    ("weights", "message"), [("file", "there is no weights/resnet50-"), ("yes", "IMAGENET_WEIGHTS is yes")]
)
def test_weights_that_are_not_there_are_a_sentence(checkout: Checkout, weights: str, message: str) -> None:
    done = checkout.run("build", IMAGENET_WEIGHTS=weights)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert "docker" not in checkout.calls.read_text()
