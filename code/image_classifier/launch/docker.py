"""Jobs in the two images instead of processes: the same run folders, mounted where SageMaker puts /opt/ml.

The Docker client runs under the same supervisor as a local job and passes SIGTERM on to the container, so stopping,
logs and exit codes are those of `local`. A container does not end with its client: the supervisor removes it. Should
that be killed too, the container is found by its label before the run is started again. It runs as this user, so that
the run folder stays ours, and with no more rights than that: no capabilities, none to be gained, nothing to write to
but its mounts and a /tmp of its own, and no network for a training that has nothing to fetch.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from image_classifier.contract.config import NAMED_WEIGHTS, TrainConfig
from image_classifier.contract.endpoint import ACCESS_LOG_VARIABLE, PORT_VARIABLE, PRECISION_VARIABLE, PRECISIONS
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.installation import SOURCE, require_checkout
from image_classifier.contract.machine import require_free_port, usable_cores
from image_classifier.contract.outputs import ACCESS_LOG
from image_classifier.contract.paths import DEFAULT_BASE_DIR, FEATURES_VARIABLE, MlPaths
from image_classifier.contract.shared_memory import container_bytes
from image_classifier.launch import local
from image_classifier.launch.process import Job
from image_classifier.launch.runs import PRIVATE, Run
from image_classifier.launch.view import SILENT, View

IMAGES_FILE = SOURCE.parent / "build" / "images.json"  # what build_and_push.sh built last
_LOGS_INSIDE = Path(DEFAULT_BASE_DIR) / "logs"
RUN_LABEL = "image-classifier.run"  # the run's folder
REMOVE = ("rm", "--force", "--volumes")
CONFINED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
UNCHANGED = ("--read-only", "--tmpfs", "/tmp")  # noqa: S108  # the image is as it was built; Docker's tmpfs runs no programs
Kind = Literal["train", "serve"]


def require_images() -> None:
    """Raises PlatformError when there is no Docker, no engine, or no built image."""
    for kind in ("train", "serve"):
        image(kind)


def image(kind: Kind) -> str:
    """The image that build_and_push.sh built last. Raises PlatformError when it is not there."""
    require_checkout("the target docker runs images that are built in")
    hint = "build the images with `make build`"
    if shutil.which("docker") is None:
        raise PlatformError("there is no docker program on this machine", "install Docker, or use --target local")
    if _docker("version", "--format", "{{.Server.Version}}").returncode != 0:
        raise PlatformError("the Docker engine does not answer", "start it, or use --target local")
    try:
        name = str(json.loads(IMAGES_FILE.read_text(encoding="utf-8"))[kind]["image"])
    except FileNotFoundError:
        raise PlatformError("the images have not been built", hint) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise PlatformError(f"{IMAGES_FILE} does not name the {kind} image", hint) from None
    if _docker("image", "inspect", name).returncode != 0:
        raise PlatformError(f"the image {name} is not on this machine", hint)
    return name


def start_training(run: Run, *, share: int = 1, view: View = SILENT) -> Job:
    """`docker run IMAGE train` on a prepared run folder. Arguments and errors as of `local.start_training`."""
    local.clear_attempt(run)
    inside, threads = MlPaths(base=DEFAULT_BASE_DIR), max(1, usable_cores() // share)
    mounts = [
        _mount(run.paths.config, inside.config, "ro"),
        *(
            _mount(channel.resolve(), inside.channel(channel.name), "ro")
            for channel in sorted(run.paths.data.iterdir())
        ),
        _mount(run.paths.checkpoints, inside.checkpoints),
        _mount(run.paths.model, inside.model),
        _mount(run.paths.output, inside.output),
    ]
    weights = run.record().config.get("weights", "")
    if weights and weights not in NAMED_WEIGHTS:
        mounts.append(_mount(Path(weights), Path(weights), "ro"))
    config = TrainConfig.from_hyperparameters(run.record().config)
    shared = container_bytes(config.batch_size, config.image_size, config.workers)
    # ImageNet's weights are downloaded into the image's folder for them, unless they were built in
    closed = () if weights == "imagenet" else (*UNCHANGED, "--network", "none")
    threads_flag = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS') or threads}"
    kept = _kept_features(run, inside.base / "features")
    return _start(run, "train", [*mounts, *kept, *closed, "--env", threads_flag, "--shm-size", str(shared)], view)


def start_server(run: Run, *, host: str, port: int, precision: str = PRECISIONS[0], view: View = SILENT) -> Job:
    """`docker run IMAGE serve` on `<run>/model`. Raises PlatformError when the port is taken."""
    require_free_port(host, port)
    mounts = [
        _mount(run.paths.model, MlPaths(base=DEFAULT_BASE_DIR).model, "ro"),
        _mount((run.path / ACCESS_LOG).parent, _LOGS_INSIDE),
    ]
    log = _LOGS_INSIDE / Path(ACCESS_LOG).name
    settings = {PORT_VARIABLE: port, PRECISION_VARIABLE: precision, ACCESS_LOG_VARIABLE: log}
    given = [f"--env={name}={value}" for name, value in settings.items()]
    return _start(run, "serve", [*mounts, *UNCHANGED, "--publish", f"{host}:{port}:{port}", *given], view)


def _start(run: Run, kind: Kind, flags: list[str], view: View) -> Job:
    name = f"classifier-{kind}-{secrets.token_hex(6)}"
    label = f"{RUN_LABEL}={run.path}"
    if left := _docker("ps", "--all", "--quiet", "--filter", f"label={label}").stdout.split():
        view.warn(f"an earlier start of {run.name} had left its container running: it is removed")
        _docker(*REMOVE, *left)
    user = f"{os.getuid()}:{os.getgid()}"
    own = ["--rm", "--name", name, "--label", label, "--user", user, *CONFINED]
    command = ["docker", "run", *own, *_gpu_flags(), *flags, image(kind), kind]
    job = Job.start(command, env=os.environ, cwd=run.path, log=run.log, after=["docker", *REMOVE, name])
    run.begin(job.pid)
    return job


def _gpu_flags() -> list[str]:
    """All GPUs, where Docker can hand them to a container."""
    runtimes = _docker("info", "--format", "{{json .Runtimes}}").stdout
    return ["--gpus", "all"] if '"nvidia"' in runtimes and shutil.which("nvidia-smi") else []


def _kept_features(run: Run, target: Path) -> list[str]:
    """The flags that give a container the features of the jobs before it; none where no folder can be made for them."""
    folder = local.features_folder(run)
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    except OSError:
        return []
    return [_mount(folder, target), "--env", f"{FEATURES_VARIABLE}={target}"]


def _mount(source: Path, target: Path, mode: Literal["ro", "rw"] = "rw") -> str:
    """`--mount`, whose fields are a line of CSV: unlike `--volume` it takes any name, with colons and commas too."""
    fields = ["type=bind", f"source={source.resolve()}", f"target={target}", *(["readonly"] if mode == "ro" else [])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return f"--mount={line.getvalue()}"


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
