"""Part (c): faults planted on the real GPU. Do the rules speak, and are they silent on the healthy training?"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.jobs import make_job
from benchmarks.gpu.kit import Kit, Missing, read_json
from benchmarks.gpu.trainer import SYSTEM_RULES

RUN_S = 24.0  # of a training with a fault: a few epochs, or enough samples where there is no epoch
FEW = {"cache": "none", "epochs": 1000, "warmup_epochs": 1, "trace_steps": 0}
# name -> what is planted, the settings, and the rules of which at least one must speak
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "starved feed": (("starved",), {"workers": 2, "batch_size": 128}, ("LowGPUUtilization", "Dataloader")),
    "memory leak": (("leak",), {"batch_size": 64}, ("GPUMemoryIncrease",)),
    "small batch": ((), {"batch_size": 2}, ("BatchSize", "LowGPUUtilization")),
}
FAKE_CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "starved feed and memory leak": (("starved", "leak"), {"batch_size": 8, "workers": 1}, ("Dataloader",)),
}


def run(kit: Kit) -> None:
    """Each fault in a training of its own, which is asked to stop after some seconds; then the healthy one of (a)."""
    for name, (faults, settings, wanted) in kit.size(CASES, FAKE_CASES).items():
        job = make_job(kit, name.replace(" ", "-"), faults=faults, **settings | kit.size(FEW, {"epochs": 2}))
        job.start()
        job.wait(stop_after_s=kit.size(RUN_S, None))
        job.require(0, 143)  # 143: asked to stop
        found = job.early_verdicts(*SYSTEM_RULES)
        fired = [rule for rule, verdict in found.items() if verdict.startswith("IssuesFound")]
        kit.note(name, {"fired": fired, "verdicts": found, "gpu": job.gpu_use()})
        kit.claim(
            f"{' or '.join(wanted)} speaks of a {name}",
            bool(set(wanted) & set(fired)),
            "; ".join(f"{rule} {found[rule]}" for rule in wanted),
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
