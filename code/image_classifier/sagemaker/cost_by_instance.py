"""What 1,000 predictions cost on each instance type, from a rate that was measured somewhere: a guess that says so."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from image_classifier.contract.errors import ConfigError
from image_classifier.sagemaker.accelerators import accelerators_of
from image_classifier.sagemaker.aws_settings import SageMakerSettings, is_arm, is_gpu
from image_classifier.sagemaker.cost import prices
from image_classifier.sagemaker.validation import words_of

_EXCEPTIONS = {"ml.c4.8xlarge": 36, "ml.t2.medium": 2, "ml.t3.medium": 2}  # of `vcpus_of`
_SMALL = {"medium": 1, "large": 2, "xlarge": 4}
ASSUMES = (
    "a vCPU computes as fast as a core of the machine that was measured, and twice as many twice as much",
    "the instance is busy for {busy:.0%} of the hours that are paid",
    "on-demand prices of {region} as of {date}; serverless adds cold starts and a charge a request",
)
LEFT_OUT = "types with GPUs or arm64 processors: measure one, and give its rate with --instance TYPE"


@dataclass(frozen=True, kw_only=True)
class CostOfThousand:
    """One instance type.

    Args:
        rate: predictions a second.
        hour: US dollars an hour; None for serverless.
        thousand: US dollars for 1,000 predictions.
        gpus: such as `1 x L40S`; empty where there are none.
    """

    instance: str
    cores: int
    rate: float
    hour: float | None
    thousand: float
    gpus: str = ""


def cost_of_thousand(
    rate: float, cores: int, settings: SageMakerSettings, *, busy: float = 1.0
) -> tuple[list[CostOfThousand], list[str]]:
    """What 1,000 predictions cost, the cheapest first, and what that assumes. GPUs are left out: no rate of a CPU tells
    theirs.

    Args:
        rate: predictions a second that a machine answered at full load, above 0.
        cores: that it had, 1 or more.
        busy: share of the paid time in which there is as much to do, in (0, 1].
    """
    rows = []
    for instance, hour in prices()["hour"].items():
        if not is_gpu(instance):
            size = vcpus_of(instance)
            its = rate / cores * size
            rows.append(
                CostOfThousand(
                    instance=instance, cores=size, rate=its, hour=hour, thousand=hour / (its * busy * 3600) * 1000
                )
            )
    memory = settings.serverless_memory_mb
    second = prices()["serverless_gb_second"] * memory / 1024
    rows.append(
        CostOfThousand(
            instance=f"serverless, {memory} MB",
            cores=1,
            rate=rate / cores,
            hour=None,
            thousand=second * cores / rate * 1000,
        )
    )
    return sorted(rows, key=lambda row: row.thousand), _told(ASSUMES, busy)


def cost_of_measured(
    instance: str, rate: float, *, hour: float | None = None, busy: float = 1.0
) -> tuple[CostOfThousand, list[str]]:
    """What 1,000 predictions cost on the instance type on which `rate` was measured, and what that assumes.

    Args:
        rate: predictions a second that it answered at full load, above 0.
        hour: US dollars an hour; None for that of the price table.
        busy: share of the paid time in which there is as much to do, in (0, 1].

    Raises:
        ConfigError: SageMaker has no endpoints on such a type, or its price is not known here.
    """
    known = words_of("sagemaker", "ProductionVariantInstanceType")
    if instance not in known:
        near = difflib.get_close_matches(instance, known, n=3) or ["ml.c7i.xlarge"]
        raise ConfigError(f"SageMaker has no endpoints on {instance!r}", f"did you mean {' or '.join(near)}?")
    gpus = accelerators_of(instance)
    price = prices()["hour"].get(instance) if hour is None else hour
    if price is None:
        what = f" ({gpus})" if gpus else " (arm64)" if is_arm(instance) else ""
        raise ConfigError(
            f"the price of {instance}{what} is not in the table of {prices()['date']}",
            f"look it up in AWS's list, {prices()['page']}, and give it with --hour",
        )
    row = CostOfThousand(
        instance=instance,
        cores=vcpus_of(instance),
        rate=rate,
        hour=price,
        thousand=price / (rate * busy * 3600) * 1000,
        gpus=str(gpus or ""),
    )
    told = _told(ASSUMES, busy)
    return row, told[1:2] if hour is not None else [told[1], told[2].partition(";")[0]]


def vcpus_of(instance: str) -> int:
    """vCPUs of an instance type: four for each `xlarge` (AWS's pages of instance types; few exceptions)."""
    size = instance.rpartition(".")[2]
    if found := re.fullmatch(r"(\d+)xlarge", size):
        return _EXCEPTIONS.get(instance, 4 * int(found[1]))
    return _EXCEPTIONS.get(instance, _SMALL[size])


def _told(lines: tuple[str, ...], busy: float) -> list[str]:
    table = prices()
    return [line.format(busy=busy, region=table["region"], date=table["date"]) for line in lines]
