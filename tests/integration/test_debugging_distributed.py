"""Two processes that train together: what is recorded of the gradients is their mean, which the optimiser uses."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, read_statistics, read_steps
from image_classifier.debugging.sinks import JsonLines

SIZE = 2


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
    dist.destroy_process_group()


def test_recorded_gradients_are_those_after_the_all_reduce(tmp_path: Path) -> None:
    mp.start_processes(work, (tmp_path,), nprocs=SIZE, start_method="fork")
    mean = sum(torch.tensor(json.loads((tmp_path / f"local-{rank}.json").read_text())) for rank in range(SIZE)) / SIZE
    (record,) = read_statistics(tmp_path)
    assert torch.isclose(torch.tensor(record.gradients["1.weight"]["l2"]), torch.linalg.vector_norm(mean))
    assert [len(read_steps(tmp_path, rank)) for rank in range(SIZE)] == [1, 1]
