"""Prints what is particular to runs on AWS: endpoints, what delete did, what doctor found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from image_classifier.cli import render
from image_classifier.cli.settings import Settings

if TYPE_CHECKING:
    from image_classifier.launch.runs import Run
    from image_classifier.sagemaker.delete import Deleted
    from image_classifier.sagemaker.doctor import Check


def served(settings: Settings) -> None:
    """How to ask the endpoint, and how to get rid of it."""
    endpoint = settings.sagemaker.endpoint
    print(f"ready {endpoint}", flush=True)
    render.note(f"ask it:          python deploy.py --target sagemaker predict photo.jpg  (endpoint {endpoint})")
    render.note("stop paying:     python deploy.py delete RUN  (`status` lists the runs)")


def refreshed(runs: list[Run], settings: Settings) -> list[Run]:
    """`runs`, those under way on AWS brought up to date. Loads the SDK only when there are any."""
    if any(run.is_active_remotely for run in runs):
        from image_classifier.sagemaker.status import refresh

        refresh(runs, settings.sagemaker)
    return runs


def deletion(run: Run, settings: Settings, *, yes: bool) -> None:
    """Asks, removes what a run made, and lists what is gone and what is left."""
    import sys

    import click

    from image_classifier.contract.errors import ConfigError, JobStopped
    from image_classifier.sagemaker import remote
    from image_classifier.sagemaker.delete import delete

    if not run.is_remote:
        raise ConfigError(f"{run.name} ran on this machine", f"remove its folder: {run.path}")
    made = remote.resources(run)
    for kind, name in made:
        render.note(f"{kind}: {name}")
    if not made:
        render.note(f"{run.name} has nothing left on AWS")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask on", "give --yes to remove these")
        if not click.confirm("Remove these?", err=True):
            raise JobStopped("nothing was removed")
    deleted(delete(remote.session_of(run, settings.sagemaker), run))


def deleted(what: Deleted) -> None:
    """What is gone and what is left."""
    rows = [("removed", line) for line in what.removed] + [("left", line) for line in what.left]
    render.table(["", "what"], rows)


def checks(found: Iterable[Check], *, as_json: bool) -> int:
    """What doctor found, each as soon as it is known; 1 when something has to be mended."""
    failed = False
    documents = []
    for check in found:
        failed = failed or check.state == "failed"
        if as_json:
            documents.append({"name": check.name, "state": check.state, "detail": check.detail, "hint": check.hint})
            continue
        print(f"{check.state.ljust(7)}  {check.name}: {check.detail}", flush=True)
        if check.hint and check.state != "ok":
            print(f"         hint: {check.hint}", flush=True)
    if as_json:
        render.document(documents)
    return int(failed)


def batch(sources: tuple[str, ...], model: str, settings: Settings, *, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Asks about many images with one batch job, and prints the answers."""
    from image_classifier.cli import show_data
    from image_classifier.cli.targets import trained_by
    from image_classifier.launch import serving_run as local
    from image_classifier.sagemaker import batch as job

    archive = local.find_archive(model, Path(settings.general.runs_dir))
    answers = job.predict(settings, sources, archive, trained_by(archive), yes=yes, dry_run=dry_run)
    return 0 if answers is None else show_data.predictions("the batch job", iter(answers), as_json=as_json)
