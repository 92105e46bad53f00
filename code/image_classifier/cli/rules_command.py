"""The rules command: a job judged again by what it saved."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from image_classifier.cli import render
from image_classifier.cli.report_command import S3, folder_of
from image_classifier.cli.settings import Settings
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import holds_tensors, read_files, read_trial
from image_classifier.debugging.schema import Verdict, read_job, rule_results_to_json
from image_classifier.report.sources import locate


def rules(settings: Settings, text: str, names: str, *, tensors: bool, as_json: bool) -> None:
    """Prints the rules' verdicts.

    Args:
        text: a run, a folder with a job's output or with smdebug's tensors, `s3://...` of one, or empty for the newest
            run.
        names: rules, see `parse_rules`.
        tensors: judge by smdebug's tensors instead of the job's own files.

    Raises:
        ConfigError: there is no such run or rule.
        DataError: nothing there can be judged.
        PlatformError: smdebug is needed and not installed; S3 cannot be read.
    """
    chosen = parse_rules(names)
    results = judge(_run(settings, text, tensors=tensors), chosen)
    if as_json:
        render.document(json.loads(rule_results_to_json(results)))
        return
    rows = [(each.rule, each.verdict.value, each.summary, each.advice) for each in results]
    render.table(("rule", "verdict", "finding", "advice"), rows)
    fired = sum(each.verdict is Verdict.ISSUES for each in results)
    render.note(f"{fired} of {len(results)} rules found an issue")


def _run(settings: Settings, text: str, *, tensors: bool) -> RunData:
    if not text.startswith(S3):
        return _read(folder_of(Path(settings.general.runs_dir), text), tensors=tensors)
    from image_classifier.sagemaker.fetch import fetch

    with tempfile.TemporaryDirectory() as temporary:
        fetch(settings.sagemaker, text, Path(temporary))
        return _read(Path(temporary), tensors=tensors)


def _read(folder: Path, *, tensors: bool) -> RunData:
    if holds_tensors(folder):
        return read_trial(folder)
    sources = locate(folder)
    if tensors:
        return read_trial(sources.output / "tensors", read_job(sources.data))
    return read_files(sources.data)
