"""Part (g): a training on the GPU that is killed with SIGKILL between two epochs, and goes on."""

from __future__ import annotations

import math

from benchmarks.gpu.jobs import make_job
from benchmarks.gpu.kit import Kit

EPOCHS = 8  # more than one, by far, when the first checkpoint is written


def run(kit: Kit) -> None:
    """Kills it after its first checkpoint, starts it again, and looks at what it went on with."""
    epochs = kit.size(EPOCHS, 2)
    job = make_job(kit, "resume", epochs=epochs, batch_size=kit.size(128, 8), trace_steps=0)
    job.start()
    job.wait(until=lambda: any(job.paths.checkpoints.glob("*.ckpt")))
    before = job.history
    killed = job.process is not None and job.process.returncode < 0
    job.start()
    seconds = job.wait()
    job.require(0)
    resumed = [line.partition("resuming from ")[2] for line in job.log.splitlines() if "resuming from" in line]
    after = job.history
    kit.note("killed_after_epochs", len(before))
    kit.note("resumed", bool(resumed))
    kit.note("seconds_of_the_second_start", seconds)
    kit.note("losses", [row["train:loss"] for row in after])
    kit.claim(
        "a training that is killed with SIGKILL goes on from its checkpoint, and ends with every epoch once",
        killed
        and bool(resumed)
        and [row["epoch"] for row in after] == list(range(1, epochs + 1))
        and all(math.isfinite(row["train:loss"]) for row in after),
        f"killed after {len(before)} epochs, resumed: {bool(resumed)}, epochs {[row['epoch'] for row in after]}",
    )
