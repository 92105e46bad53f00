"""How many GPUs, and which, an instance type has.

From AWS's pages of accelerated instance types (https://aws.amazon.com/ec2/instance-types/): no API says it without an
account. Of ml.g7's middle sizes published tables disagree, so they stand here without a number.
"""

from __future__ import annotations

from dataclasses import dataclass

_OF_FAMILY = {
    "g4dn": "T4",
    "g5": "A10G",
    "g6": "L4",
    "g6e": "L40S",
    "g7": "RTX PRO 4500",
    "g7e": "RTX PRO 6000",
    "p2": "K80",
    "p3": "V100",
    "p3dn": "V100",
    "p4d": "A100",
    "p4de": "A100",
    "p5": "H100",
    "p5e": "H200",
    "p5en": "H200",
    "p6-b200": "B200",
    "p6-b300": "B300",
    "p6e-gb200": "GB200",
}
_ONE = dict.fromkeys(("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"), 1)
_G5 = _ONE | {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}
_COUNTS = {
    "g4dn": _ONE | {"12xlarge": 4},
    "g5": _G5,
    "g6": _G5,
    "g6e": _G5,
    "g7": {"2xlarge": 1, "48xlarge": 8},
    "g7e": {"2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 2, "24xlarge": 4, "48xlarge": 8},
    "p2": {"xlarge": 1, "8xlarge": 8, "16xlarge": 16},
    "p3": {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8},
    "p5": {"4xlarge": 1, "48xlarge": 8},
    "p6e-gb200": {"36xlarge": 4},
}
_WHOLE_MACHINES = {"24xlarge": 8, "48xlarge": 8}  # p3dn, p4d, p4de; p5e, p5en, p6-b200, p6-b300


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """The GPUs of an instance type. `count` is 0 where their number is not known here."""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {self.name}" if self.count else f"{self.name}, their number is not known here"


def accelerators_of(instance: str) -> Accelerators | None:
    """The GPUs of `ml.g6e.12xlarge`; None for a type that has none, or is of no family known here."""
    family, _, size = instance.removeprefix("ml.").partition(".")
    if family not in _OF_FAMILY:
        return None
    return Accelerators(name=_OF_FAMILY[family], count=_COUNTS.get(family, _WHOLE_MACHINES).get(size, 0))
