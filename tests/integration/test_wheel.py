"""The wheel: what `pip install .` gives is tried from a clean folder, as somebody would who never saw the checkout."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from image_classifier.contract.installation import EXTRAS
from image_classifier.vision.artifact import load_model, pack

ROOT = Path(__file__).parents[2]
PACKAGES = Path(next(path for path in site.getsitepackages() if (Path(path) / "click").is_dir()))
CHECKOUT = re.compile(r"deploy\.py")
# Of [train]: by these names they lie among the packages. The rest is what `.[serve]` gives.
TRAINING = ("torch", "torchvision", "sagemaker_training", "smdebug")


def run(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with this test's environment, but without what points to the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from a copy: the build leaves files beside what it reads."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("code", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "built"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "deploy.py"):
        shutil.copy2(ROOT / name, copy)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    done = run(*pip, "--wheel-dir", copy / "dist", copy, folder=copy)
    assert done.returncode == 0, done.stderr
    (made,) = (copy / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`image-classifier` in an environment of its own that has what `.[serve]` brings, by links, and no trainer."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", with_pip=False)
    (place / "packages").mkdir()
    for path in PACKAGES.iterdir():
        if path.name.partition("-")[0].partition(".")[0] not in TRAINING:
            (place / "packages" / path.name).symlink_to(path)
    python = place / "venv" / "bin" / "python"
    done = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=place)
    (Path(done.stdout.strip()) / "packages.pth").write_text(f"{place / 'packages'}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    done = run(*pip, wheel, folder=place)
    assert done.returncode == 0, done.stderr
    for program in ("multi-model-server", "train"):
        if (Path(sys.executable).parent / program).exists():
            (python.parent / program).symlink_to(Path(sys.executable).parent / program)
    return python.parent / "image-classifier"


@pytest.fixture(scope="module")
def data(command: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sample images, made by the command itself."""
    folder = tmp_path_factory.mktemp("clean")
    done = run(command, "sample-data", "data", "--classes", "2", "--images", "12", "--size", "40", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "next: image-classifier train --data data" in done.stderr
    return folder / "data"


def test_the_wheel_holds_the_package_and_what_it_reads_of_the_checkout(wheel: Path) -> None:
    source = ROOT / "code" / "image_classifier"
    wanted = {
        f"image_classifier/{path.relative_to(source)}"
        for path in source.rglob("*")
        if path.is_file() and not {"__pycache__", "built"} & set(path.parts)  # neither is of the checkout
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        train = archive.read("image_classifier/shipped/train.py")
        policy = archive.read("image_classifier/shipped/docs/iam-policy.json")
    assert wanted <= held
    assert {name.split("/")[1] for name in held - wanted} == {"shipped"}
    assert train == (ROOT / "code" / "train.py").read_bytes()
    assert policy == (ROOT / "docs" / "iam-policy.json").read_bytes()


def asked_for(*names: str) -> set[str]:
    """What requirements/*.in ask for, with what they include."""
    found: set[str] = set()
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.in").read_text().splitlines():
            text = line.partition("#")[0].strip()
            if text.startswith("-r "):
                found |= asked_for(text.removeprefix("-r ").removesuffix(".in"))
            elif text:
                found.add(text)
    return found


def test_the_extras_ask_for_what_the_requirements_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base, extras = set(project["dependencies"]), {k: set(v) for k, v in project["optional-dependencies"].items()}
    assert base | extras["aws"] == asked_for("deploy")
    assert base | extras["serve"] == asked_for("serve-cpu") | base
    assert base | extras["train"] == asked_for("train") | base
    assert not base & (extras["serve"] | extras["train"] | extras["aws"])
    assert extras["all"] == {f"{project['name']}[train,serve,aws]"}
    assert set(EXTRAS) == set(extras) - {"all", "parquet"}  # a list that is met asks for pyarrow by its name


def test_every_page_of_help_names_the_command_as_it_is_typed(command: Path, tmp_path: Path) -> None:
    pages = [run(command, *words, "--help", folder=tmp_path).stdout for words in ((), ("train",), ("serve",))]
    assert all(page.startswith("Usage: image-classifier") for page in pages)
    assert [page for page in pages if CHECKOUT.search(page)] == []


@pytest.mark.parametrize("words", [("train", "--weights", "none"), ("tune",), ("demo",)])
def test_without_the_trainer_one_sentence_and_the_command_that_brings_it(
    command: Path, data: Path, wheel: Path, words: tuple[str, ...]
) -> None:
    where = () if words == ("demo",) else ("--data", data)
    done = run(command, *words, *where, folder=data.parent)
    error, hint = done.stderr.splitlines()[-2:]
    assert done.returncode == 1
    assert error == "error: training on this machine needs torch, which is not installed here"
    assert hint == (
        f"hint: {command.with_name('python')} -m pip install 'sagemaker-image-classifier[train] @ file://{wheel}'"
    )
    assert sorted(path.name for path in data.parent.iterdir()) == ["data"]


def test_what_needs_the_checkout_says_so(command: Path, data: Path) -> None:
    done = run(command, "--target", "docker", "train", "--data", data, folder=data.parent)
    assert done.returncode == 1
    assert "a checkout of the repository, and image-classifier was installed without one" in done.stderr


def test_a_model_is_served_evaluated_exported_and_loaded_without_a_trainer(
    command: Path, data: Path, model_dir: Path, tmp_path: Path
) -> None:
    pack(model_dir, tmp_path / "model.tar.gz")
    for sample, label in zip(load_model(model_dir).golden, load_model(model_dir).classes, strict=False):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / sample.name).write_bytes(sample.image)
    evaluated = run(command, "evaluate", "photos", "model.tar.gz", "--json", folder=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert '"images": 3' in evaluated.stdout

    exported = run(command, "export", "model.tar.gz", folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "model.onnx").is_file()
    refused = run(command, "export", "model.tar.gz", "--format", "torchscript", folder=tmp_path)
    assert "hint: export onnx, or " in refused.stderr
    assert "pip install" in refused.stderr

    program = (
        "import image_classifier as ic\n"
        "from image_classifier import *\n"
        "answer = load('model.tar.gz').predict('photos/daisy/0.jpg')\n"
        "assert isinstance(answer, Prediction)\n"
        "assert dir(ic) == ['LoadedModel', 'Prediction', '__version__', 'load']\n"
        "print(answer.label)"
    )
    loaded = run(command.with_name("python"), "-c", program, folder=tmp_path)
    assert loaded.stdout.strip() in load_model(model_dir).classes, loaded.stderr


def test_with_the_trainer_it_trains_and_the_report_names_the_command(command: Path, data: Path, tmp_path: Path) -> None:
    size = ("--image-size", "32", "--epochs", "1", "--batch-size", "8", "--weights", "none")
    done = run(command, "train", "--data", data, *size, folder=tmp_path, PYTHONPATH=str(PACKAGES))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("train-*")
    page = (folder / "output" / "data" / "report.html").read_text(encoding="utf-8")
    assert "image-classifier" in page + done.stderr
    assert CHECKOUT.search(page + done.stderr) is None
    assert (folder / "code" / "train.py").read_bytes() == (ROOT / "code" / "train.py").read_bytes()
