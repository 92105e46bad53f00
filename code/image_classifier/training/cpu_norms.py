"""What ends a layer in training, on a CPU: loads the kernels of `norm_kernels.c` and calls them, in torch's threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from image_classifier.training.fused_norms import POOLED, WAYS, rows_and_channels
from image_classifier.training.norm_library import compile_into, level, path_of

# As in the kernels' source: rows of a chunk at least, chunks at least where there are the rows, values of a chunk.
TILE, CHUNKS, CHUNK_VALUES = 8, 32, 2**17
_NUMBERS = {way: number for number, way in enumerate((*WAYS, POOLED))}  # as in the kernels' source
_compiling = threading.Lock()
_loaded: dict[Path, ctypes.CDLL] = {}


class _Layer(ctypes.Structure):
    """As `Layer` in the kernels' source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "channels", "images", "high", "broad")),
        *((name, ctypes.c_void_p) for name in ("x", "shortcut", "dy", "y", "dx", "dshortcut", "mask", "which")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
        *((name, ctypes.c_void_p) for name in ("stats", "dweight", "dbias", "coefficients", "partials")),
    )


class CpuNorms:
    """`NormKernels` of a CPU. The same numbers come out for any number of threads.

    Args:
        library: what `load` returns.
    """

    dtypes = (torch.bfloat16, torch.float32)
    evaluates = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def forward(
        self,
        way: str,
        x: Tensor,
        shortcut: Tensor | None,
        norm: nn.BatchNorm2d,
        *,
        y: Tensor,
        mask: Tensor | None,
        stats: Tensor,
    ) -> None:
        """As in `NormKernels`."""
        partials = stats.new_empty(partials_size(x))
        filled = {"y": y, _remembered(way): mask, "stats": stats, "partials": partials}
        layer = _layer(x, **_of(norm), shortcut=shortcut, **filled)
        assert norm.momentum is not None
        layer.momentum, layer.eps = norm.momentum, norm.eps
        self._library.norm_forward(layer, _NUMBERS[way], x.dtype == torch.float32, torch.get_num_threads())

    def evaluate(self, way: str, x: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, *, y: Tensor) -> None:
        """As in `NormKernels`."""
        stats = x.new_empty((4, x.shape[1]), dtype=torch.float32)
        layer = _layer(x, **_of(norm), shortcut=shortcut, y=y, stats=stats)
        layer.eps = norm.eps
        self._library.norm_evaluate(layer, _NUMBERS[way], x.dtype == torch.float32, torch.get_num_threads())

    def backward(
        self,
        way: str,
        dy: Tensor,
        x: Tensor,
        *,
        mask: Tensor | None,
        stats: Tensor,
        weight: Tensor,
        dx: Tensor,
        dshortcut: Tensor | None,
        dweight: Tensor,
        dbias: Tensor,
    ) -> None:
        """As in `NormKernels`."""
        partials, coefficients = stats.new_empty(partials_size(x)), torch.empty_like(stats[:3])
        given = {"dy": dy, _remembered(way): mask, "stats": stats, "weight": weight}
        filled = {"dx": dx, "dshortcut": dshortcut, "dweight": dweight, "dbias": dbias}
        layer = _layer(x, **given, **filled, coefficients=coefficients, partials=partials)
        self._library.norm_backward(layer, _NUMBERS[way], x.dtype == torch.float32, torch.get_num_threads())


def _remembered(way: str) -> str:
    """What the kernels call `mask`."""
    return "which" if way == POOLED else "mask"


def _of(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    return {"weight": norm.weight, "bias": norm.bias, **dict(norm.named_buffers(recurse=False))}


def _layer(x: Tensor, **others: Tensor | None) -> _Layer:
    """Holds addresses alone: the tensors must live until the kernels have been called."""
    rows, channels = rows_and_channels(x)
    images, _, high, broad = x.shape
    places = {name: value.data_ptr() for name, value in {"x": x, **others}.items() if value is not None}
    return _Layer(rows=rows, channels=channels, images=images, high=high, broad=broad, **places)


def partials_size(x: Tensor) -> int:
    """Numbers in the partial sums of a tensor: three for each chunk of its rows and each channel."""
    rows, channels = rows_and_channels(x)
    each = max(TILE, min(rows // CHUNKS, CHUNK_VALUES // channels))
    return 3 * channels * -(-rows // each)


def load() -> ctypes.CDLL:
    """The kernels for this machine's CPU, compiled where they are not yet. Again what was loaded before.

    Raises:
        RuntimeError: this CPU has none of their instructions, or gcc fails; in a line.
        OSError: there is no gcc, or what it made cannot be loaded: torch has another OpenMP than GNU's.
    """
    name = level()
    if name is None:
        raise RuntimeError("the kernels are for x86-64 with AVX2")
    path = path_of(name)
    with _compiling:
        if path not in _loaded:
            _loaded[path] = _library(path, name)
        return _loaded[path]


def _library(path: Path, name: str) -> ctypes.CDLL:
    if path.exists():
        return _opened(path)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
    if os.access(path.parent, os.W_OK):
        compile_into(path, name)
        return _opened(path)
    with tempfile.TemporaryDirectory() as folder:  # it is installed where this user may not write
        compile_into(Path(folder, path.name), name)
        return _opened(Path(folder, path.name))


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for function in (library.norm_forward, library.norm_evaluate, library.norm_backward):
        function.argtypes = [ctypes.POINTER(_Layer), ctypes.c_int, ctypes.c_int, ctypes.c_int]
        function.restype = None
    library.in_parts.restype = library.undivided.restype = None
    return library
