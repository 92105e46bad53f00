"""Metric lines and the regular expressions that read them back, defined together.

The trainer prints one line an epoch, SageMaker's log scraper and the launcher on this machine read it with the same
expressions:

    metrics epoch=3 train:loss=0.8123 train:accuracy=0.71 validation:loss=0.9051 validation:accuracy=0.68
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PREFIX = "metrics"
NUMBER = r"([-+]?[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)"  # finite numbers only: a NaN is not a data point


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number the trainer reports: its name in logs and in SageMaker, which way is better, and what it means."""

    name: str
    maximize: bool
    help: str

    @property
    def regex(self) -> str:
        """The expression with one group, the value. At most 500 characters (SageMaker's limit)."""
        return rf"(?:^|\s){re.escape(self.name)}={NUMBER}(?:\s|$)"


METRICS: tuple[Metric, ...] = (
    Metric(name="train:loss", maximize=False, help="mean training loss of the epoch"),
    Metric(name="train:accuracy", maximize=True, help="share of training images classified correctly, 0..1"),
    Metric(name="train:images_per_second", maximize=True, help="training images a second over the epoch"),
    Metric(name="validation:loss", maximize=False, help="mean validation loss, clean labels"),
    Metric(name="validation:accuracy", maximize=True, help="top-1 accuracy on the validation images, 0..1"),
    Metric(name="validation:top5_accuracy", maximize=True, help="top-5 accuracy on the validation images, 0..1"),
    Metric(name="validation:balanced_accuracy", maximize=True, help="mean recall of the classes, validation, 0..1"),
    Metric(name="validation:macro_f1", maximize=True, help="mean F1 of the classes on the validation images, 0..1"),
    Metric(name="validation:calibration_error", maximize=False, help="expected calibration error, validation, 0..1"),
    Metric(name="test:loss", maximize=False, help="mean test loss of the best epoch's weights"),
    Metric(name="test:accuracy", maximize=True, help="top-1 accuracy on the test images, 0..1"),
    Metric(name="test:top5_accuracy", maximize=True, help="top-5 accuracy on the test images, 0..1"),
    Metric(name="test:balanced_accuracy", maximize=True, help="mean recall of the classes on the test images, 0..1"),
    Metric(name="test:macro_f1", maximize=True, help="mean F1 of the classes on the test images, 0..1"),
    Metric(name="test:calibration_error", maximize=False, help="expected calibration error on the test images, 0..1"),
)
METRICS += tuple(
    Metric(name=f"best:{metric.name.partition(':')[2]}", maximize=metric.maximize, help=f"best {metric.name} so far")
    for metric in METRICS
    if metric.name.startswith("validation:")
)
METRIC_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
DEFAULT_OBJECTIVE = "validation:accuracy"


def running_best(name: str) -> str:
    """The metric that holds the best value of `validation:...` so far: `best:...`.

    SageMaker's tuner judges a job by the last value it logged, but a job keeps the weights of its best epoch.
    """
    return METRIC_BY_NAME[name.replace("validation:", "best:")].name


def with_best(values: Mapping[str, float], history: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """`values` of one epoch with the running best of each validation metric, `history` being the epochs before it."""
    rows = [*history, values]
    best = {
        running_best(name): (max if METRIC_BY_NAME[name].maximize else min)(row[name] for row in rows if name in row)
        for name in values
        if name.startswith("validation:")
    }
    return {**values, **best}


def metric_line(epoch: int, values: Mapping[str, float]) -> str:
    """The line to log for one epoch (1-based). Raises KeyError on a name that is not in METRICS."""
    for name in values:
        METRIC_BY_NAME[name]
    pairs = " ".join(f"{name}={value:.6g}" for name, value in values.items())
    return f"{PREFIX} epoch={epoch} {pairs}"


def parse_metric_line(line: str) -> tuple[int, dict[str, float]] | None:
    """Epoch and values of a metric line, None for any other line. Values that are not finite are left out."""
    head = re.search(rf"(?:^|\s){PREFIX} epoch=([0-9]+)(?:\s|$)", line)
    if head is None:
        return None
    values = {}
    for metric in METRICS:
        if match := re.search(metric.regex, line):
            values[metric.name] = float(match.group(1))
    return int(head.group(1)), values
