"""What a job trains on, settled once: the device, the number format, the loading processes, the images kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from image_classifier.contract.config import AUTO_WORKERS, TrainConfig
from image_classifier.contract.machine import usable_cores
from image_classifier.contract.shared_memory import MAX_WORKERS, fitting_workers, free_bytes, needed_bytes
from image_classifier.training.cache import PixelCache, make_cache
from image_classifier.training.shared_pictures import shared_cache
from image_classifier.training.unused_gpu import unused_gpu
from image_classifier.vision.fingerprint import Digests
from image_classifier.vision.folders import ImageFolders

log = logging.getLogger(__name__)
LOCAL_SIZE_VARIABLE = "LOCAL_WORLD_SIZE"  # torchrun's name for the number of training processes on this host
AMPERE = (8, 0)  # the first CUDA compute capability with bf16 tensor cores
CORES_PER_WORKER = 4  # without a GPU: the network is busy on every core, decoding needs a fraction of one


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the settings and the machine have come to; nobody works it out again.

    Args:
        device: of the network.
        device_name: for people: the GPU's name, or the number of CPU threads.
        bf16: whether training and validation autocast to bf16.
        cores: CPU cores the job may use.
        gpus: names of the host's GPUs, empty without one.
        workers: data loading processes.
        early: whether those of the validation may begin while those of the training are not done, and the other way
            round: there is shared memory for the batches of both.
        kept: split -> where its decoded images are kept. What is not to be kept, or what the system granted no memory
            for, is missing.
    """

    device: torch.device
    device_name: str = ""
    bf16: bool = False
    cores: int = 1
    gpus: tuple[str, ...] = ()
    workers: int = 0
    early: bool = False
    kept: Mapping[str, PixelCache] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether decoded training images are kept in memory."""
        return "train" in self.kept

    @property
    def number_format(self) -> str:
        """In words."""
        return "bf16" if self.bf16 else "float32"

    def autocast(self, *, keep_casts: bool = True) -> torch.autocast:
        """The context in which the network computes its answers.

        Args:
            keep_casts: of weights, until the context ends.
        """
        device = self.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=keep_casts)


def make_setup(
    config: TrainConfig, device: torch.device, folders: ImageFolders, contents: Digests | None = None
) -> Setup:
    """Settles everything but the device, whose network should have its memory first. Before processes are forked.

    Args:
        contents: the files' digests, by which pictures are known that other trials decoded.
    """
    workers = workers_with_room(config, num_workers(config.workers, device))
    cache: PixelCache | None
    kept: dict[str, PixelCache] = {}
    if wants_cache(config):
        for split in (folders.train, folders.valid):
            if (cache := shared_cache(config, split, contents or {})) is None:
                cache = make_cache(len(split), processes=workers > 0)
            if cache is not None:
                kept[split.name] = cache
    on_gpu = device.type == "cuda"
    return Setup(
        device=device,
        device_name=describe_device(device),
        bf16=use_bf16(config.amp, device),
        cores=usable_cores(),
        gpus=tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) if on_gpu else (),
        workers=workers,
        early=fitting_workers(2 * workers, config.batch_size, config.image_size, free_bytes()) == 2 * workers,
        kept=kept,
    )


def choose_device(local_rank: int = 0) -> torch.device:
    """The GPU of a host's process when there is one, else the CPU, with no more threads than there are cores for them:
    torch counts those of the machine, whatever a container's quota leaves. Beside a GPU one thread: to gather a batch,
    several would wait for each other at every picture, while all cores are loading."""
    if not torch.cuda.is_available():
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        return torch.device("cpu")
    torch.set_num_threads(1)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def tell_device(amp: str, device: torch.device) -> None:
    """The first line of a job's log: what computes, with how many threads, in which number format; and a warning where
    a GPU is left unused."""
    log.info("device: %s, %s", describe_device(device), "bf16" if use_bf16(amp, device) else "float32")
    if device.type == "cpu" and (found := unused_gpu(torch.__version__, torch.version.cuda)) is not None:
        log.warning("%s (%s)", found.sentence, found.hint)


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether to autocast to bf16. `auto` does where the hardware computes it natively: elsewhere it is emulated and
    slower than float32."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def num_workers(wanted: int, device: torch.device) -> int:
    """Data loading processes: as wanted; for AUTO_WORKERS with a GPU one a core, but for two that launch the steps and
    serve the system, shared by the training processes of this host; else one for every fourth core.

    On two cores without a GPU that is none: at 128 pixels the loop waits for images 2 % of the time, and a process of
    its own for them takes as much from the network.
    """
    if wanted != AUTO_WORKERS:
        return wanted
    cores = usable_cores()
    if device.type != "cuda":
        return min(MAX_WORKERS, cores // CORES_PER_WORKER)
    processes = int(os.environ.get(LOCAL_SIZE_VARIABLE, "1"))
    return min(MAX_WORKERS, max(1, (cores - 2) // processes))


def workers_with_room(config: TrainConfig, wanted: int) -> int:
    """`wanted` data loading processes, or as many as the shared memory has room for, with a line in the log."""
    free = free_bytes()
    fitting = fitting_workers(wanted, config.batch_size, config.image_size, free)
    if fitting < wanted:
        log.warning(
            "workers=%d instead of %d: %d need %.0f MB of shared memory, half of the %.0f MB free in /dev/shm is less",
            fitting,
            wanted,
            wanted,
            needed_bytes(config.batch_size, config.image_size, wanted) / 1e6,
            free / 1e6,
        )
        log.info("hint: a container is given more with --shm-size; a lower batch_size needs less")
    return fitting


def wants_cache(config: TrainConfig) -> bool:
    """Whether to keep decoded pictures; `auto` does unless a frozen body sees each of them before the first epoch."""
    on_features = config.fine_tune == "head" and config.feature_views > 0
    return config.epochs > 1 and (config.cache == "decoded" or (config.cache == "auto" and not on_features))


def exact_float32() -> AbstractContextManager[None]:
    """A context in which a GPU's convolutions compute float32 as everywhere else. By default they round to TF32, whose
    mantissa has 10 bits: that is neither what is served nor what golden samples are made of."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


def describe_device(device: torch.device) -> str:
    """For the log: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"CPU, {num_threads} {'thread' if num_threads == 1 else 'threads'}"
