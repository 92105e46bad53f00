"""Prints how jobs stand and what they left: outcomes, status, logs."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classifier.cli import render
from image_classifier.cli.settings import Settings
from image_classifier.contract.config import parameters
from image_classifier.contract.endpoint import parse_ready_line
from image_classifier.contract.errors import PlatformError
from image_classifier.contract.files import open_plain
from image_classifier.contract.outputs import BEST, REPORT, REPORT_HTML, TRIALS, TUNING_PICTURE, read_suspects
from image_classifier.contract.text import visible
from image_classifier.launch.nearby import other_runs_dirs, where_to_look
from image_classifier.launch.process import POLL_S
from image_classifier.launch.progress import duration
from image_classifier.launch.runs import ACTIVE, Run, Status
from image_classifier.report.before_serving import standing_of_archive, standing_of_run
from image_classifier.report.standing import guessing_in_words, in_words, measured

if TYPE_CHECKING:
    from image_classifier.launch.training_run import Outcome
    from image_classifier.tuning.trials import Found

RESULT_METRICS = {"test:accuracy": "test accuracy", "validation:accuracy": "validation accuracy"}


def announce(settings: Settings) -> None:
    """Says which hyperparameters differ from their defaults, and why."""
    for key, value, origin in settings.items():
        if key.startswith("train.") and origin != "default":
            render.note(f"{key.removeprefix('train.')} = {value}  ({origin})")


def trained(outcome: Outcome) -> None:
    """The outcome of a training: how good, where it lies, what to type next."""
    run, result = outcome.run, outcome.result
    standing = standing_of_run(run.path)
    facts: list[tuple[str, object]] = list(_accuracies(result))
    facts += [("standing", standing["sentence"])] if standing else []
    facts += [
        ("best epoch", f"{result.get('best_epoch', '?')} of {result.get('epochs', '?')}"),
        ("time", duration(outcome.seconds)),
        ("model", shorten(run.archive)),
        ("metrics", shorten(run.paths.output_data)),
        ("log", shorten(run.log)),
    ]
    if (run.paths.output_data / REPORT_HTML).is_file():
        facts.append(("report", shorten(run.paths.output_data / REPORT_HTML)))
    if result.get("unreadable_images"):
        facts.append(("unreadable images", f"{result['unreadable_images']}, see bad_images.json"))
    if (suspects := read_suspects(run.paths.output_data)) and suspects["count"]:
        facts.append(("labels", f"{suspects['count']} of {suspects['images']} likely wrong, see the report"))
    render.facts(facts, title=f"{run.name} Completed")
    if standing is not None and standing["ready"]:
        render.note(f"next: python deploy.py serve {run.typed}")
        return
    warn_of(standing)
    render.note("next: the report says what to do")
    render.note(f"to serve it all the same: python deploy.py serve {run.typed}")


def warn_of(standing: Mapping[str, Any] | None) -> None:
    """A warning line for a model that is not ready to be served, see report/standing.py."""
    if standing is None:
        render.warn("Not known to be better than guessing: there is no report of its training.")
    elif not standing["ready"]:
        render.warn(standing["sentence"])


def _accuracies(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each accuracy of metrics.json with its interval and what guessing gets."""
    for name, label in RESULT_METRICS.items():
        split = name.partition(":")[0]
        metrics = {key: value for key, value in result.get("metrics", {}).items() if key.startswith(f"{split}:")}
        accuracy = measured(metrics, result.get("answered", {}), result.get("epochs", 1))
        if accuracy is not None:
            numbers = in_words(accuracy).partition(" %")[2].lstrip(", ")
            better = {True: "better than ", False: "not better than ", None: ""}[accuracy["better"]]
            beside = "; ".join(part for part in (numbers, f"{better}{guessing_in_words(accuracy)}") if part)
            yield label, f"{accuracy['value']:.4f} ({beside})"


def tuned(found: Found) -> None:
    """The outcome of a search: the trials, the best of them, what to type next."""
    render.table(found.columns, found.rows, title=found.run.name, numbers=found.columns[1:-1])
    for line in found.learned:
        render.note(line)
    facts: list[tuple[str, object]] = [
        ("best trial", found.best_trial),
        (found.objective, f"{found.best_value:.4f}"),
        *((name, value) for name, value in found.best_values.items()),
        ("time", duration(found.seconds)),
        ("best.json", shorten(found.run.path / BEST.name)),
        ("trials", shorten(found.run.path / TRIALS.name)),
        ("picture", shorten(found.run.path / TUNING_PICTURE)),
        ("report", shorten(found.run.path / REPORT_HTML)),
    ]
    standing = REPORT.read_object(found.run.path).get("standing")
    if isinstance(standing, dict):
        facts.append(("standing", standing["sentence"]))
    render.facts(facts, title="Best")
    warn_of(standing if isinstance(standing, dict) else None)
    render.note(f"next: python deploy.py train --data {shorten(Path(found.data))} --best {found.run.typed}")


class ServeView:
    """Shows the server's log, and how to ask it once it is ready."""

    def __init__(self, archive: Path) -> None:
        render.note(f"starting an endpoint for {archive}")
        warn_of(standing_of_archive(archive))

    def line(self, text: str) -> None:
        """Takes in one line of the server's log."""
        ready = parse_ready_line(text)
        if ready is None:
            render.note(text)
            return
        url, model = ready
        print(f"ready {url}", flush=True)
        render.note(f"model {model}")
        render.note("ask it from another terminal, Ctrl-C here stops it:")
        render.note(f"  python deploy.py predict photo.jpg --url {url}")
        render.note(f"  curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg {url}/invocations")


def all_runs(runs: list[Run], runs_dir: Path, *, as_json: bool) -> None:
    """Lists the runs of `runs_dir`, oldest first."""
    if as_json:
        summaries = []
        for run in runs:
            try:
                summaries.append(_summary(run))
            except PlatformError as error:
                render.warn(error.message)
        render.document(summaries)
        return
    if not runs:
        render.note(f"no runs yet in {runs_dir}")
        if other_runs_dirs(runs_dir):
            render.labelled("hint", where_to_look(runs_dir))
        return
    rows = []
    for run in runs:
        try:
            record = run.record()
            rows.append([run.name, record.kind, record.status, duration(record.duration_s), _result(run)])
        except PlatformError as error:
            rows.append([run.name, "", "Damaged", "", error.message])
    render.table(["run", "kind", "status", "time", "result"], rows, numbers=("time",))


def one_run(run: Run, *, as_json: bool) -> None:
    """Shows one run: how it stands, what it was given, what it left."""
    if as_json:
        render.document(_summary(run))
        return
    record = run.record()
    defaults = {param.name: str(param.default) for param in parameters()}
    given = [f"{name}={value}" for name, value in record.config.items() if defaults.get(name) != value]
    facts: list[tuple[str, object]] = [
        ("status", record.status),
        ("failure", record.failure),
        ("result", _result(run) if record.status == Status.COMPLETED else ""),
        ("started", record.started),
        ("time", duration(record.duration_s)),
        ("attempts", record.attempts if record.attempts > 1 else ""),
        ("data", shorten(Path(record.data)) if record.data else ""),
        ("hyperparameters", " ".join(given)),
        ("source", " ".join(part for part in (record.version, record.git) if part)),
        ("folder", shorten(run.path)),
        ("model", shorten(run.archive) if run.archive.exists() else ""),
        ("log", shorten(run.log) if run.log.exists() else ""),
    ]
    render.facts([(name, value) for name, value in facts if value != ""], title=run.name)


def log(run: Run, *, follow: bool) -> None:
    """Prints a run's log; with `follow`, until the job has ended."""
    while follow and not run.log.exists() and run.record().status in ACTIVE:
        time.sleep(POLL_S)
    if not run.log.is_file():
        render.note(f"{run.name} has logged nothing yet")
        return
    with open_plain(run.log, "r", encoding="utf-8", errors="replace") as file:
        while True:
            active = follow and run.record().status in ACTIVE
            for line in file:
                sys.stdout.write(visible(line, keep="\n\t"))
            sys.stdout.flush()
            if not active:
                return
            time.sleep(POLL_S)


def shorten(path: Path) -> str:
    """The path as a person in the working directory would write it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, RuntimeError):  # it lies elsewhere; a name that no file can have; links in a circle
        return str(path)


def _result(run: Run) -> str:
    record = run.record()
    if record.failure:
        return record.failure
    with run.intact():
        if record.status == Status.IN_PROGRESS and "port" in record.details:
            return f"http://{record.details['host']}:{record.details['port']}"
        if best := record.details.get("best"):
            return f"{best['objective']} {best['value']:.4f} in trial {best['trial']}"
    result = run.result()
    metrics, answered = result.get("metrics", {}), result.get("answered", {})
    parts = []
    for name, label in RESULT_METRICS.items():
        if name in metrics:
            counts = answered.get("test" if name.startswith("test:") else "valid")
            beside = f" (guessing {counts['largest_class'] / counts['images']:.4f})" if counts else ""
            parts.append(f"{label} {metrics[name]:.4f}{beside}")
    return ", ".join(parts)


def _summary(run: Run) -> dict[str, Any]:
    record = run.record()
    return {
        "name": run.name,
        "path": str(run.path),
        **dataclasses.asdict(record),
        "seconds": round(record.duration_s, 1),
        "metrics": run.result(),
    }
