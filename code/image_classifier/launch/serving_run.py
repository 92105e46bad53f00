"""The serve command: a model archive or a run -> unpacked, checked, served until told to stop."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.endpoint import PRECISIONS, parse_ready_line, ready_engine
from image_classifier.contract.errors import ConfigError, JobError, JobStopped
from image_classifier.contract.files import open_plain
from image_classifier.contract.machine import require_free_port
from image_classifier.contract.outputs import ACCESS_LOG
from image_classifier.launch import local
from image_classifier.launch.process import Interrupts, Job, follow, follow_until
from image_classifier.launch.progress import Lasting
from image_classifier.launch.runs import Run, Status, create_run, find_run
from image_classifier.launch.view import SILENT, View
from image_classifier.vision import artifact

KIND = "serve"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server that answers. `model` is the artifact's fingerprint, `engine` what computes: `openvino/int8`."""

    run: Run
    job: Job
    url: str
    model: str
    engine: str


def find_archive(model: str, runs_dir: Path) -> Path:
    """The model.tar.gz that `model` means: an archive, a run, or the newest finished training without it.

    A tuning trial's model is packed when it is asked for.

    Raises:
        ConfigError: there is none.
        ArtifactError, PlatformError: it cannot be packed.
    """
    if model and Path(model).is_file():
        return Path(model)
    run = find_run(runs_dir, model) if model else find_run(runs_dir, kind="train", status=Status.COMPLETED)
    if not run.archive.is_file():
        if not (run.paths.model / artifact.MANIFEST).is_file():
            raise ConfigError(f"{run.name} has no model ({run.record().status})", "train one with `deploy.py train`")
        artifact.pack(run.paths.model, run.archive)
    return run.archive


@contextmanager
def serving(
    archive: Path,
    runs_dir: Path,
    interrupts: Interrupts,
    *,
    host: str,
    port: int,
    precision: str = PRECISIONS[0],
    on_line: Callable[[str], None] = lambda line: None,
    starter: local.Starter = local,
    view: View = SILENT,
) -> Iterator[Endpoint]:
    """Serves `archive` within the block; nothing is left running after it.

    Args:
        precision: the number format it computes in, of PRECISIONS.
        on_line: gets the server's log lines until it is ready.

    Raises:
        PlatformError: the port is in use.
        ArtifactError: the archive is damaged or foreign.
        JobError: the server did not become ready; the message is its reason.
        JobStopped: interrupted before it was ready.
    """
    require_free_port(host, port)
    run = create_run(
        runs_dir, KIND, data=str(archive.resolve()), details={"host": host, "port": port, "precision": precision}
    )
    try:
        artifact.unpack(archive, run.paths.model)
        with starter.start_server(run, host=host, port=port, precision=precision, view=view) as job:
            with view.live() as live:
                Lasting(live, "starting the endpoint")
                endpoint = _wait_until_ready(run, job, interrupts, on_line)
            yield endpoint
            stop(job, interrupts)
    except BaseException as error:
        stopped = isinstance(error, (JobStopped, KeyboardInterrupt))
        run.end(Status.STOPPED if stopped else Status.FAILED, failure=str(error))
        raise
    finally:
        shutil.rmtree(run.paths.model, ignore_errors=True)  # 100 MB that the archive has as well
    run.end(Status.STOPPED, exit_code=0)


def serve(
    archive: Path,
    runs_dir: Path,
    *,
    host: str,
    port: int,
    on_line: Callable[[str], None],
    precision: str = PRECISIONS[0],
    starter: local.Starter = local,
    view: View = SILENT,
) -> None:
    """Serves until Ctrl-C or SIGTERM. `on_line` gets every log line, the ready line too. Raises as `serving`."""
    with (
        Interrupts() as interrupts,
        serving(
            archive,
            runs_dir,
            interrupts,
            host=host,
            port=port,
            precision=precision,
            on_line=on_line,
            starter=starter,
            view=view,
        ) as endpoint,
    ):
        view.note(f"requests are logged in {endpoint.run.path / ACCESS_LOG}")
        status = follow(endpoint.job, on_line, interrupts)
        if status != 0 and interrupts.count == 0:
            raise JobError(_reason(endpoint.run, status), f"the log is {endpoint.run.log}")


def stop(job: Job, interrupts: Interrupts) -> None:
    """Asks the server to finish what it is answering, and waits for it."""
    job.stop()
    follow(job, lambda line: None, interrupts)


def _wait_until_ready(run: Run, job: Job, interrupts: Interrupts, on_line: Callable[[str], None]) -> Endpoint:
    found: list[tuple[str, str, str]] = []

    def look(line: str) -> bool:
        on_line(line)
        if ready := parse_ready_line(line):
            found.append((*ready, ready_engine(line)))
        return bool(ready)

    status = follow_until(job, look, interrupts)
    if found:
        return Endpoint(run=run, job=job, url=found[0][0], model=found[0][1], engine=found[0][2])
    if interrupts.count:
        stopped = JobStopped("stopped before the endpoint was ready")
        stopped.exit_code = interrupts.exit_code
        raise stopped
    raise JobError(_reason(run, status or 0), f"the log is {run.log}")


def _reason(run: Run, status: int) -> str:
    with open_plain(run.log, "r", encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[0] if errors else f"the server ended with exit status {status} and gave no reason"
