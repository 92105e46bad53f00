"""Everything a report says, gathered from a job's folder as one value for JSON.

What is not there is named under `missing`, never made up. What only the job could see (its images, its machine) is
taken from the report.json that the job itself left, when the report is made again elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import REPORT, RULES, SETUP, TRACE
from image_classifier.contract.paths import DEFAULT_BASE_DIR
from image_classifier.debugging.schema import (
    JobFacts,
    StepRecord,
    read_job,
    read_statistics,
    read_steps,
    read_system,
    rule_results_from_json,
)
from image_classifier.report import advice, answers, curves
from image_classifier.report.dataset import describe_data, unreadable
from image_classifier.report.layers import layer_statistics, needed
from image_classifier.report.processes import processes
from image_classifier.report.sources import Sources, jsonable, locate, read_json

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
    earlier = read_json(sources.data / REPORT.name)
    earlier = earlier if isinstance(earlier, dict) and earlier.get("format") == FORMAT else {}
    job = _job(sources)
    config = _config(sources, job, earlier)
    steps = (
        _guarded(sources, "steps.jsonl", "no step was recorded (debug=False?)", lambda: read_steps(sources.data)) or []
    )
    history = sources.history()
    metrics = sources.json("metrics.json", "the job did not finish")
    metrics = metrics if isinstance(metrics, dict) else {}
    confusion = answers.confusion(sources)
    mistakes = answers.mistakes(sources, confusion["pairs"] if confusion else [])
    examples = [path for pair in (confusion or {}).get("pairs", []) for path in pair["examples"]]
    pictures = [*(row["path"] for row in mistakes), *examples]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": "train",
        "name": name or _name(sources, earlier),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "outcome": _outcome(sources, history, metrics, config),
        "history": history,
        "batches": curves.batch_losses(steps, _steps_per_epoch(job, steps)),
        "rules": _rules(sources),
        "time": curves.step_time(steps, metrics.get("seconds")),
        "processes": _guarded_processes(sources, steps),
        "trace": (sources.data / TRACE).is_file(),
        "system": _system(sources, steps) or _lent(sources, earlier, "system", "profiler/system"),
        "layers": _layers(sources),
        "confusion": confusion,
        "per_class": answers.per_class(sources),
        "mistakes": mistakes,
        "thumbnails": answers.thumbnails(sources, pictures, earlier.get("thumbnails") or {}),
        "dataset": describe_data(sources, config) or earlier.get("dataset"),
        "unreadable": unreadable(sources),
        "config": config,
        "environment": _environment(sources, job, metrics) or earlier.get("environment") or {},
        "missing": sources.missing,
    }
    facts["next"] = advice.what_next(facts)
    return jsonable(facts)  # type: ignore[no-any-return]  # a dict stays one


def _name(sources: Sources, earlier: Mapping[str, Any]) -> str:
    """The run's name; in a container every job's folder has the same, which names none."""
    if sources.paths is not None and sources.paths.base != DEFAULT_BASE_DIR:
        return sources.name
    return str(earlier.get("name") or ("" if sources.paths is not None else sources.name))


def _guarded(sources: Sources, name: str, what: str, read: Any) -> Any:
    """What `read` returns; None, and noted as missing, when the file is not there, empty or not what it should be."""
    try:
        found = read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found, what = None, "damaged"
    if not found:
        sources.missing.append(f"{name}: {what}")
    return found


def _job(sources: Sources) -> JobFacts | None:
    found: JobFacts | None = _guarded(
        sources, SETUP.name, "the job wrote no facts of itself", lambda: read_job(sources.data)
    )
    return found


def _system(sources: Sources, steps: Sequence[StepRecord]) -> dict[str, Any] | None:
    what = "no system metrics were sampled"
    samples = _guarded(sources, "profiler/system", what, lambda: read_system(sources.output))
    return curves.timeline(samples or [], steps)


def _guarded_processes(sources: Sources, steps: Sequence[StepRecord]) -> dict[str, Any] | None:
    try:
        return processes(sources.data, steps)
    except (OSError, ValueError, KeyError, TypeError):
        sources.missing.append("steps of the other processes: damaged")
        return None


def _lent(sources: Sources, earlier: Mapping[str, Any], part: str, name: str) -> Any:
    """A part of the earlier report, which is then not missing: the files it came from are not uploaded by a job."""
    found = earlier.get(part)
    if found is not None:
        sources.missing[:] = [sentence for sentence in sources.missing if not sentence.startswith(f"{name}:")]
    return found


def _layers(sources: Sources) -> dict[str, Any] | None:
    what = "no gradients or weights were recorded"
    read = _guarded(sources, "statistics.jsonl", what, lambda: read_statistics(sources.data, needed))
    return layer_statistics(read or [])


def _rules(sources: Sources) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        text = (sources.data / RULES.name).read_text(encoding="utf-8")
        rank = {"IssuesFound": 0, "Error": 1, "NoIssuesFound": 2, "InsufficientData": 3}
        weight = {"critical": 0, "warning": 1, "info": 2}
        rows = [
            {
                "rule": each.rule,
                "verdict": each.verdict.value,
                "severity": each.severity,
                "summary": each.summary,
                "advice": each.advice,
                "evidence": [{"step": e.step, "name": e.name, "value": e.value} for e in each.evidence],
                "parameters": dict(each.parameters),
                "datapoints": each.datapoints,
            }
            for each in rule_results_from_json(text)
        ]
        return sorted(rows, key=lambda row: (rank[row["verdict"]], weight.get(row["severity"], 3)))

    return _guarded(sources, RULES.name, "no rule judged this job", read) or []


def _config(sources: Sources, job: JobFacts | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters, typed. A file that is missing or from another version gives what can be read of it."""
    if job is not None and job.config:
        return dict(job.config)
    written = read_json(sources.paths.hyperparameters) if sources.paths is not None else None
    if isinstance(written, dict):
        try:
            config = TrainConfig.from_hyperparameters({str(k): str(v) for k, v in written.items()})
            return {name: getattr(config, name) for name in config.to_hyperparameters()}
        except Exception:  # another version's: as it was written
            return written
    return dict(earlier.get("config") or {})


def _environment(sources: Sources, job: JobFacts | None, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of what the job ran on and with."""
    found: dict[str, str] = {}
    manifest = read_json(sources.paths.model / "manifest.json") if sources.paths is not None else None
    record = read_json(sources.paths.base / "job.json") if sources.paths is not None else None
    if isinstance(metrics.get("device"), str):
        found |= {"device": metrics["device"], "number format": "bf16 autocast" if metrics.get("bf16") else "float32"}
    if isinstance(manifest, dict):
        found |= {str(name): str(version) for name, version in (manifest.get("versions") or {}).items()}
    if isinstance(record, dict):
        found |= {
            name: str(record[key]) for key, name in (("version", "this program"), ("git", "source")) if record.get(key)
        }
    if job is not None:
        found |= job.environment
        found |= {"CPU cores": str(job.cores), "processes": str(job.world_size)}
        found |= {"GPUs": ", ".join(job.gpus)} if job.gpus else {}
    return found


def _steps_per_epoch(job: JobFacts | None, steps: Sequence[StepRecord]) -> int:
    if job is not None and job.steps_per_epoch:
        return job.steps_per_epoch
    per_epoch: dict[int, int] = {}
    for record in steps:
        if record.mode == "train":
            per_epoch[record.epoch] = per_epoch.get(record.epoch, 0) + 1
    return max(per_epoch.values(), default=0)


def _outcome(
    sources: Sources, history: Sequence[Mapping[str, float]], metrics: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """How the job ended and what it is worth: the accuracy with its 95 % interval, on test if there was one."""
    failure, hint = _failure(sources)
    status = "completed" if metrics else "failed" if failure else "unfinished"
    if failure.startswith("stopped by"):
        status = "stopped"
    best = int(metrics.get("best_epoch") or _best_epoch(history))
    values = dict(metrics.get("metrics") or next((row for row in history if row["epoch"] == best), {}))
    accuracy = None
    for split, images in (
        ("test", (metrics.get("images") or {}).get("test")),
        ("validation", _valid_images(sources, metrics)),
    ):
        value = values.get(f"{split}:accuracy")
        if value is not None and accuracy is None:
            low, high = curves.wilson(value * images, images) if images else (None, None)
            accuracy = {"split": split, "value": value, "images": images, "low": low, "high": high}
    return {
        "status": status,
        "failure": failure,
        "hint": hint,
        "best_epoch": best,
        "epochs_done": len(history),
        "epochs_planned": config.get("epochs"),
        "seconds": metrics.get("seconds"),
        "metrics": {name: value for name, value in values.items() if ":" in name},
        "accuracy": accuracy,
        "classes": metrics.get("classes"),
        "images": metrics.get("images") or {},
    }


def _valid_images(sources: Sources, metrics: Mapping[str, Any]) -> int | None:
    images = (metrics.get("images") or {}).get("valid")
    if images is None:
        job = SETUP.read(sources.data)
        images = (job.get("images") or {}).get("valid") if isinstance(job, dict) else None
    return int(images) if images else None


def _best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """As the trainer chooses it: highest validation accuracy, of equals the lowest loss; 0 without an epoch."""
    if not history:
        return 0
    ranks = [(row.get("validation:accuracy", 0.0), -row.get("validation:loss", 0.0)) for row in history]
    return int(history[ranks.index(max(ranks))]["epoch"])


def _failure(sources: Sources) -> tuple[str, str]:
    """The first cause and its hint, from the failure file; empty when the job wrote none."""
    path = sources.output / "failure"
    try:
        message, _, hint = path.read_text(encoding="utf-8", errors="replace").strip().partition("\nhint: ")
    except OSError:
        return "", ""
    return message.strip(), hint.strip()


def to_text(facts: Mapping[str, Any]) -> str:
    """report.json: the facts, strict JSON."""
    return json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
