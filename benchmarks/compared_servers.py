"""The servers of bench_serve.py: ours in each number format, and others, each in an environment of its own."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import stock_server
from benchmarks.load_client import CLASSES, Dialect, Server
from benchmarks.process_costs import of_ours

from image_classifier.contract.endpoint import HOST_VARIABLE, PORT_VARIABLE, PRECISION_VARIABLE, WORKERS_VARIABLE
from image_classifier.serving.server import find_java_home
from image_classifier.vision.gate import BFLOAT16, FLOAT32, INT8

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "code"
BASELINES = Path(__file__).parent / "baselines"
INT8_SERVER, BF16_SERVER, FP32_SERVER = (f"ours in {each}" for each in (INT8, BFLOAT16, FLOAT32))
OURS = {INT8_SERVER: INT8, BF16_SERVER: BFLOAT16, FP32_SERVER: FLOAT32}
STOCK, LIT, BENTO, RAY = "sagemaker-inference as it comes", "LitServe", "BentoML", "Ray Serve"
PACKAGES = {LIT: "litserve==0.2.19", BENTO: "bentoml==1.4.40", RAY: "ray[serve]==2.60.0"}
QUIET = {  # nobody is told of the benchmark
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token is written into HOME
    "OTEL_SDK_DISABLED": "true",
    "DO_NOT_TRACK": "1",
}


def as_it_is(image: bytes) -> bytes:
    return image


def base64_in_json(image: bytes) -> bytes:
    return json.dumps({"image_data": base64.b64encode(image).decode()}).encode()


def read_ours(body: bytes) -> int:
    return CLASSES.index(json.loads(body)["predictions"][0]["label"])


def read_stock(body: bytes) -> int:
    (probabilities,) = json.loads(body)
    return max(range(len(CLASSES)), key=probabilities.__getitem__)


def read_answer(body: bytes) -> int:
    return int(json.loads(body)["answer"])


OUR_DIALECT = Dialect("image/jpeg", as_it_is, read_ours)
STOCK_DIALECT = Dialect("image/jpeg", as_it_is, read_stock)
PLAIN_DIALECT = Dialect("image/jpeg", as_it_is, read_answer)
JSON_DIALECT = Dialect("application/json", base64_in_json, read_answer)


def environment_of(name: str, folder: Path) -> Path:
    """The programs of an environment with nothing but one server's packages, made when it is not there; torch,
    torchvision and Pillow are those that run this.

    Raises:
        CalledProcessError: pip cannot install it.
    """
    home = folder / name.lower().replace(" ", "-")
    done = home / "packages.txt"
    if not done.is_file() or done.read_text() != PACKAGES[name]:
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-q", PACKAGES[name]], check=True)
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "torch_of_the_benchmark.pth").write_text(sysconfig.get_path("purelib") + "\n")
        done.write_text(PACKAGES[name])
    return home / "bin"


def plain_environment() -> dict[str, str]:
    """One thread a process, and as many processes as there are cores."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "JAVA_HOME": str(find_java_home()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        WORKERS_VARIABLE: str(os.cpu_count()),
    }


def start_program(
    command: Sequence[str | Path], folder: Path, port: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """In a session of its own, its log in `folder`."""
    with (folder / f"server-{port}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def start_ours(folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Our server program, as `deploy.py serve` starts it."""
    ours = {
        "SAGEMAKER_BASE_DIR": str(folder),
        HOST_VARIABLE: "127.0.0.1",
        PORT_VARIABLE: str(port),
        "PYTHONPATH": str(SOURCE),
    }
    return start_program(
        [sys.executable, "-m", "image_classifier.serving.entry"], folder, port, {**environment, **ours}
    )


def our_server(folder: Path, port: int, environment: Mapping[str, str]) -> Server:
    """That program, running."""
    return Server(lambda: start_ours(folder, port, environment), port, OUR_DIALECT, of_ours)


def deploy_serve(archive: Path, folder: Path, port: int, precision: str) -> Server:
    """The command that a person gives."""
    words: list[str | Path] = [sys.executable, ROOT / "deploy.py", "serve", archive]
    words += ["--port", str(port), "--precision", precision]
    return Server(lambda: start_program(words, folder, port, os.environ), port, OUR_DIALECT)


def starters(folder: Path, environments: Path, port: int, without: Sequence[str]) -> dict[str, Callable[[], Server]]:
    """What starts each of the servers, on ports from `port` on.

    Args:
        folder: where `distinct_answers.make_model` has made the model.
        environments: where the other servers' environments are, or are made.
        without: those of PACKAGES that are left out.
    """
    environment = plain_environment()
    numbers = {name: str(port + i) for i, name in enumerate((*OURS, STOCK, *PACKAGES))}
    weights, workers = str(folder / "weights.pth"), environment[WORKERS_VARIABLE]
    others = environment | QUIET | {"PYTHONPATH": str(BASELINES), "TMPDIR": "/tmp"}  # noqa: S108  # paths of sockets
    settings = {
        BENTO: {"BENCH_WEIGHTS": weights, "BENCH_WORKERS": workers, "BENTOML_HOME": str(folder / "bento")},
        RAY: {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    }
    bento = ("--working-dir", BASELINES, "--host", "127.0.0.1", "--port")
    dialects = {LIT: JSON_DIALECT, BENTO: PLAIN_DIALECT, RAY: PLAIN_DIALECT}

    def our(name: str) -> Server:
        chosen = environment | {PRECISION_VARIABLE: OURS[name]}
        return our_server(folder / "ours", int(numbers[name]), chosen)

    def stock() -> Server:
        number = int(numbers[STOCK])
        return Server(lambda: stock_server.start(folder / "stock", number, environment), number, STOCK_DIALECT)

    def other(name: str, programs: Path) -> Server:
        commands: dict[str, list[str | Path]] = {
            LIT: [programs / "python", BASELINES / "lit_server.py", numbers[LIT], workers, weights],
            BENTO: [programs / "bentoml", "serve", "bento_server:BentoPhotos", *bento, numbers[BENTO]],
            RAY: [programs / "python", BASELINES / "ray_server.py", numbers[RAY], workers, weights],
        }
        inside = others | settings.get(name, {})
        return Server(
            lambda: start_program(commands[name], folder, int(numbers[name]), inside),
            int(numbers[name]),
            dialects[name],
            pausing=name == RAY,
        )

    taken = [name for name in PACKAGES if name not in without]
    return {
        **{name: partial(our, name) for name in OURS},
        STOCK: stock,
        **{name: partial(other, name, environment_of(name, environments)) for name in taken},
    }
