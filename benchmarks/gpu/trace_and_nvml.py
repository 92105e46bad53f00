"""Part (h): the sampler's numbers of the GPU, what a look at them costs, and CUDA kernels in the trace."""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections import Counter
from pathlib import Path

from benchmarks.gpu.jobs import make_job
from benchmarks.gpu.kit import Kit

from image_classifier.contract.outputs import TRACE
from image_classifier.debugging.sampler import Machine
from image_classifier.debugging.saved import read_files

GPU_DIMENSIONS = ("GPUUtilization", "GPUMemoryUtilization", "GPUPowerWatts")


def run(kit: Kit) -> None:
    """Looks at part (a)'s training, or at a short one of its own where that left no trace."""
    output = _watched_job(kit)
    data = read_files(output)
    samples = {name: len(next(iter(data.system(name).values())).values) for name in GPU_DIMENSIONS if data.system(name)}
    kit.note("samples_of_the_gpu", samples)
    kit.claim("utilization, memory and power of the GPU are sampled", set(samples) == set(GPU_DIMENSIONS), str(samples))
    machine = Machine()
    looks = []
    for _ in range(kit.size(30, 3)):
        started = time.perf_counter()
        list(machine.read())
        looks.append(1000 * (time.perf_counter() - started))
    machine.close()
    kit.note("a_look_at_the_machine_ms", statistics.median(looks))
    look_at_trace(kit, output / "data" / TRACE)


def look_at_trace(kit: Kit, file: Path) -> None:
    """Counts what the trace holds, and names what took the GPU longest."""
    with gzip.open(file, "rt", encoding="utf-8") as text:
        events = [each for each in json.load(text)["traceEvents"] if each.get("ph") == "X"]
    kinds = Counter(str(each.get("cat", "none")) for each in events)
    kind = kit.size("kernel", "cpu_op")
    longest: Counter[str] = Counter()
    for each in events:
        if each.get("cat") == kind:
            longest[each["name"][:60]] += each["dur"] / 1000
    kit.note("events", dict(kinds.most_common(8)))
    kit.note("longest_ms", dict(longest.most_common(10)))
    kit.claim("the trace holds CUDA kernels", kinds[kind] > 0, f"{kinds[kind]} events of the kind {kind}")


def _watched_job(kit: Kit) -> Path:
    for made in sorted((kit.folder / "jobs").glob("full*")):
        if (made / "output" / "data" / TRACE).is_file():
            return made / "output"
    job = make_job(
        kit, "traced", epochs=kit.size(1, 2), batch_size=kit.size(64, 4), rules="none", trace_steps=3, preflight="off"
    )
    job.start()
    job.wait()
    job.require(0)
    return job.paths.output
