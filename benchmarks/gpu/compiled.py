"""Part (j): the training step beside torch.compile's, which writes kernels of its own for what ends a layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from benchmarks.gpu.kit import Kit, Missing
from benchmarks.gpu.stub_builder import has_compiler
from benchmarks.gpu.trainer import BATCH, synthetic_limit

OURS = "ours"
MODES = ("default", "reduce-overhead")
"""torch.compile's; the second replays CUDA graphs. `max-autotune` is left out: it tries kernels for minutes."""


def run(kit: Kit) -> None:
    """Each in turn, with the seconds until it was measured: they are what making kernels takes, but for a few."""
    if not has_compiler():
        raise Missing("torch.compile needs a C compiler, and there is none here")
    batch = kit.size(BATCH, 2)
    speeds: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for way in (OURS, *MODES):
        torch.compiler.reset()
        begun = time.perf_counter()
        if way == OURS:
            speeds[way] = synthetic_limit(kit, batch, replayed=True, ours=True)
        else:
            compiler = partial(compiled, backend=kit.size("inductor", "eager"), mode=way)
            speeds[way] = synthetic_limit(kit, batch, compiler=compiler)
        seconds[way] = time.perf_counter() - begun
        kit.note("images_per_s", speeds)
        kit.note("seconds_in_all", seconds)
    theirs, least = max(speeds[mode] for mode in MODES), min(seconds[mode] for mode in MODES)
    kit.claim(
        "our step is as fast as torch.compile's or faster",
        speeds[OURS] >= theirs,
        f"{speeds[OURS] / theirs:.2f} times, {seconds[OURS]:.0f} s of work instead of {least:.0f}",
    )


def compiled(model: torch.nn.Module, *, backend: str, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network by torch.compile, whole: a part that it leaves as it is would be an error."""
    return torch.compile(model, backend=backend, mode=None if backend == "eager" else mode, fullgraph=True)
