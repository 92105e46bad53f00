import re

import pytest

from image_classifier.contract.metrics import (
    DEFAULT_OBJECTIVE,
    METRIC_BY_NAME,
    METRICS,
    metric_line,
    parse_metric_line,
    running_best,
    with_best,
)


def test_every_metric_is_read_back_from_its_line_by_its_own_regex() -> None:
    values = {metric.name: (i + 1) / 7 for i, metric in enumerate(METRICS)}
    line = metric_line(3, values)
    for metric in METRICS:
        found = re.findall(metric.regex, line)
        assert [float(text) for text in found] == [pytest.approx(values[metric.name], rel=1e-5)]
    assert parse_metric_line(line) == (3, {name: pytest.approx(value, rel=1e-5) for name, value in values.items()})


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-9, 123456.0, 1.5e20, -2.25])
def test_numbers_of_any_size_survive(value: float) -> None:
    assert parse_metric_line(metric_line(1, {"train:loss": value})) == (1, {"train:loss": value})


def test_a_line_with_a_logging_prefix_is_read() -> None:
    line = "2026-01-01 10:00:00,123 algo-1 INFO " + metric_line(12, {"validation:accuracy": 0.5})
    assert parse_metric_line(line) == (12, {"validation:accuracy": 0.5})


def test_values_that_are_not_finite_are_no_data_points() -> None:
    line = metric_line(1, {"train:loss": float("nan"), "validation:loss": float("inf"), "train:accuracy": 0.5})
    assert parse_metric_line(line) == (1, {"train:accuracy": 0.5})


@pytest.mark.parametrize("line", ["", "step=1/10 loss=0.5", "metrics are nice", "the metrics epoch was 3"])
def test_other_lines_are_not_metrics(line: str) -> None:
    assert parse_metric_line(line) is None


def test_an_unknown_metric_cannot_be_logged() -> None:
    with pytest.raises(KeyError):
        metric_line(1, {"validation:acuracy": 0.5})


def test_definitions_fit_the_platforms_limits() -> None:
    assert len(METRICS) <= 40
    assert all(len(metric.regex) <= 500 for metric in METRICS)
    assert DEFAULT_OBJECTIVE in METRIC_BY_NAME


def test_the_running_best_keeps_the_best_epoch_of_each_validation_metric() -> None:
    history = [
        {"validation:accuracy": 0.9, "validation:loss": 0.5},
        {"validation:accuracy": 0.7, "validation:loss": 0.3},
    ]
    values = with_best({"train:loss": 0.1, "validation:accuracy": 0.8, "validation:loss": 0.4}, history)
    assert values["best:accuracy"] == 0.9
    assert values["best:loss"] == 0.3
    assert values["validation:accuracy"] == 0.8
    assert "best:loss" not in with_best({"train:loss": 0.1}, [])


def test_every_validation_metric_has_a_running_best_of_the_same_direction() -> None:
    for metric in METRICS:
        if metric.name.startswith("validation:"):
            assert METRIC_BY_NAME[running_best(metric.name)].maximize == metric.maximize
