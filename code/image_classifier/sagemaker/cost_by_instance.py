"""What 1,000 predictions cost on each instance type, from a rate that was measured somewhere: a guess that says so."""

from __future__ import annotations

from dataclasses import dataclass

from image_classifier.sagemaker.aws_settings import SageMakerSettings, is_gpu
from image_classifier.sagemaker.cost import prices

# vCPUs of a size in the x86-64 families of the price table (m5, c5, c6i, c7i); AWS's instance type pages.
CORES_BY_SIZE = {"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32}
ASSUMES = (
    "a vCPU computes as fast as a core of the machine that was measured, and twice as many twice as much",
    "the instance is busy for {busy:.0%} of the hours that are paid",
    "on-demand prices of {region} as of {date}; serverless adds cold starts and a charge a request",
)


@dataclass(frozen=True, kw_only=True)
class CostOfThousand:
    """One instance type.

    Args:
        rate: predictions a second.
        hour: US dollars an hour; None for serverless.
        thousand: US dollars for 1,000 predictions.
    """

    instance: str
    cores: int
    rate: float
    hour: float | None
    thousand: float


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
        size = CORES_BY_SIZE.get(instance.rpartition(".")[2])
        if size and not is_gpu(instance):
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
    table = prices()
    told = [line.format(busy=busy, region=table["region"], date=table["date"]) for line in ASSUMES]
    return sorted(rows, key=lambda row: row.thousand), told
