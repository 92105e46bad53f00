"""Part (c): faults planted on the real GPU. Do the rules speak, and are they silent on the healthy training?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.jobs import make_job
from benchmarks.gpu.kit import Kit, Missing, read_json
from benchmarks.gpu.trainer import SYSTEM_RULES

FEW = {"cache": "none", "epochs": 1000, "warmup_epochs": 1, "trace_steps": 0, "preflight": "off"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training with something wrong.

    Args:
        faults: of planted.py.
        settings: hyperparameters.
        wanted: rules of which at least one must speak.
        seconds: of steps, after which it is asked to stop: some epochs, or enough samples within one. None: it ends by
            itself.
    """

    faults: tuple[str, ...] = ()
    settings: Mapping[str, Any]
    wanted: tuple[str, ...]
    seconds: float | None


CASES = {
    "starved feed": Case(
        faults=("starved",),
        settings={"workers": 2, "batch_size": 128},
        wanted=("LowGPUUtilization", "Dataloader"),
        seconds=14.0,
    ),
    "memory leak": Case(faults=("leak",), settings={"batch_size": 64}, wanted=("GPUMemoryIncrease",), seconds=20.0),
    # Replayed from a CUDA graph, kernels follow each other so closely that the GPU counts as busy, however small they
    # are: nothing that the rules look at tells such a training from a large batch.
    "small batch": Case(
        settings={"batch_size": 2, "cuda_graph": "off"}, wanted=("BatchSize", "LowGPUUtilization"), seconds=13.0
    ),
}
FAKE_CASES = {
    "starved feed and memory leak": Case(
        faults=("starved", "leak"), settings={"batch_size": 8, "workers": 1}, wanted=("Dataloader",), seconds=None
    ),
}


def run(kit: Kit) -> None:
    """Each fault in a training of its own, which is asked to stop after some seconds; then the healthy one of (a)."""
    for name, case in kit.size(CASES, FAKE_CASES).items():
        settings = dict(case.settings) | kit.size(FEW, {"epochs": 2})
        job = make_job(kit, name.replace(" ", "-"), faults=case.faults, **settings)
        job.start()
        job.wait(stop_after_s=case.seconds)
        job.require(0, 143)  # 143: asked to stop
        found = job.early_verdicts(*SYSTEM_RULES)
        fired = [rule for rule, verdict in found.items() if verdict.startswith("IssuesFound")]
        kit.note(name, {"fired": fired, "verdicts": found, "gpu": job.gpu_use()})
        kit.claim(
            f"{' or '.join(case.wanted)} speaks of a {name}",
            bool(set(case.wanted) & set(fired)),
            "; ".join(f"{rule} {found[rule]}" for rule in case.wanted),
        )
    healthy = _healthy(kit)
    fired = [rule for rule, verdict in healthy.items() if verdict.startswith("IssuesFound")]
    kit.note("healthy", healthy)
    kit.claim("the rules about the machine are silent on the healthy training", not fired, ", ".join(fired) or "silent")


def _healthy(kit: Kit) -> dict[str, str]:
    """The verdicts on part (a)'s training."""
    found = read_json(kit.folder / "a.json").get("measured", {}).get("full", {}).get("rules_after_8_s")
    if not found:
        raise Missing("part a left no healthy training to compare with")
    return dict(found)
