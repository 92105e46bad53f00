"""Sizes of the two images against the naive build, and how long building and starting them takes.

    python benchmarks/bench_images.py [--times | --sizes]

Times go to results/images.md as ratios (the seconds are printed), sizes to results/image_sizes.md. The naive image is
the same base with the same locks installed by `pip install` in one stage. All sizes are taken in one run, uncompressed,
as `docker image inspect` gives them. Measuring times first empties the build cache, of all projects on this machine.
Needs Docker; PIP_CONF, CA_BUNDLE and BUILD_NETWORK are those of build_and_push.sh.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KINDS = ("train", "serve")
SHARED_LAYERS = ("Debian", "Python and tini", "torch and CUDA, shared")
LAYERS = (*SHARED_LAYERS, "other packages", "our source")
SERVE = "image-classifier-serve:latest"
SMALL = "image-classifier-serve-cpu:latest"
REPEATS = 5
PORT = 18_080
MARK = ROOT / "code" / "image_classifier" / "contract" / "__init__.py"  # in both images
NAIVE = """
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends python3.11-venv python3.11-dev gcc libc6-dev
RUN python3.11 -m venv /opt/app
COPY requirements/KIND.txt /tmp/requirements.txt
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle PIP_CONFIG_FILE=/run/secrets/pip_conf \\
    /opt/app/bin/pip install --quiet --no-cache-dir --require-hashes -r /tmp/requirements.txt
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--times", action="store_true", help="measure the times alone")
    only.add_argument("--sizes", action="store_true", help="measure the sizes alone, which other programs do not sway")
    only.add_argument("--small", action="store_true", help="measure the size of the small serving image alone")
    arguments = parser.parse_args()
    if arguments.small:
        write("image_small.md", "The serving image for CPUs: size", small())
        return
    if not arguments.sizes:
        write("images.md", "The images: times", build_times() + start_times())
    if not arguments.times:
        write("image_sizes.md", "The images: sizes", sizes())


def write(name: str, title: str, lines: Sequence[str]) -> None:
    """Writes a file of results, and prints it."""
    head = [f"# {title}", "", f"`{' '.join(['python', *sys.argv])}`, {os.cpu_count()} cores.", ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text("\n".join([*head, *lines]) + "\n")
    print((RESULTS / name).read_text())


def build_times() -> list[str]:
    """Building both images, against building both naive ones from nothing."""
    docker("builder", "prune", "--all", "--force")
    naive = timed(lambda: [build_naive(kind) for kind in KINDS])
    docker("builder", "prune", "--all", "--force")
    rows = [("from nothing, once", *ratio([timed(build)], [naive]))]
    rows.append((f"nothing changed, {REPEATS} times", *ratio([timed(build) for _ in range(REPEATS)], [naive])))
    before = MARK.read_text()
    seconds = []
    try:
        for _ in range(REPEATS):
            MARK.write_text(f"{before}# {time.time()}\n")
            seconds.append(timed(build))
    finally:
        MARK.write_text(before)
    build()
    rows.append((f"one line of code changed, {REPEATS} times", *ratio(seconds, [naive])))
    return table(("build of both images", "of the naive images' build from nothing: median", "range"), rows)


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """Median and range, against the other's median; the seconds are for the terminal only."""
    print("seconds:", *(f"{value:.1f}" for value in mine), "against", *(f"{value:.1f}" for value in theirs), flush=True)
    other = statistics.median(theirs)
    return f"{statistics.median(mine) / other:.3f}", f"{min(mine) / other:.3f} .. {max(mine) / other:.3f}"


def sizes() -> list[str]:
    """Layers of both pairs of images, and the sums of one beside the naive images'."""
    build(CUDA="12", REPOSITORY_PREFIX="image-classifier-cuda12")
    build()  # last, because deploy.py uses what was built last
    images = {f"{kind}, CUDA 13": f"image-classifier-{kind}:latest" for kind in KINDS}
    images |= {f"{kind}, CUDA 12": f"image-classifier-cuda12-{kind}:latest" for kind in KINDS}
    layers = {name: history(image) for name, image in images.items()}
    total = {name: size(image) for name, image in images.items()}
    rows = [
        (name, *(f"{found[name] / 1e6:.1f}" if name in found else "" for found in layers.values())) for name in LAYERS
    ]
    rows.append(("**all**", *(f"**{found / 1e6:.0f}**" for found in total.values())))
    naive = {f"{kind}, CUDA 13": build_naive(kind) for kind in KINDS}
    rows.append(("naive build, all", *(f"{naive[name] / 1e6:.0f}" if name in naive else "" for name in images)))
    shares = (f"{total[name] / naive[name]:.2f}" if name in naive else "" for name in images)
    rows.append(("share of the naive build", *shares))
    lines = table(("layer, MB", *images), rows)
    libraries = {name: largest_libraries(image) for name, image in images.items() if "serve" in name}
    for name, found in libraries.items():
        lines += table((f"largest libraries of {name}", "MB"), [(path, f"{count / 1e6:.0f}") for path, count in found])
    return lines


def small() -> list[str]:
    """Layers of the serving image for CPUs beside the other's; both are built."""
    layers = {
        "serve-cpu": history(SMALL, tuple(name for name in LAYERS if name != SHARED_LAYERS[-1])),
        "serve": history(SERVE),
    }
    rows = [
        (name, *(f"{found[name] / 1e6:.1f}" if name in found else "" for found in layers.values())) for name in LAYERS
    ]
    rows.append(("**all**", *(f"**{size(image) / 1e6:.0f}**" for image in (SMALL, SERVE))))
    lines = table(("layer, MB", *layers), rows)
    found = largest_libraries(SMALL)
    return lines + table(("largest libraries", "MB"), [(path, f"{count / 1e6:.0f}") for path, count in found])


def largest_libraries(image: str) -> list[tuple[str, int]]:
    """(name, bytes) of the five largest files."""
    find = ["find", "/opt", "-name", "*.so*", "-type", "f", "-printf", "%s %f\\n"]
    listing = docker("run", "--rm", image, *find).splitlines()
    found = sorted(((name, int(count)) for count, name in (line.split() for line in listing)), key=lambda one: -one[1])
    return found[:5]


def history(image: str, layers: Sequence[str] = LAYERS) -> dict[str, int]:
    """Layer -> its bytes. By order: some engines' histories name the commands of other stages."""
    counts = docker("image", "history", "--human=false", "--format", "{{.Size}}", image).split()
    return dict(zip(layers, [int(count) for count in reversed(counts) if int(count)], strict=True))


def build_naive(kind: str) -> int:
    """Bytes of the naive image, which is removed again."""
    tag = f"image-classifier-naive:{kind}"
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as file:
        file.write(NAIVE.replace("KIND", kind))
        file.flush()
        flags = []
        for variable, identity in (("PIP_CONF", "pip_conf"), ("CA_BUNDLE", "ca_bundle")):
            if path := os.environ.get(variable):
                flags += ["--secret", f"id={identity},src={path}"]
        if network := os.environ.get("BUILD_NETWORK"):
            flags += ["--network", network]
        docker("build", *flags, "--file", file.name, "--tag", tag, str(ROOT))
    found = size(tag)
    docker("image", "rm", tag)
    return found


def start_times() -> list[str]:
    """From `docker run` to the first right prediction of a trained model, against importing torch in the same image."""
    sys.path.insert(0, str(ROOT / "code"))
    from image_classifier.vision.artifact import load_model

    with tempfile.TemporaryDirectory() as folder:
        model = train_model(Path(folder))
        sample = load_model(model).golden[0]
        best = load_model(model).classes[max(range(2), key=lambda index: sample.probabilities[index])]
        imports, answers = [], []
        for _ in range(REPEATS):
            imports.append(timed(lambda: docker("run", "--rm", SERVE, "python3", "-c", "import torch")))
            answers.append(first_answer(model, sample.image, best))
    head = ("from `docker run`, in turns", "of `import torch` in the same image: median", "range")
    return table(head, [(f"serve, to the first right answer, {REPEATS} times", *ratio(answers, imports))])


def train_model(folder: Path) -> Path:
    """A model trained on sample images for an epoch."""
    deploy = [sys.executable, str(ROOT / "deploy.py")]
    subprocess.run([*deploy, "sample-data", "data", "--classes", "2", "--images", "8"], cwd=folder, check=True)
    tiny = ["--weights", "none", "--image-size", "224", "--epochs", "1", "--batch-size", "8"]
    subprocess.run([*deploy, "train", *tiny], cwd=folder, check=True)
    (run,) = (folder / "runs").glob("train-*")
    return run / "model"


def first_answer(model: Path, image: bytes, label: str) -> float:
    """Seconds until a fresh server answers with `label`."""
    started = time.perf_counter()
    flags = ["--publish", f"127.0.0.1:{PORT}:8080", "--volume", f"{model}:/opt/ml/model:ro"]
    container = docker("run", "--detach", *flags, SERVE, "serve").strip()
    try:
        while True:
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
                connection.request("POST", "/invocations", image, {"Content-Type": "image/jpeg"})
                if json.loads(connection.getresponse().read())["predictions"][0]["label"] == label:
                    return time.perf_counter() - started
            time.sleep(0.05)
    finally:
        docker("rm", "--force", container)


def build(**settings: str) -> None:
    environment = os.environ | settings
    subprocess.run([ROOT / "build_and_push.sh", "build"], check=True, capture_output=True, env=environment)


def size(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def docker(*arguments: str) -> str:
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"error: docker {arguments[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


if __name__ == "__main__":
    main()
