"""The earlier searches that a tuning job learns from: SageMaker reads their trials, and is told how they compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import ConfigError
from image_classifier.contract.outputs import read_json
from image_classifier.launch.runs import ACTIVE, find_run
from image_classifier.sagemaker import remote
from image_classifier.sagemaker.requests import TUNING_NAME_CHARS, Body, job_name
from image_classifier.sagemaker.training_job import REQUEST_FILE
from image_classifier.tuning.tune_settings import KIND, TuneSettings
from image_classifier.tuning.warm_start import IDENTICAL, TRANSFER, searches_named

LISTS = ("ContinuousParameterRanges", "IntegerParameterRanges", "CategoricalParameterRanges")


def warm_start(tune: TuneSettings, body: Body, runs_dir: Path) -> Body:
    """`WarmStartConfig`, empty for a search that learns from none.

    The kind is IDENTICAL where every earlier search is a run here and was asked for with the same images, channels,
    names and fixed values of hyperparameters as this one; SageMaker refuses what is not, and takes TRANSFER for any.

    Args:
        tune: its `warm_start` names runs, or tuning jobs of the account.
        body: the rest of the request.

    Raises:
        ConfigError: a run is of this machine, still runs, or went by another metric.
    """
    parents = [_parent(name, tune, runs_dir) for name in searches_named(tune.warm_start)]
    if not parents:
        return {}
    same = all(request is not None and _compares(request, body) for _, request in parents)
    named = [{"HyperParameterTuningJobName": name} for name, _ in parents]
    kind = IDENTICAL if same else TRANSFER
    return {"WarmStartConfig": {"ParentHyperParameterTuningJobs": named, "WarmStartType": kind}}


def _parent(name: str, tune: TuneSettings, runs_dir: Path) -> tuple[str, Mapping[str, Any] | None]:
    """The tuning job's name, and the request that made it, None where there is no such run here."""
    try:
        run = find_run(runs_dir, name, kind=KIND)
    except ConfigError:
        if (runs_dir / name).exists() or Path(name).exists():
            raise
        return job_name(name, TUNING_NAME_CHARS), None
    if not run.is_remote:
        raise ConfigError(
            f"{run.name} ran on this machine, and SageMaker learns from its own searches only",
            "name one that ran there, or search here: --target local",
        )
    record = run.record()
    if record.status in ACTIVE:
        raise ConfigError(f"{run.name} is still running", f"`deploy.py status {run.typed}` looks whether it has ended")
    with run.intact():
        theirs, job = str(record.details["tune"]["objective"]), str(remote.details_of(run)["job"])
    if theirs != tune.objective:
        raise ConfigError(
            f"{run.name} went by {theirs}, this search goes by {tune.objective}: their values do not compare",
            f"give --objective {theirs}, or learn from another search",
        )
    sent = read_json(run.path / REQUEST_FILE)
    request = sent[0].get("request") if isinstance(sent, list) and sent and isinstance(sent[0], dict) else None
    return job, request if isinstance(request, dict) else None


def _compares(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether two tuning jobs have the same images, and hyperparameters that one cannot tell apart."""
    try:
        one, other = _settled(theirs), _settled(ours)
    except (AttributeError, KeyError, TypeError):  # a request that was damaged
        return False
    both = set(one["fixed"]) & set(other["fixed"])
    return bool(
        one["data"] == other["data"]
        and one["image"] == other["image"]
        and set(one["fixed"]) | one["searched"] == set(other["fixed"]) | other["searched"]
        and all(one["fixed"][name] == other["fixed"][name] for name in both)
    )


def _settled(body: Mapping[str, Any]) -> dict[str, Any]:
    definition, ranges = body["TrainingJobDefinition"], body["HyperParameterTuningJobConfig"]["ParameterRanges"]
    return {
        "data": definition["InputDataConfig"],
        "image": definition["AlgorithmSpecification"]["TrainingImage"],
        "fixed": dict(definition["StaticHyperParameters"]),
        "searched": {each["Name"] for kind in LISTS for each in ranges.get(kind, ())},
    }
