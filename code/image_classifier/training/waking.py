"""What a device needs a second or two for before its first step, done by a thread while the job reads its files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import describe
from image_classifier.training import cpu_norms
from image_classifier.training.cuda_kernels import architecture, compiled
from image_classifier.training.gpu_norms import SOURCE
from image_classifier.training.setup import use_bf16

log = logging.getLogger(__name__)


def wake(config: TrainConfig, device: torch.device) -> Callable[[], None]:
    """Begins to load a GPU's cuDNN and cuBLAS, and to compile our kernels where the job may use them. What fails here
    fails again, with a reason, where it is needed.

    Returns:
        what waits until that is done: to be called before processes are forked, which would inherit its locks.
    """
    fuses = config.fused_norms == "auto" and config.fine_tune == "full"
    if device.type != "cuda" and not fuses:
        return lambda: None
    thread = threading.Thread(target=_load, args=(config, device, fuses), name="waking the device", daemon=True)
    thread.start()
    return thread.join


def _load(config: TrainConfig, device: torch.device, fuses: bool) -> None:
    try:
        if device.type != "cuda":
            cpu_norms.load()
            return
        bf16 = use_bf16(config.amp, device)
        one_step(device, torch.bfloat16 if bf16 else torch.float32)
        if bf16 and fuses and config.cuda_graph == "auto":
            compiled(SOURCE, architecture(device))
    except Exception as error:  # any: of the driver, of torch, of NVRTC, of gcc
        log.debug("the %s was not woken: %s", device.type, describe(error))


def one_step(device: torch.device, dtype: torch.dtype) -> None:
    """Forward and backward pass of a convolution and of a head, with no random number drawn."""
    x = torch.ones((2, 64, 8, 8), dtype=dtype, device=device).to(memory_format=torch.channels_last)
    filters = torch.ones((64, 64, 3, 3), dtype=dtype, device=device).to(memory_format=torch.channels_last)
    head = torch.ones((4, 64), dtype=dtype, device=device)
    for tensor in (filters, head):
        tensor.requires_grad_()
    answer = F.linear(F.conv2d(x, filters, padding=1).mean((2, 3)), head).sum()
    torch.autograd.grad(answer, [filters, head])
