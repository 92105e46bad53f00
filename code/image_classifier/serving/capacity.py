"""How many processes answer requests where nobody says it, and with how many threads: as the cores and the memory
allow."""

from __future__ import annotations

from pathlib import Path

from image_classifier.contract.machine import CGROUP, memory, usable_cores
from image_classifier.serving.requested import OPENVINO, has_gpu, requested_engine

GPU_WORKERS = 4  # a worker decodes one image at a time; more of them only fill the GPU's memory
SHARED_BYTES = 600_000_000  # the JVM with bodies in its queue, the model and what workers share of Python and OpenVINO
WORKER_BYTES = 450_000_000  # the largest picture that is accepted (`vision.decode.MAX_PIXELS`), decoded, and its copy


def default_workers(cgroup: Path = CGROUP) -> int:
    """One a usable core, as long as each of them can decode the largest picture at the same time; at least 1."""
    cores = usable_cores(cgroup)
    if _computes_on_gpu():
        cores = min(cores, GPU_WORKERS)
    total, _ = memory(cgroup)
    return max(1, min(cores, (total - SHARED_BYTES) // WORKER_BYTES))


def threads_of(num_workers: int, cgroup: Path = CGROUP) -> int:
    """With how many threads each of so many workers computes: what fewer workers than cores leave of them, at least 1.

    A worker on each core answers most requests a second. Where there is no memory for that, or somebody asks for fewer,
    a request is answered sooner by several cores than by one beside others that are idle. 1 where a GPU computes.
    """
    return 1 if _computes_on_gpu() else max(1, usable_cores(cgroup) // num_workers)


def _computes_on_gpu() -> bool:
    return requested_engine() != OPENVINO and has_gpu()
