"""CUDA kernels without a GPU: their source, compiled by the machine's C++ compiler against `cuda_stand_in.h`, run over
tensors on the CPU."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from image_classifier.training.cuda_kernels import Launch, packed

HEADER = Path(__file__).with_name("cuda_stand_in.h")
PROCESSORS = 3  # few: several blocks of several rows each, of small tensors


def rows(
    *shape: int, seed: int = 0, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Random numbers as the kernels read them: (N, C, H, W), channels_last."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


class KernelStandIn:
    """Launches as `CudaKernels` does, with the same arguments. Counts.

    Args:
        source: the file with the kernels.
        names: of the kernels.
        folder: for what is compiled.
        compiler: of C++.

    Raises:
        CalledProcessError: the source is not C++ that the header serves.
    """

    def __init__(self, source: Path, names: Sequence[str], folder: Path, compiler: str) -> None:
        entries = "".join(
            f'extern "C" bool call_{name}(unsigned x, unsigned y, unsigned threads, const std::uint64_t* words, '
            f"unsigned number) {{ return stand_in::launch({name}, x, y, threads, words, number); }}\n"
            for name in names
        )
        turns = 'extern "C" void set_backwards(bool value) { backwards = value; }\n'
        program, library = folder / "kernels.cpp", folder / "kernels.so"
        program.write_text(f'#include "{HEADER}"\n#include "{source.resolve()}"\n{entries}{turns}')
        options = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
        subprocess.run([compiler, *options, "-shared", "-fPIC", "-o", library, program], check=True)
        self._library = ctypes.CDLL(str(library))
        self.launched: list[str] = []

    def __call__(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            assert all(not isinstance(each, torch.Tensor) or not each.is_cuda for each in launch.arguments)
            call = self._library[f"call_{launch.kernel}"]
            call.argtypes = [ctypes.c_uint] * 3 + [ctypes.c_void_p, ctypes.c_uint]
            call.restype = ctypes.c_bool
            words = packed(launch.arguments)
            assert call(*launch.grid, launch.threads, words, len(words)), launch
            self.launched.append(launch.kernel)

    def run_backwards(self, backwards: bool) -> None:
        """Whether the last thread of a block comes first."""
        self._library.set_backwards(ctypes.c_bool(backwards))
