"""Which engine and number format are asked for, and what the machine has; without importing what computes, so that the
model server is started at once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from image_classifier.contract.endpoint import ENGINE_VARIABLE, ENGINES, PRECISION_VARIABLE, PRECISIONS
from image_classifier.contract.errors import ConfigError

OPENVINO, TORCH = ENGINES[1:]


def requested_engine() -> str:
    """The value of $CLASSIFIER_ENGINE, `auto` without it. Raises ConfigError when it is not one of ENGINES."""
    return _one_of(ENGINES, ENGINE_VARIABLE)


def requested_precision() -> str:
    """The number format that the environment asks for, `auto` without it. Raises ConfigError for an unknown one."""
    return _one_of(PRECISIONS, PRECISION_VARIABLE)


def may_fork() -> bool:
    """Whether a model that was loaded can be used by processes forked afterwards: OpenVINO's can, CUDA's cannot."""
    return requested_engine() == OPENVINO or (requested_engine() == "auto" and not has_gpu())


def has_gpu() -> bool:
    """Whether torch is installed and the machine shows an NVIDIA device; importing torch just to ask costs seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and importlib.util.find_spec("torch") is not None


def _one_of(known: tuple[str, ...], variable: str) -> str:
    name = os.environ.get(variable) or known[0]
    if name not in known:
        raise ConfigError(f"{variable} must be one of {', '.join(known)}, not {name!r}")
    return name
