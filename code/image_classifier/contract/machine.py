"""What the machine grants this process: cores, memory, ports. In a container, what its limits leave of them. Linux."""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from image_classifier.contract.endpoint import MAX_PORT
from image_classifier.contract.errors import PlatformError

CGROUP = Path("/sys/fs/cgroup")  # where Linux shows the limits: version 2 in here, version 1 in a folder a resource
OWN_CGROUP = Path("/proc/self/cgroup")  # this process's place below it; a container sees itself at the top
MEMINFO = Path("/proc/meminfo")
PORTS_TRIED = 100


def allowed_cores() -> list[int]:
    """The numbers of the cores that the scheduler may put this process on, ascending (affinity mask)."""
    return sorted(os.sched_getaffinity(0))


def usable_cores(cgroup: Path = CGROUP) -> int:
    """How many cores' work this process can get done: its affinity mask or its CPU quota, rounded up, whichever is
    less; at least 1."""
    quotas = [quota for folder in _folders(cgroup, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, min([len(allowed_cores()), *map(math.ceil, quotas)]))


def usual_threads() -> int:
    """With how many threads a program of this process's share computes: OMP_NUM_THREADS where it is a number, as it is
    of a job that shares the machine, but no more than `usable_cores`."""
    wished, cores = os.environ.get("OMP_NUM_THREADS", ""), usable_cores()
    return min(int(wished), cores) if wished.isascii() and wished.isdigit() and int(wished) else cores


def memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Bytes of memory, and of it free or freed on demand: the machine's or, where that is less, the container's."""
    total, free = _machine_memory()
    for folder in _folders(cgroup, "memory"):
        limited = _limited_memory(folder)
        if limited is not None and limited[0] < total:
            total, free = limited[0], min(free, limited[0] - limited[1])
    return total, free


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU's driver shows its files, NVIDIA's own or those of Windows' Linux."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def require_free_port(host: str, port: int, *, hint: str = "") -> None:
    """Raises PlatformError when nothing can listen on `host`:`port`.

    Args:
        hint: how another port is chosen where the caller stands; without it, by `--port`.
    """
    with bind(host, port, hint=hint) as probe, port_errors(host, port, hint=hint):
        probe.listen()


def bind(host: str, port: int, *, hint: str = "") -> socket.socket:
    """A TCP socket bound to `host`:`port`, for one to listen on later. Raises as `require_free_port`."""
    with port_errors(host, port, hint=hint):
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed one's port is free
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound


@contextmanager
def port_errors(host: str, port: int, *, hint: str = "") -> Iterator[None]:
    """Turns what the system says of binding and listening into PlatformError."""
    try:
        yield
    except socket.gaierror:
        raise PlatformError(f"{host} is no address of this machine", hint or "use --host 127.0.0.1") from None
    except PermissionError:
        raise PlatformError(
            f"port {port} is reserved for the system", hint or "choose one above 1023 with --port"
        ) from None
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise PlatformError(
            f"port {port} on {host} is in use" if taken else f"cannot listen on {host}:{port}: {error.strerror}",
            hint or f"stop what listens there, or choose another port: --port {port % MAX_PORT + 1}",
        ) from None


def some_free_port(host: str) -> int:
    """A TCP port that the system has to spare: nobody else is likely to ask for it in the next seconds."""
    with bind(host, 0) as probe:
        return int(probe.getsockname()[1])


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that is free; `first` itself when none of the next PORTS_TRIED is."""
    for port in range(first, min(first + PORTS_TRIED, MAX_PORT)):
        with suppress(PlatformError):
            require_free_port(host, port)
            return port
    return first


def _folders(cgroup: Path, resource: str) -> list[Path]:
    """The folders whose limits hold for this process: its own, and those above it."""
    version_2 = not (cgroup / resource).is_dir()
    root, wanted = (cgroup, "") if version_2 else (cgroup / resource, resource)
    try:
        entries = [line.split(":", 2) for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines()]
    except OSError:
        entries = []
    place = next((path for _, names, path in entries if wanted in names.split(",")), "/")
    own = root / place.lstrip("/")
    if ".." in own.parts:  # outside of what this container can see
        own = root
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir()]


def _quota(folder: Path) -> float | None:
    """Cores granted by cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_*`), None when there is no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # not in a cgroup, or the quota is "max"
        return None


def _machine_memory() -> tuple[int, int]:
    """Total and available bytes, as the kernel counts them."""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, available


def _limited_memory(folder: Path) -> tuple[int, int] | None:
    """Limit and use of cgroup v2 or v1, without the files that memory is left over for; None without a limit."""
    names = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    if not (folder / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")
    try:
        limit, used = (int((folder / name).read_text()) for name in names[:2])
        counts = dict(line.split() for line in (folder / names[2]).read_text().splitlines())
        return limit, used - int(counts[names[3]])
    except (OSError, ValueError, KeyError):  # not in a cgroup, or the limit is "max"
        return None
