"""The rules command: a job judged again by what it saved."""

from __future__ import annotations

import json
from pathlib import Path

from image_classifier.debugging.report.sources import locate
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import read_files, read_trial
from image_classifier.debugging.schema import Verdict, read_job, rule_results_to_json
from image_classifier.launch import render
from image_classifier.launch.show_report import folder_of


def rules(runs_dir: Path, text: str, names: str, *, tensors: bool, as_json: bool) -> None:
    """Prints the rules' verdicts.

    Args:
        text: a run, a folder with a job's output, or empty for the newest run; with `tensors`, also `s3://...` of
            one attempt's tensors.
        names: rules, see `parse_rules`.
        tensors: judge by smdebug's tensors instead of the job's own files.

    Raises:
        ConfigError: there is no such run or rule.
        DataError: nothing there can be judged.
        PlatformError: smdebug is needed and not installed.
    """
    chosen = parse_rules(names)
    results = judge(_run(runs_dir, text, tensors=tensors), chosen)
    if as_json:
        render.document(json.loads(rule_results_to_json(results)))
        return
    rows = [(each.rule, each.verdict.value, each.summary, each.advice) for each in results]
    render.table(("rule", "verdict", "finding", "advice"), rows)
    fired = sum(each.verdict is Verdict.ISSUES for each in results)
    render.note(f"{fired} of {len(results)} rules found an issue")


def _run(runs_dir: Path, text: str, *, tensors: bool) -> RunData:
    if text.startswith("s3://"):
        return read_trial(text)
    sources = locate(folder_of(runs_dir, text))
    if tensors:
        return read_trial(sources.output / "tensors", read_job(sources.data))
    return read_files(sources.data)
