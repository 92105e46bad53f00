"""What something will cost, said before it is made: an upper bound from a dated table, and a question on a terminal."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import ConfigError, JobStopped
from image_classifier.launch.view import View
from image_classifier.sagemaker.accelerators import accelerators_of
from image_classifier.sagemaker.aws_settings import SageMakerSettings

TABLE = Path(__file__).with_name("prices.toml")
HOURS_A_MONTH = 730
_CAUTION = "a third more in some regions"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Lines for a person; `most` is in US dollars, None where an instance type has no price here."""

    lines: tuple[str, ...]
    most: float | None


@cache
def prices() -> Mapping[str, Any]:
    """The price table."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def training(settings: SageMakerSettings, jobs: int = 1) -> Estimate:
    """The most that `jobs` training jobs can cost: all of them running until max_run_s.

    Spot instances are cheaper by an amount that changes by the hour, so the bound is that of the others.
    """
    hours = (settings.max_run_s + settings.warm_pool_s) / 3600 * settings.train_instances * jobs
    what = f"{jobs} training job{'s' * (jobs > 1)} on {settings.train_instances} x {settings.train_instance}"
    what += _or_else(settings.train_types)
    return _by_the_hour(what, settings.train_types, settings.train_instances, hours, _bound(settings))


def endpoint(settings: SageMakerSettings) -> Estimate:
    """What an endpoint costs by the hour and the month, until it is deleted."""
    if settings.variant == "serverless":
        each = prices()["serverless_gb_second"] * settings.serverless_memory_mb / 1024
        return Estimate(
            lines=(f"a serverless endpoint: ${each:.6f} a second of work, nothing while idle", _source()), most=0
        )
    most = max(settings.serve_instances, settings.max_instances)
    what = f"an endpoint on {settings.serve_instances} x {settings.serve_instance}"
    what += f", up to {most}" if most > settings.serve_instances else ""
    what += _or_else(settings.serve_types)
    price = dearest(settings.serve_types)
    if price is None:
        return _unknown(what, settings.serve_types)
    now, month = price * settings.serve_instances, price * most * HOURS_A_MONTH
    lines = (f"{what}: ${now:.2f} an hour until it is deleted, at most ${month:,.0f} a month", _source())
    return Estimate(lines=lines, most=month)


def batch(settings: SageMakerSettings, images: int) -> Estimate:
    """What a batch job costs by the hour; how long it takes depends on the images."""
    what = f"a batch job over {images or 'all'} images on {settings.serve_instances} x {settings.serve_instance}"
    price = prices()["hour"].get(settings.serve_instance)
    if price is None:
        return _unknown(what, (settings.serve_instance,))
    hourly = price * settings.serve_instances
    return Estimate(lines=(f"{what}: ${hourly:.2f} an hour while it runs", _source()), most=hourly)


def confirm(estimate: Estimate, view: View, *, yes: bool, doubt: str = "") -> None:
    """Tells the estimate, and asks unless `yes`.

    Args:
        doubt: a sentence that speaks against paying for it; told as a warning, and part of the question.

    Raises:
        JobStopped: the answer was no.
        ConfigError: there is nobody to ask.
    """
    for line in estimate.lines:
        view.note(f"cost: {line}")
    if doubt:
        view.warn(doubt)
    if yes:
        return
    answer = view.ask(f"{doubt} Go on all the same?" if doubt else "Go on?")
    if answer is None:
        raise ConfigError("this costs money, and there is no terminal to ask on", "give --yes, or --dry-run to look")
    if not answer:
        raise JobStopped("nothing was made")


def _bound(settings: SageMakerSettings) -> str:
    parts = [f"max_run_s = {settings.max_run_s}"]
    if settings.warm_pool_s:
        parts.append(f"warm_pool_s = {settings.warm_pool_s}")
    return ", ".join(parts)


def dearest(instances: Sequence[str]) -> float | None:
    """US dollars an hour of the dearest of the types; None where the table lacks one of them."""
    found = [prices()["hour"].get(instance) for instance in instances]
    return None if None in found else max(found)


def _or_else(instances: Sequence[str]) -> str:
    return f" (or else {', '.join(instances[1:])}; the dearest counts)" if len(instances) > 1 else ""


def _by_the_hour(what: str, instances: Sequence[str], count: int, hours: float, bound: str) -> Estimate:
    price = dearest(instances)
    if price is None:
        return _unknown(what, instances)
    most = price * hours
    lines = (f"{what}: ${price * count:.2f} an hour, at most ${most:,.2f} in all ({bound})", _source())
    return Estimate(lines=lines, most=most)


def _unknown(what: str, instances: Sequence[str]) -> Estimate:
    instance = next(each for each in instances if each not in prices()["hour"])
    gpus = accelerators_of(instance)
    its = f"{instance} ({gpus})" if gpus else instance
    line = f"{what}: the price of {its} is not in the table of {prices()['date']}; AWS's list: {prices()['page']}"
    return Estimate(lines=(line,), most=None)


def _source() -> str:
    return f"on-demand prices of {prices()['region']} as of {prices()['date']}, {_CAUTION}"
