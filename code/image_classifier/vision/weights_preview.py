"""What starting weights hold, read without torch: so that no run is made for a file that its job would refuse.

What cannot be judged here (files of torch before 1.6, quantised tensors, unusual types) is left to the job, which reads
it with torch; what is refused here would be refused there, in the same words.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from image_classifier.contract.errors import ArtifactError, WeightsError
from image_classifier.contract.files import open_plain
from image_classifier.vision.artifact import unpack
from image_classifier.vision.foreign_weights import (
    GZIP,
    HINT,
    is_counter,
    more_than_tensors,
    no_numbers,
    no_state_dict,
    not_finite,
    other_network,
    own_names,
    unwrapped,
)
from image_classifier.vision.network import HEAD, tensor_shapes

_TYPES = {  # torch's storages and safetensors' types -> numpy's; None for whole numbers, which are finite
    **dict.fromkeys(("FloatStorage", "F32"), "<f4"),
    **dict.fromkeys(("DoubleStorage", "F64"), "<f8"),
    **dict.fromkeys(("HalfStorage", "F16"), "<f2"),
    **dict.fromkeys(("BFloat16Storage", "BF16"), "bf16"),
    **dict.fromkeys(f"{name}Storage" for name in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
    **dict.fromkeys(("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")),
}
_OF_CHECKPOINTS = ("torch", "numpy", "collections", "argparse", "builtins", "__builtin__", "_codecs")  # modules
_HEADS = (f"{HEAD}.weight", f"{HEAD}.bias")
_CHUNK = 2**22  # numbers looked at together


class _Unjudged(Exception):
    """Something that only torch can read."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file; `read` gives the bytes of its numbers, and is None for one that has none."""

    shape: tuple[int, ...]
    type: str
    read: Callable[[], bytes] | None


def check_contents(path: Path, num_classes: int) -> None:
    """Refuses a file of starting weights for what is in it.

    Args:
        path: one that `check_file` let pass.
        num_classes: of the training; another head than theirs is not looked at, as it is replaced.

    Raises:
        WeightsError: it holds no state dict, another network's, or numbers that are not finite.
    """
    with open_plain(path) as file:
        start = file.read(len(GZIP))
    try:
        if start == GZIP:
            with tempfile.TemporaryDirectory() as folder:
                unpacked = unpack(path, Path(folder) / "model").weights_path
                _check(_safetensors(unpacked), path, num_classes)
        elif path.suffix == ".safetensors":
            _check(_safetensors(path), path, num_classes)
        elif start == b"PK":
            with zipfile.ZipFile(path) as archive:
                _check(_pickled(archive, path), path, num_classes)
    except ArtifactError as error:
        raise WeightsError(f"{path}: {error.message}", error.hint or HINT) from None
    except WeightsError:
        raise
    except Exception:  # whatever a file makes a reader raise: torch has the last word
        return


def _check(content: object, path: Path, num_classes: int) -> None:
    found = unwrapped(content)
    if found is None or not found:
        raise no_state_dict(path)
    if any(isinstance(value, _Anything) for value in found.values()):
        raise _Unjudged
    state = {str(name): value for name, value in found.items() if isinstance(value, _Tensor)}
    if len(state) < len(found):
        raise no_state_dict(path)
    fitted, wanted = own_names(state), tensor_shapes(num_classes)
    if any(name not in fitted or fitted[name].shape != wanted[name] for name in _HEADS):
        fitted = {name: tensor for name, tensor in fitted.items() if name not in _HEADS}
        wanted = {name: shape for name, shape in wanted.items() if name not in _HEADS}
    wrong = [name for name, shape in wanted.items() if not _fits(name, fitted.get(name), shape)]
    wrong += [name for name in fitted if name not in wanted]
    if wrong:
        raise other_network(path, wrong)
    for name, tensor in fitted.items():
        if tensor.read is None:
            raise no_numbers(path, name)
        if not _is_finite(tensor.read(), tensor.type):
            raise not_finite(path, name)


def _fits(name: str, tensor: _Tensor | None, shape: tuple[int, ...]) -> bool:
    if is_counter(name):
        return tensor is None or math.prod(tensor.shape) == 1
    return tensor is not None and tensor.shape == shape


def _is_finite(data: bytes, type_name: str) -> bool:
    """Whether all numbers are finite in float32, in which the network computes."""
    if type_name not in _TYPES:
        raise _Unjudged
    dtype = _TYPES[type_name]
    if dtype is None:
        return True
    if dtype == "bf16":  # the upper half of a float32
        bits = np.frombuffer(data, "<u2")
        return not bool((bits & 0x7F80 == 0x7F80).any())
    numbers = np.frombuffer(data, dtype)
    with np.errstate(over="ignore"):
        chunks = (numbers[at : at + _CHUNK].astype(np.float32, copy=False) for at in range(0, len(numbers), _CHUNK))
        return all(bool(np.isfinite(chunk).all()) for chunk in chunks)


def _safetensors(path: Path) -> dict[str, _Tensor]:
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

    def reader(first: int, end: int) -> Callable[[], bytes]:
        def read() -> bytes:
            with open_plain(path) as file:
                file.seek(8 + length + first)
                return file.read(end - first)

        return read

    return {
        name: _Tensor(tuple(entry["shape"]), entry["dtype"], reader(*entry["data_offsets"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


class _Anything:
    """Stands for what is in a checkpoint beside its tensors: takes whatever is done to it, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __new__(cls, *_: object, **__: object) -> _Anything:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    type: str
    key: str


class _Reader(pickle.Unpickler):
    """Reads the structure that torch.save wrote. Nothing is imported and no function of the file's choice is called:
    what is named in it is one of the few things here, stands for nothing, or is refused."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, path: Path) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")), encoding="utf-8")
        self._archive = archive
        self._folder = folder
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch._utils" and name == "_rebuild_meta_tensor_no_storage":
            return lambda _, size, *__: _Tensor(tuple(size), "", None)
        if module == "torch" and name.endswith("Storage"):
            return name
        if module.partition(".")[0] in _OF_CHECKPOINTS:
            return _Anything
        raise more_than_tensors(self._path)

    def persistent_load(self, found: Any) -> _Storage:
        kind, type_name, key, _place, _size = found
        if kind != "storage" or not isinstance(type_name, str):
            raise _Unjudged
        return _Storage(type_name, str(key))

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], *_: object) -> _Tensor:
        if storage.type not in _TYPES:
            raise _Unjudged
        item = _ITEM_BYTES[storage.type]
        start, length = item * offset, item * math.prod(size)
        member = f"{self._folder}data/{storage.key}"

        def read() -> bytes:
            data = self._archive.read(member)[start : start + length]
            if len(data) < length:
                raise _Unjudged
            return data

        return _Tensor(tuple(size), storage.type, read)


_ITEM_BYTES: Mapping[str, int] = {
    **{name: int(dtype[2:]) for name, dtype in _TYPES.items() if dtype is not None and dtype != "bf16"},
    **dict.fromkeys(("LongStorage", "IntStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage"), 0),
    "BFloat16Storage": 2,
}


def _pickled(archive: zipfile.ZipFile, path: Path) -> object:
    (folder,) = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("data.pkl")]
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise _Unjudged
    return _Reader(archive, folder, path).load()
