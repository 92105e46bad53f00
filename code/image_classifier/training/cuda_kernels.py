"""CUDA kernels from source to launch: compiled by NVRTC for the very GPU, which takes about a second, and launched by
the driver. Both are NVIDIA's `cuda.bindings`, which torch for CUDA brings along; no compiler and no headers are needed.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Argument = torch.Tensor | int | float | None  # a tensor's address; a 64-bit integer; a double; the null pointer
WORD = 8  # bytes of every argument of our kernels


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel, and what it is to compute.

    Args:
        kernel: its name.
        grid: blocks along x and y.
        threads: of a block.
        arguments: as the kernel takes them; tensors must lie on its GPU, and live until the launch.
    """

    kernel: str
    grid: tuple[int, int]
    threads: int
    arguments: tuple[Argument, ...]


_compiling = threading.Lock()
_made: dict[tuple[Path, str], bytes] = {}

Run = Callable[[Sequence[Launch]], None]  # one behind the other


class CudaKernels:
    """Launches the kernels of one source file, on the stream that is current. Holds no state between launches: they may
    be recorded in a CUDA graph, and launched from several threads.

    Args:
        source: the file; what it includes lies beside it, and includes nothing.
        names: of its kernels, each `extern "C"`, whose arguments all have 8 bytes.
        device: the GPU.

    Raises:
        ImportError: there is no `cuda.bindings`.
        RuntimeError: the source is not compiled or not loaded; or torch has no GPU.
        OSError: the file cannot be read.
    """

    def __init__(self, source: Path, names: Sequence[str], device: torch.device) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._device = device
        self._threads = threading.local()
        torch.empty(1, device=device)  # torch's context is there then
        self._enter()
        self._module = self._call(driver.cuModuleLoadData, compiled(source, architecture(device)))
        self._functions = {name: self._call(driver.cuModuleGetFunction, self._module, name.encode()) for name in names}

    def __call__(self, launches: Sequence[Launch]) -> None:
        """Raises RuntimeError where one cannot be launched. What goes wrong while it runs is told by torch, later."""
        self._enter()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        for launch in launches:
            words = packed(launch.arguments)
            first = ctypes.addressof(words)
            addresses = (ctypes.c_void_p * len(words))(*range(first, first + WORD * len(words), WORD))
            self._call(
                self._driver.cuLaunchKernel,
                self._functions[launch.kernel],
                *launch.grid,
                1,
                launch.threads,
                1,
                1,
                0,
                stream,
                ctypes.addressof(addresses),  # the driver has read them when the call returns
                0,
            )

    def _enter(self) -> None:
        """Makes torch's context this thread's, where it has none yet: autograd's own threads may not."""
        if getattr(self._threads, "entered", False):
            return
        if int(self._call(self._driver.cuCtxGetCurrent)) == 0:
            device = self._call(self._driver.cuDeviceGet, torch.cuda.current_device())
            self._call(self._driver.cuCtxSetCurrent, self._call(self._driver.cuDevicePrimaryCtxRetain, device))
        self._threads.entered = True

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: object) -> Any:
        result, *values = function(*arguments)
        if int(result) != 0:
            raise RuntimeError(f"{getattr(function, '__name__', 'the driver')}: {result!r}")
        return values[0] if values else None


def packed(arguments: Sequence[Argument]) -> ctypes.Array[ctypes.c_uint64]:
    """The arguments as 8 bytes each, as kernels are given them."""
    return (ctypes.c_uint64 * len(arguments))(*map(_word, arguments))


def _word(argument: Argument) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return int.from_bytes(struct.pack("<d", argument), "little")
    return argument or 0


def architecture(device: torch.device) -> str:
    """As NVRTC names it, such as sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def compiled(source: Path, architecture: str) -> bytes:
    """`machine_code`, made once in a process: a thread may have begun, see `waking.py`. Raises what that raises."""
    with _compiling:
        if (source, architecture) not in _made:
            _made[source, architecture] = machine_code(source, architecture)
        return _made[source, architecture]


def machine_code(source: Path, architecture: str) -> bytes:
    """The file's machine code.

    Args:
        architecture: as NVRTC names it, such as sm_90.

    Raises:
        ImportError: there is no `cuda.bindings`.
        RuntimeError: the source has an error, or NVRTC is missing or does not know the architecture.
        OSError: the file cannot be read.
    """
    from cuda.bindings import nvrtc

    text = source.read_bytes()
    included = re.findall(rb'^#include "(.+)"$', text, re.MULTILINE)
    headers = [source.with_name(name.decode()).read_bytes() for name in included]
    made = nvrtc.nvrtcCreateProgram(text, source.name.encode(), len(headers), headers, included)
    if int(made[0]) != 0:
        raise RuntimeError(f"NVRTC: {made[0]!r}")
    program = made[1]
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(result) != 0:
            log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
            nvrtc.nvrtcGetProgramLog(program, log)
            said = log.decode(errors="replace").strip("\0 \n").partition("\n")[0]
            raise RuntimeError(f"{source.name} is not compiled for {architecture}: {said or result}")
        code: bytes = b" " * nvrtc.nvrtcGetCUBINSize(program)[1]
        (result,) = nvrtc.nvrtcGetCUBIN(program, code)
        if int(result) != 0:
            raise RuntimeError(f"NVRTC has no code for {architecture}: {result!r}")
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)
