"""The rules command: a job judged again by what it saved, and what a rule is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from image_classifier.cli import render
from image_classifier.cli.report_command import S3, folder_of
from image_classifier.cli.settings import Settings
from image_classifier.contract.errors import RuleFired
from image_classifier.debugging.rules import RULES, judge, parse_rules
from image_classifier.debugging.rules.table import explanation
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import holds_tensors, read_files, read_trial
from image_classifier.debugging.schema import RuleResult, Verdict, read_job, rule_results_to_json
from image_classifier.report.sources import locate

LACKED_DATA = 4  # the exit code where nothing fired, and a rule that applies could not judge


def rules(settings: Settings, text: str, names: str, *, tensors: bool, as_json: bool, exit_code: bool) -> int:
    """Prints the rules' verdicts.

    Args:
        text: a run, a folder with a job's output or with smdebug's tensors, `s3://...` of one, or empty for the newest
            run.
        names: rules, see `parse_rules`.
        tensors: judge by smdebug's tensors instead of the job's own files.
        exit_code: return what `verdict_code` says; else 0.

    Raises:
        ConfigError: there is no such run or rule.
        DataError: nothing there can be judged.
        PlatformError: smdebug is needed and not installed; S3 cannot be read.
    """
    results = judge(_run(settings, text, tensors=tensors), parse_rules(names))
    if as_json:
        render.document(json.loads(rule_results_to_json(results)))
    else:
        _show(results)
    return verdict_code(results) if exit_code else 0


def verdict_code(results: Sequence[RuleResult]) -> int:
    """An exit code for scripts: 3 when a rule fired, as a job that a rule stopped has; else 4 when one that applies
    could not judge; else 0. Rules of severity info only inform."""
    asked = [each for each in results if each.severity != "info"]
    if any(each.verdict is Verdict.ISSUES for each in asked):
        return RuleFired.exit_code
    return LACKED_DATA if any(map(_lacks_data, asked)) else 0


def explain(names: str, *, as_json: bool, tensors: bool, exit_code: bool) -> int:
    """Prints what rules are: formula, evidence, remedy and source.

    Raises:
        ConfigError: there is no such rule.
        UsageError: no run is judged, so `tensors` and `exit_code` mean nothing.
    """
    if tensors or exit_code:
        raise click.UsageError("--explain looks at no run: give it without --tensors and --exit-code")
    known = [explanation(type(rule)) for rule in parse_rules(names)]
    if as_json:
        render.document(known[0] if len(known) == 1 else known)
        return 0
    for each in known:
        parameters = ", ".join(f"{key} {value}" for key, value in each["parameters"].items())
        heading = f"{each['rule']} ({each['severity']}, about {each['about']})"
        print("\n\n".join(part for part in (heading, each["asks"], each["formula"]) if part) + "\n")
        rows = [(key, each[key]) for key in ("evidence", "remedy", "source")]
        render.facts([*rows, ("parameters", parameters or "none"), ("AWS's rule", each["aws"])])
        print()
    return 0


def _lacks_data(result: RuleResult) -> bool:
    return result.verdict in (Verdict.INSUFFICIENT_DATA, Verdict.ERROR) and result.applies


def _show(results: Sequence[RuleResult]) -> None:
    """What fired, then what lacked data and why, then one line for the rest."""
    fired = [each for each in results if each.verdict is Verdict.ISSUES]
    lacking = [each for each in results if _lacks_data(each)]
    if fired:
        rows = [
            (each.rule, each.severity, each.summary + _symptoms(each.rule, fired), each.advice)
            for each in fired
            if not each.symptom_of
        ]
        render.table(("rule", "fired", "finding", "advice"), rows)
    if lacking:
        render.table(("rule", "lacked data"), [(each.rule, each.summary) for each in lacking])
    quiet = [each.rule for each in results if each.verdict is Verdict.NO_ISSUES and RULES[each.rule].judges]
    elsewhere = [each for each in results if not each.applies]
    why = ", ".join(dict.fromkeys(each.summary for each in elsewhere))
    parts = [f"{len(fired)} fired", f"{len(lacking)} lacked data", f"{len(quiet)} found nothing wrong"]
    if elsewhere:
        parts.append(f"{len(elsewhere)} do not apply ({why})")
    print(f"{len(results)} rules: {'; '.join(parts)}")


def _symptoms(cause: str, fired: Sequence[RuleResult]) -> str:
    names = [each.rule for each in fired if each.symptom_of == cause]
    return f" (its symptoms: {', '.join(names)})" if names else ""


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
