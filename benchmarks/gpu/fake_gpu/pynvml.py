"""An NVML of one GPU that is not there, for `gpu_check.py --fake`: as busy as the machine's processor."""

from __future__ import annotations

from types import SimpleNamespace

import psutil

MEMORY_BYTES = 8 * 1024**3


class NVMLError(Exception):
    """As NVML's."""


def nvmlInit() -> None:  # noqa: N802  # NVML's names, here and below
    psutil.cpu_percent()


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetName(_handle: int) -> str:  # noqa: N802
    return "no GPU (--fake)"


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    return f"GPU-{handle}0000000-0000-0000-0000-000000000000"


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return "none (--fake)"


def nvmlDeviceGetMemoryInfo(_handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(used=MEMORY_BYTES * psutil.virtual_memory().percent / 100, total=MEMORY_BYTES)


def nvmlDeviceGetUtilizationRates(_handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=round(psutil.cpu_percent()), memory=0)


def nvmlDeviceGetPowerUsage(_handle: int) -> int:  # noqa: N802
    raise NVMLError("not every GPU tells")
