"""Two processes that train together: what is recorded of the gradients, and of who waits for whom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.integration import test_distributed as two
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from image_classifier.contract.outputs import STEPS
from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rules import parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, of_rank, read_job, read_statistics, read_steps
from image_classifier.debugging.sinks import JsonLines
from image_classifier.report import gather
from image_classifier.training.distributed import Group
from image_classifier.training.loop import compare_replicas
from image_classifier.vision.sample_data import make_sample_data

SIZE = 2
SLOW_S = 2.0  # far above the noise of a busy machine
SCRIPT = f"""
import builtins, os, sys, time
sys.path.insert(0, {str(two.SCRIPT.parent)!r})
from image_classifier.training import steps
from image_classifier.training.script import main

def slow_next(batches, *default):
    time.sleep({SLOW_S} if os.environ["RANK"] == "1" else 0)
    return builtins.next(batches, *default)

steps.next = slow_next
sys.exit(main(sys.argv[1:]))
"""


def work(rank: int, folder: Path) -> None:
    """One step of a linear network; each process has its own image. Leaves the local gradient's norm in a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    replica = DistributedDataParallel(model)
    recorder = Recorder(
        RunData(JobFacts(config={})),
        [JsonLines(folder, rank)],
        replica,
        torch.device("cpu"),
        num_classes=2,
        debug_interval=int(rank == 0),
        activation_interval=0,
    )
    images, labels = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(rank)), torch.tensor([rank])
    recorder.begin("train", 1, 0)
    logits = replica(images)
    loss = nn.functional.cross_entropy(logits, labels)
    (local,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), [model[1].weight])
    loss.backward()
    recorder.after_backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    recorder.after_update()
    recorder.end_step(loss, logits, labels)
    recorder.close()
    (folder / f"local-{rank}.json").write_text(json.dumps(local.tolist()))
    (folder / f"reduced-{rank}.json").write_text(json.dumps(model[1].weight.grad.tolist()))
    dist.destroy_process_group()


def test_recorded_gradients_are_those_after_the_all_reduce(tmp_path: Path) -> None:
    mp.start_processes(work, (tmp_path,), nprocs=SIZE, start_method="fork")

    def read(name: str, rank: int) -> torch.Tensor:
        return torch.tensor(json.loads((tmp_path / f"{name}-{rank}.json").read_text()))

    mean = torch.stack([read("local", rank) for rank in range(SIZE)]).mean(0)
    assert not torch.allclose(read("local", 0), read("local", 1))
    assert torch.equal(read("reduced", 0), read("reduced", 1))
    assert torch.allclose(read("reduced", 0), mean)
    (record,) = read_statistics(tmp_path)
    assert torch.isclose(torch.tensor(record.gradients["1.weight"]["l2"]), torch.linalg.vector_norm(mean))
    assert [len(read_steps(tmp_path, rank)) for rank in range(SIZE)] == [1, 1]


def drift(rank: int, folder: Path, wrapped: bool) -> None:  # started with positional arguments
    """Three epochs of two steps; the network in the wrapper is called instead of it where it is not `wrapped`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    group = Group(rank=rank, size=SIZE, control=dist.group.WORLD)
    replica = group.wrap(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = RunData(JobFacts(config={}, world_size=SIZE))
    live = LiveRules(run, folder if rank == 0 else None, parse_rules("ReplicasDrift"), (), flush=lambda: None,
                     on_stop=lambda _: None)  # fmt: skip
    training = SimpleNamespace(group=group, trained=model)
    for epoch in range(3):
        for step in range(2):
            images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(100 * epoch + 10 * step + rank))
            optimizer.zero_grad()
            (replica if wrapped else model)(images).square().mean().backward()
            optimizer.step()
        compare_replicas(training, live)  # type: ignore[arg-type]  # what it asks for
    live.close()
    dist.destroy_process_group()


@pytest.mark.parametrize(("wrapped", "verdict"), [(True, "NoIssuesFound"), (False, "IssuesFound")])
def test_replicas_that_drift_apart_are_found(wrapped: bool, verdict: str, tmp_path: Path) -> None:
    mp.start_processes(drift, (tmp_path, wrapped), nprocs=SIZE, start_method="fork")
    (result,) = json.loads((tmp_path / "rules.json").read_text())
    assert result["verdict"] == verdict
    assert (told := read_job(tmp_path)) is not None
    assert told.replicas == [int(not wrapped)] * 3


def test_a_process_that_is_slow_to_load_its_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes as on two hosts; SageMaker puts the output of both into one archive."""
    data = tmp_path / "images"
    make_sample_data(data, num_classes=2, train_per_class=8, valid_per_class=2, test_per_class=2, size=48)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(two, "SCRIPT", script)
    processes = two.start(tmp_path / "job", data, data, profile="True", trace_steps="0")
    logs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    first, second = (two.host(tmp_path / "job", rank) for rank in range(SIZE))
    assert (told := read_job(first.output_data)) is not None
    assert told.replicas == [0] * int(told.config["epochs"])
    name = of_rank(STEPS.name, 1)
    shutil.copy(second.output_data / name, first.output_data / name)
    found = gather(first.base)["processes"]
    assert found["slowest"]["rank"] == 1
    phases = [row["phases"] for row in found["rows"]]
    assert phases[1]["data_wait_s"] >= SLOW_S
    assert phases[0]["sync_s"] > phases[1]["sync_s"]
