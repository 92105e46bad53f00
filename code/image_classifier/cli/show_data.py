"""Prints what check, predict and config found."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from image_classifier.cli import render
from image_classifier.cli.settings import Settings
from image_classifier.contract.config import TrainConfig
from image_classifier.contract.files import write_text
from image_classifier.contract.paths import path_here
from image_classifier.launch.client import Answer
from image_classifier.launch.progress import Counting
from image_classifier.report.check_page import render_check
from image_classifier.vision.check import CheckReport, check_dataset
from image_classifier.vision.findings import DataFinding

FILES_SHOWN = 20
FINDINGS_SHOWN = 10  # of one kind


def check(data: Path, config: TrainConfig, *, as_json: bool, page: Path | None = None) -> int:
    """Checks a data set and prints the report; returns the exit code, 1 when there are errors.

    Args:
        page: a file to write the findings to, as HTML.
    """
    with render.Console().live() as live:
        report = check_dataset(
            data,
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            seed=config.seed,
            progress=Counting(live, "images read").count,
        )
    if page is not None:
        write_text(path_here(page), render_check(report, data if data.is_dir() else data.parent))
    if as_json:
        render.document(report.to_json())
    else:
        _check_tables(report)
        if page is not None:
            render.note(f"page: {page}")
    return 0 if report.ok else 1


def _check_tables(report: CheckReport) -> None:
    splits = list(report.counts)
    rows = [[name, *(report.counts[split].get(name, 0) for split in splits)] for name in report.classes]
    rows.append(["all", *(sum(report.counts[split].values()) for split in splits)])
    render.table(["class", *splits], rows, title=f"{report.root}: images", numbers=splits)
    if report.valid_split_off:
        render.note("there is no valid folder: these images are split off train")
    if report.split_made:
        render.note("no folders say what is train, valid and test: images are split, those that look alike on one side")
    for label, findings in (("error", report.errors), ("warning", report.warnings)):
        for _, alike in itertools.groupby(findings, key=lambda finding: (finding.kind, finding.hint)):
            _findings(label, list(alike))
    for finding in report.notes:
        render.note(f"note: {finding.line}")
    worst = _counted(len(report.errors), "error") if report.errors else "fit for training"
    render.note(f"{report.num_images} images: {worst}, {_counted(len(report.warnings), 'warning')}")


def _findings(label: str, findings: list[DataFinding]) -> None:
    """Prints findings of one kind, and what they have in common once: the hint."""
    for finding in findings[:FINDINGS_SHOWN]:
        render.labelled(label, finding.message)
        unnamed = () if finding.message.startswith(finding.files[:1]) else finding.files
        for name in unnamed[:FILES_SHOWN]:
            render.note(f"    {name}")
        if len(unnamed) > FILES_SHOWN:
            render.note(f"    and {len(unnamed) - FILES_SHOWN} more, all of them with --json")
    if len(findings) > FINDINGS_SHOWN:
        render.labelled(label, f"{len(findings) - FINDINGS_SHOWN} more like these, all of them with --json")
    if findings[0].hint:
        render.labelled("hint", findings[0].hint)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def predictions(url: str, answers: Iterable[Answer], *, as_json: bool) -> int:
    """Prints the answers; returns the exit code, 1 when there was an error among them."""
    collected = []
    for answer in answers:
        collected.append(answer)
        if answer.note:
            render.note(f"{answer.file}: {answer.note}")
    if as_json:
        render.document({"url": url, "predictions": [answer.to_json() for answer in collected]})
    else:
        prediction_table(collected)
    failed = sum(bool(answer.error) for answer in collected)
    if failed:
        render.note(f"{failed} of {len(collected)} images could not be classified")
    return 1 if failed else 0


def prediction_table(answers: list[Answer]) -> None:
    """Prints a table of answers."""
    most = max((len(answer.predictions) for answer in answers), default=1)
    rows = []
    for answer in answers:
        if answer.error:
            rows.append([answer.file, f"error: {answer.error}", "", ""][: 4 if most > 1 else 3])
            continue
        (label, probability), *further = answer.predictions
        row = [answer.file, answered(label, abstain=answer.abstain), f"{probability:.4f}"]
        if most > 1:
            row.append("  ".join(f"{name} {share:.4f}" for name, share in further))
        rows.append(row)
    columns = ["file", "label", "probability", "further"][: 4 if most > 1 else 3]
    render.table(columns, rows, numbers=("probability",))


def answered(label: str, *, abstain: bool) -> str:
    """A label as a table has it: of a model that abstains, in brackets."""
    return f"abstains ({label})" if abstain else label


def settings(all_settings: Settings, *, as_json: bool) -> None:
    """Prints every setting with its origin."""
    rows = list(all_settings.items())
    if as_json:
        render.document({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    shown = [[key, _setting(value), origin] for key, value, origin in rows if not isinstance(value, dict)]
    for key, value, origin in rows:
        if isinstance(value, dict):
            shown += [[f"{key}.{name}", _setting(spec), origin] for name, spec in value.items()]
    render.table(["setting", "value", "origin"], shown)
    if sys.stdout.isatty():
        render.note("a flag wins over the environment, the environment over the file, the file over the default")


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_setting, value)) + "]"
    return str(value)
