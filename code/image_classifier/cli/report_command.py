"""The report command: a job's or a search's report, made again from what it saved."""

from __future__ import annotations

import shutil
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path

from image_classifier.cli import render
from image_classifier.cli.settings import Settings
from image_classifier.cli.show_jobs import shorten
from image_classifier.contract.errors import ConfigError, DataError, PlatformError
from image_classifier.contract.outputs import REPORT
from image_classifier.launch.nearby import where_to_look
from image_classifier.launch.runs import find_run, list_runs
from image_classifier.report import write_report
from image_classifier.report.sources import locate

KINDS = ("train", "tune")
S3 = "s3://"
FETCHED = "from-s3"  # below the runs


def report(settings: Settings, text: str, *, as_json: bool, browse: bool) -> None:
    """Writes report.html and report.json where the job keeps its output, and says where.

    Args:
        text: a run, or any folder with a job's output, such as a downloaded and unpacked output.tar.gz; `s3://...` of
            such a folder or archive, which is copied below the runs first; empty for the newest training or tuning run.
        as_json: print the facts instead.
        browse: open the page in the browser of this machine.

    Raises:
        ConfigError: there is no such run.
        DataError: the folder holds no output of a job.
        PlatformError: the report cannot be written, or S3 cannot be read.
    """
    runs_dir = Path(settings.general.runs_dir)
    folder = _fetched(settings, text, runs_dir / FETCHED) if text.startswith(S3) else folder_of(runs_dir, text)
    path = write_report(folder)
    if as_json:
        render.document(REPORT.read(path.parent))
    else:
        render.facts([("report", shorten(path))])
    if browse and not webbrowser.open(path.resolve().as_uri()):
        render.warn("there is no browser on this machine: copy the file to one that has it, it needs no other file")


def _fetched(settings: Settings, uri: str, parent: Path) -> Path:
    """A job's output in S3 as a folder of this machine, in place of what an earlier call fetched of the same job."""
    from image_classifier.sagemaker.fetch import fetch, job_of

    folder = parent / job_of(uri)
    new_folders = [each for each in (parent, parent.parent) if not each.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=parent) as temporary:
            new = Path(temporary) / folder.name
            new.mkdir()
            fetch(settings.sagemaker, uri, new)
            try:
                locate(new)
            except DataError:
                raise DataError(
                    f"{uri} holds no output of a training job", "tensors are for `deploy.py rules`"
                ) from None
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
    finally:
        for each in new_folders:  # nothing stays of a call that fetched nothing
            with suppress(OSError):
                each.rmdir()
    return folder


def folder_of(runs_dir: Path, text: str) -> Path:
    """The folder that `text` names: itself, a run's, or the newest training's or search's.

    Raises:
        ConfigError: there is no such run.
    """
    if text:
        return Path(text) if Path(text).is_dir() else find_run(runs_dir, text).path
    for run in reversed(list_runs(runs_dir)):
        with suppress(PlatformError):  # a damaged record: `status` names it
            if run.record().kind in KINDS:
                return run.path
    raise ConfigError(f"there is no train or tune run in {runs_dir}", where_to_look(runs_dir))
