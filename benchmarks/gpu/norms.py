"""Part (i): what ends a layer in training (batch norm, shortcut, ReLU, max pooling) by our kernels beside torch's
operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu.kit import Kit, Missing

from image_classifier.training.fused_norms import POOLED, WAYS, FusedNorms
from image_classifier.training.norm_trial import SHAPES as TRIED
from image_classifier.training.norm_trial import errors, on_gpu, random_case
from image_classifier.vision.resnet import end_layer

BATCH = 128
SHAPES = (
    (POOLED, 64, 112),
    ("relu", 64, 56),
    ("plain", 256, 56),
    ("add_relu", 256, 56),
    ("relu", 128, 28),
    ("add_relu", 512, 28),
    ("relu", 256, 14),
    ("add_relu", 1024, 14),
    ("relu", 512, 7),
    ("add_relu", 2048, 7),
)
"""Way of a layer's end, channels, side: those of a ResNet50 at 224 pixels."""
SLEEP_CYCLES = 20_000_000  # of the GPU's clock, about 10 ms: the host launches all rounds meanwhile
ROUNDS, TRIES = 5, 3


def run(kit: Kit) -> None:
    """Are they right, then how long forward and backward pass take."""
    if kit.fake:
        raise Missing("our kernels need a GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    norms = on_gpu(device)
    worst = max(
        value
        for way in (*WAYS, POOLED)
        for shape in TRIED[device.type].checked
        for value in errors(norms, way, shape).values()
    )
    kit.note("largest_error_over_what_it_may_be", worst)
    same = "our layer ends compute what torch's do, but for rounding to bf16"
    kit.claim(same, worst <= 1, f"{worst:.3f} of the limit")
    found = {f"{way} {channels}x{side}x{side}": compared(norms, way, channels, side) for way, channels, side in SHAPES}
    kit.note("of_128_images", found)
    slower = [name for name, each in found.items() if each["times_torch"] <= 1]
    kit.claim("they are faster at every size of a ResNet50", not slower, ", ".join(slower) or "at all of them")


def compared(norms: FusedNorms, way: str, channels: int, side: int) -> dict[str, Any]:
    """Milliseconds of forward and backward pass, and what our kernels move in a second."""
    case = random_case(way, (BATCH, channels, side, side), norms.device)
    ours = milliseconds(lambda: case.passes(norms))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        theirs = milliseconds(lambda: case.passes(end_layer))
    # x, y; x, dy; x, dy, dx once each, and x once for the statistics; a shortcut, its gradient, three times its mask.
    # Where it is pooled, y and dy have a quarter of the values, with a byte for each.
    tensors = {"add_relu": 10 + 3 / 16, POOLED: 5 + 3 / 4 + 3 / 8}.get(way, 8)
    moved = tensors * case.x.numel() * case.x.element_size()
    return {"ours_ms": ours, "torch_ms": theirs, "times_torch": theirs / ours, "gigabytes_per_s": moved / ours / 1e6}


def milliseconds(action: Callable[[], object]) -> float:
    """GPU time of one, the least of some tries, launched behind what keeps the GPU busy meanwhile."""
    action()
    least = float("inf")
    for _ in range(TRIES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(ROUNDS):
            action()
        end.record()
        torch.cuda.synchronize()
        least = min(least, start.elapsed_time(end) / ROUNDS)
    return least
