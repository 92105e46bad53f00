"""Which device trains, and in what number format."""

from __future__ import annotations

import torch

AMPERE = (8, 0)  # the first CUDA compute capability with bf16 tensor cores


def choose_device(local_rank: int = 0) -> torch.device:
    """The GPU of a host's process when there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether to autocast to bf16. `auto` does where the hardware computes it natively: elsewhere it is emulated and
    slower than float32."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def describe_device(device: torch.device) -> str:
    """For the log: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"CPU, {num_threads} {'thread' if num_threads == 1 else 'threads'}"
