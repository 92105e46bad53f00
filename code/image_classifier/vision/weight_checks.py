"""What weights must be to answer anything: numbers that numpy knows, all of them finite, an output for every class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from image_classifier.contract.errors import ArtifactError
from image_classifier.vision.network import HEAD

FLOATS = ("F16", "F32", "F64")  # of safetensors; numpy has no bfloat16 and no 8-bit floats
INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
_MAX_ITEM_BYTES = 8  # numpy's long double has 16


def check_weights(weights: Mapping[str, NDArray[Any]], classes: Sequence[str]) -> None:
    """Raises ArtifactError when the arrays, by name in the state dict, cannot be a model's of these classes."""
    if not weights:
        raise ArtifactError("the model has no weights")
    for name, array in weights.items():
        _check(name, array, classes)


def check_weights_file(path: Path, classes: Sequence[str]) -> None:
    """As `check_weights`, of a safetensors file, one tensor in memory at a time.

    Raises:
        ArtifactError: as there; or a tensor is of a type that cannot be read here.
        SafetensorError, OSError: the file cannot be read.
    """
    empty = True
    for name, array in _arrays(path):
        _check(name, array, classes)
        empty = False
    if empty:
        raise ArtifactError("the model has no weights")


def _arrays(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            kind = file.get_slice(name).get_dtype()
            if kind not in FLOATS + INTEGERS:
                raise ArtifactError(f"the weights {name} are of the type {kind}", "save them as float32")
            yield name, file.get_tensor(name)


def _check(name: str, array: NDArray[Any], classes: Sequence[str]) -> None:
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > _MAX_ITEM_BYTES:
        raise ArtifactError(f"the weights {name} are of the type {array.dtype}", "save them as float32")
    with np.errstate(over="ignore"):  # engines compute in float32, where a larger number is infinite
        finite = array.dtype.kind != "f" or np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        raise ArtifactError(
            f"the weights {name} hold a number that is not finite", "the training diverged: train again with a lower lr"
        )
    if name in (f"{HEAD}.weight", f"{HEAD}.bias"):
        outputs = array.shape[0] if array.ndim else 0
        if outputs != len(classes):
            raise ArtifactError(f"the network has {outputs} outputs for {len(classes)} classes")
