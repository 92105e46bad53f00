"""Everything a report says, gathered from a job's folder as one value for JSON.

What is not there is named under `missing`, never made up. What only the job could see (its images, its machine) is
taken from the report.json that the job itself left, when the report is made again elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import (
    JOB,
    REPORT,
    RESULT,
    RULES,
    SETUP,
    STATISTICS,
    STEPS,
    TRACE,
    TRIED,
    best_epoch,
    read_failure,
    read_json,
    read_result,
    sound_counts,
)
from image_classifier.contract.paths import DEFAULT_BASE_DIR, FAILURE
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import PEERS, SYSTEM, Saved, read_parts
from image_classifier.debugging.schema import JobFacts, parse_rule_results
from image_classifier.report import advice, answers, curves, labels
from image_classifier.report.dataset import describe_data, findings, unreadable
from image_classifier.report.layers import layer_statistics
from image_classifier.report.processes import processes
from image_classifier.report.sources import Sources, jsonable, locate
from image_classifier.report.standing import measured
from image_classifier.report.timeline import timeline
from image_classifier.vision.artifact import MANIFEST

FORMAT = 1  # of report.json


def gather(folder: Path, *, name: str = "") -> dict[str, Any]:
    """The facts of one training job.

    Args:
        folder: a run, /opt/ml, or the unpacked output of a job.
        name: of the job; without it the folder's, or the one an earlier report gave.

    Raises:
        DataError: `folder` holds no output of a training job.
    """
    sources = locate(folder)
    earlier = REPORT.read_object(sources.data)
    earlier = earlier if earlier.get("format") == FORMAT else {}
    saved = read_parts(sources.output)
    run = saved.run
    _note(sources, saved, SETUP.name, "the job wrote no facts of itself")
    _note(sources, saved, STEPS.name, "no step was recorded (debug=False?)")
    config = _config(sources, run.job, earlier)
    history = sources.history()
    metrics = read_result(sources.data)
    sources.note(RESULT.name, "the job did not finish", found=bool(metrics))
    confusion = answers.confusion(sources)
    mistakes = answers.mistakes(sources, confusion["pairs"] if confusion else [])
    examples = [path for pair in (confusion or {}).get("pairs", []) for path in pair["examples"]]
    pictures = [*(row["path"] for row in mistakes), *examples]
    rules = _rules(sources)
    _note(sources, saved, PEERS)
    system = timeline(run) or earlier.get("system")
    if system is None:
        _note(sources, saved, SYSTEM, "no system metrics were sampled")
    _note(sources, saved, STATISTICS.name, "no gradients or weights were recorded")
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": "train",
        "name": name or _name(sources, earlier),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "outcome": _outcome(sources, run, history, metrics, earlier=earlier) | {"epochs_planned": config.get("epochs")},
        "history": history,
        "batches": curves.batch_losses(run),
        "rules": rules,
        "time": curves.step_time(run, metrics.get("seconds")),
        "processes": processes(run),
        "trace": (sources.data / TRACE).is_file(),
        "system": system,
        "layers": layer_statistics(run),
        "confusion": confusion,
        "scores": answers.scores(sources, metrics),
        "per_class": answers.per_class(sources),
        "mistakes": mistakes,
        "labels": labels.suspected_labels(sources, earlier.get("labels")),
        "thumbnails": answers.thumbnails(sources, pictures, earlier.get("thumbnails") or {}),
        "dataset": describe_data(sources, config) or earlier.get("dataset"),
        "unreadable": unreadable(sources),
        "findings": findings(sources),
        "config": config,
        "environment": _environment(sources, run.job, metrics) or earlier.get("environment") or {},
        "missing": sources.missing,
    }
    facts["standing"], facts["next"] = advice.judged_advice(facts)
    return jsonable(facts)  # type: ignore[no-any-return]  # a dict stays one


def _note(sources: Sources, saved: Saved, part: str, absent: str = "") -> None:
    """Names a part of the recordings when it is damaged; when it is not there, with the sentence for that, if any."""
    if part in saved.damaged:
        sources.note(part, "damaged")
    elif part in saved.absent and absent:
        sources.note(part, absent)


def _name(sources: Sources, earlier: Mapping[str, Any]) -> str:
    """The run's name; in a container every job's folder has the same, which names none."""
    if sources.paths is not None and sources.paths.base != DEFAULT_BASE_DIR:
        return sources.name
    return str(earlier.get("name") or ("" if sources.paths is not None else sources.name))


def _rules(sources: Sources) -> list[dict[str, Any]]:
    """The verdicts; those that fired first, the most severe of them before the others."""
    try:
        found = parse_rule_results(RULES.read(sources.data)) if RULES.is_in(sources.data) else []
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        sources.note(RULES.name, "damaged")
        return []
    sources.note(RULES.name, "no rule judged this job", found=bool(found))
    rank = {"IssuesFound": 0, "Error": 1, "NoIssuesFound": 2, "InsufficientData": 3}
    weight = {"critical": 0, "warning": 1, "info": 2}
    rows = [dataclasses.asdict(each) | {"verdict": each.verdict.value} for each in found]
    return sorted(rows, key=lambda row: (rank[row["verdict"]], bool(row["symptom_of"]), weight.get(row["severity"], 3)))


def _config(sources: Sources, job: JobFacts, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters, typed. A file that is missing or from another version gives what can be read of it."""
    if job.config:
        return dict(job.config)
    written = read_json(sources.paths.hyperparameters) if sources.paths is not None else None
    if isinstance(written, dict):
        try:
            config = TrainConfig.from_hyperparameters({str(k): str(v) for k, v in written.items()})
            return {name: getattr(config, name) for name in config.to_hyperparameters()}
        except Exception:  # another version's: as it was written
            return written
    return dict(earlier.get("config") or {})


def _environment(sources: Sources, job: JobFacts, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of what the job ran on and with."""
    found: dict[str, str] = {}
    manifest = read_json(sources.paths.model / MANIFEST) if sources.paths is not None else None
    record = JOB.read_object(sources.paths.base) if sources.paths is not None else {}
    if isinstance(metrics.get("device"), str):
        found |= {"device": metrics["device"], "number format": "bf16 autocast" if metrics.get("bf16") else "float32"}
    if isinstance(manifest, dict):
        found |= {str(name): str(version) for name, version in (manifest.get("versions") or {}).items()}
    found |= {
        name: str(record[key]) for key, name in (("version", "this program"), ("git", "source")) if record.get(key)
    }
    if job.config:
        found |= job.environment
        found |= {"CPU cores": str(job.cores), "processes": str(job.world_size)}
        found |= {"GPUs": ", ".join(job.gpus)} if job.gpus else {}
    return found


def _outcome(
    sources: Sources,
    run: RunData,
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, Any],
    *,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """How the job ended and what it is worth: the accuracy with its 95 % interval, on test if there was one, beside
    what guessing gets there."""
    failure = read_failure(sources.output / FAILURE)
    status = "completed" if metrics else "failed" if failure.message else "unfinished"
    if failure.is_stop:
        status = "stopped"
    found = best_epoch(history)
    best = int(metrics.get("best_epoch") or (found.epoch if found is not None else 0))
    values = dict(metrics.get("metrics") or next((row for row in history if row["epoch"] == best), {}))
    images = metrics.get("images") or {}
    earlier_outcome = earlier.get("outcome")
    known = sound_counts(earlier_outcome.get("answered")) if isinstance(earlier_outcome, dict) else {}
    answered: dict[str, dict[str, int]] = known | answers.what_was_answered(sources, run, metrics)
    for split in ("valid", "test"):
        if split not in answered and (number := images.get(split) or run.job.images.get(split)):
            answered[split] = {"images": number}
    return {
        "status": status,
        "failure": failure.message,
        "hint": failure.hint,
        "best_epoch": best,
        "epochs_done": len(history),
        "seconds": metrics.get("seconds"),
        "metrics": {name: value for name, value in values.items() if ":" in name},
        "accuracy": measured(values, answered, len(history)),
        "answered": answered,
        "classes": metrics.get("classes"),
        "images": images,
        "tested": metrics.get("outcome") != TRIED,
    }


def to_text(facts: Mapping[str, Any]) -> str:
    """report.json: the facts, strict JSON."""
    return json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
