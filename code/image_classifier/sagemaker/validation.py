"""A request against botocore's model of the API: types, required members, and the limits that botocore skips.

botocore itself tests types, required members and minimum lengths before it sends anything. The model also carries
maximum lengths, allowed words and patterns, which only the service tests: a job name of 64 characters, a misspelt
instance type. Testing them here gives `--dry-run` and the tests the service's own opinion without a service.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from image_classifier.contract.errors import ConfigError


def validate(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """Tests a request body.

    Args:
        service, operation: `sagemaker`, `CreateTrainingJob`.

    Raises:
        ConfigError: the first thing the service would refuse.
    """
    from botocore.validate import ParamValidator

    shape = _model(service).operation_model(operation).input_shape
    if shape is None:
        return
    report = ParamValidator().validate(dict(request), shape)
    problems = report.generate_report().splitlines() if report.has_errors() else []
    problems += list(_problems(request, shape, ""))
    if problems:
        raise ConfigError(f"{operation} would be refused: {problems[0]}", "see [sagemaker] in deploy.example.toml")


def words_of(service: str, shape: str) -> list[str]:
    """The words that a shape of the API allows: `ProductionVariantInstanceType`."""
    return list(_model(service).shape_for(shape).metadata["enum"])


@cache
def _model(service: str) -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def _problems(value: Any, shape: Any, path: str) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for name, member in value.items():
            if name in shape.members:
                yield from _problems(member, shape.members[name], f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list" and isinstance(value, Sequence):
        yield from _out_of_range(len(value), shape, f"number of {path}")
        for i, member in enumerate(value):
            yield from _problems(member, shape.member, f"{path}[{i}]")
    elif shape.type_name == "map" and isinstance(value, Mapping):
        yield from _out_of_range(len(value), shape, f"number of {path}")
        for name, member in value.items():
            yield from _problems(name, shape.key, f"key of {path}")
            yield from _problems(member, shape.value, f"{path}.{name}")
    elif shape.type_name == "string" and isinstance(value, str):
        yield from _out_of_range(len(value), shape, f"length of {path}")
        yield from _wrong_text(value, shape, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _out_of_range(value, shape, path)


def _out_of_range(number: float, shape: Any, what: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if (low is not None and number < low) or (high is not None and number > high):
        yield f"{what} is {number}, allowed is {'' if low is None else low} to {'any' if high is None else high}"


def _wrong_text(value: str, shape: Any, path: str) -> Iterator[str]:
    words = shape.metadata.get("enum")
    if words and value not in words:
        yield f"{path} is {value!r}, which is not one of {', '.join(words[:12])}{' ...' if len(words) > 12 else ''}"
    pattern = shape.metadata.get("pattern", "")
    compiled = _compile(pattern)
    if pattern and compiled is not None and not compiled.fullmatch(value):
        yield f"{path} is {value!r}, which does not match {pattern}"


@cache
def _compile(pattern: str) -> re.Pattern[str] | None:
    """The pattern in Python's words; None for one that has none, which is left to the service."""
    for java, python in ((r"\p{L}", r"\w"), (r"\p{N}", r"\d"), (r"\p{Z}", r"\s")):
        pattern = pattern.replace(java, python)
    try:
        return re.compile(pattern)
    except re.error:
        return None
