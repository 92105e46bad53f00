"""What can be said of the images without building them."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "docker/shared.Dockerfile"
KINDS = ("train", "serve")
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
BIN = Path(sys.executable).parent


def dockerfile(kind: str) -> str:
    """The whole Dockerfile of an image."""
    return subprocess.check_output([ROOT / "build_and_push.sh", "dockerfile", kind], text=True)


def test_the_small_serving_image_has_the_versions_of_the_large_one_and_no_torch() -> None:
    def pins(name: str) -> set[str]:
        lock = (ROOT / "requirements" / f"{name}.txt").read_text()
        return set(re.findall(r"^([a-z0-9.-]+==[^ \n]+)", lock, flags=re.MULTILINE))

    small = pins("serve-cpu")
    assert small <= pins("serve")
    assert not [pin for pin in small if re.match("torch|nvidia|triton|cuda", pin)]
    assert "FROM base AS serve-cpu" in dockerfile("serve-cpu") == dockerfile("serve")
    assert dockerfile("serve").rindex("AS serve-cpu") < dockerfile("serve").rindex("FROM runtime AS serve")


def test_both_images_share_their_first_stages() -> None:
    shared = SHARED.read_text()
    assert "FROM torch AS packages" in shared
    for kind in KINDS:
        assert dockerfile(kind) == shared + (ROOT / "docker" / kind / "Dockerfile").read_text()


def test_hadolint_and_shellcheck_find_nothing(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).write_text(dockerfile(kind))
    for command in (
        ["hadolint", *(tmp_path / kind for kind in KINDS)],
        [
            "shellcheck",
            ROOT / "build_and_push.sh",
            ROOT / "docker/ci-engine.sh",
            ROOT / "docker/train/train",
            *(ROOT / "docker/serve").glob("[a-z]*"),
        ],
    ):
        program = BIN / str(command[0])
        if not program.exists():
            pytest.skip(f"{command[0]} is not installed")
        done = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_locks_are_hashed_and_name_no_index(path: Path) -> None:
    lock = path.read_text()
    assert "://" not in lock
    pins = re.split(r"^(?=[a-z])", lock, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in pin and "==" in pin for pin in pins)


@pytest.mark.parametrize("variant", ["", "-cu12"])
@pytest.mark.parametrize("kind", ["train", "serve"])
def test_an_image_lock_agrees_with_the_shared_layer(kind: str, variant: str) -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / f"{name}{variant}.txt").read_text()
        return set(re.findall(r"^([a-z0-9.-]+==[^ \n]+)", text, flags=re.MULTILINE))

    assert pins("torch") <= pins(kind)


@pytest.mark.parametrize(("variant", "major"), [("", "13"), ("-cu12", "12")])
def test_a_variant_is_of_its_cuda_and_its_torch_was_examined_for_the_stubs(variant: str, major: str) -> None:
    lock = (ROOT / "requirements" / f"torch{variant}.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, flags=re.MULTILINE))
    assert pins["torch"] in runpy.run_path(str(ROOT / "docker" / "trim.py"))["EXAMINED"]
    suffixes = {name.rpartition("-")[2] for name in pins if re.search(r"-cu\d+$", name)}
    assert suffixes == {f"cu{major}"}
    runtime = next(version for name, version in pins.items() if name.startswith("nvidia-cuda-runtime"))
    assert runtime.partition(".")[0] == major
    for kind in KINDS:
        names = re.findall(r"COPY (requirements/\S+)", dockerfile(kind))
        assert len(names) == {"train": 2, "serve": 3}[kind]
        assert all((ROOT / name.replace("${CUDA_VARIANT}", variant)).is_file() for name in names)
