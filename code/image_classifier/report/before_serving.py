"""The standing of a model.tar.gz that somebody is about to serve or to pay for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import ClassifierError, DataError
from image_classifier.contract.outputs import REPORT
from image_classifier.contract.paths import MlPaths
from image_classifier.report.facts import gather
from image_classifier.report.standing import SPLITS, measured, standing
from image_classifier.vision.artifact import read_manifest


def standing_of_run(folder: Path) -> dict[str, Any] | None:
    """What the report in a run's folder says of its model; made again where an earlier version wrote it. None without
    an output to report on."""
    found = REPORT.read_object(MlPaths(base=folder).output_data).get("standing")
    if isinstance(found, dict) and isinstance(found.get("sentence"), str) and isinstance(found.get("ready"), bool):
        return found
    with suppress(DataError):
        again = gather(folder)["standing"]
        return again if isinstance(again, dict) else None
    return None


def standing_of_archive(archive: Path) -> dict[str, Any]:
    """As `standing_of_model`, of an archive that nobody has unpacked; one that cannot be read is not known."""
    found = standing_of_run(archive.resolve().parent)
    if found is not None:
        return found
    try:
        return standing_of_model(archive, read_manifest(archive).metrics)
    except ClassifierError:
        return standing_of_model(archive, {})


def standing_of_model(archive: Path, metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """What the report of the run an archive lies in says; of an archive alone, what its manifest tells.

    Args:
        metrics: of the manifest.

    Returns:
        As `standing`. Of an archive alone at best `unjudged`: it does not hold the rules' verdicts.
    """
    found = standing_of_run(archive.resolve().parent)
    if found is not None:
        return found
    numbers = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    answered = {
        split: {name: int(numbers.get(f"{split}:{name}", 0)) for name in ("images", "largest_class")}
        for _, split in SPLITS
    }
    accuracy = measured(numbers, answered, int(numbers.get("epochs", 1)))
    return standing({"status": "completed", "accuracy": accuracy}, [], [])
