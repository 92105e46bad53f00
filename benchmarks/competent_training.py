"""The other baseline of bench_training.py: the whole network, trained by who knows how. Prints a line of JSON.

    python benchmarks/competent_training.py DATA WEIGHTS EPOCHS SIZE BATCH LR WORKERS OUTPUT SEED [--resident [--ours]]

torchvision's DataLoader with loading processes that stay, random crops of the same range as ours and flips, SGD with
Nesterov momentum, warm-up and cosine, label smoothing, channels_last, bf16 autocast where the CPU computes that, the
best epoch's weights tested. With --resident only the training step, on one batch that lies in memory: what no way of
loading can exceed; with --ours that of our network and optimiser, as a job of ours has them.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet50

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESIDENT_STEPS = 8
FLAGS = torch.cpu.get_capabilities()
BF16 = bool(FLAGS.get("avx512_bf16") or FLAGS.get("amx_bf16") or FLAGS.get("bf16"))
# As ours by default: smallest share of a crop, momentum, weight decay, label smoothing, warm-up
CROPS, MOMENTUM, DECAY, SMOOTHING, WARMUP_EPOCHS = (0.35, 1.0), 0.9, 1e-4, 0.1, 1


def loader(folder: Path, transform: transforms.Compose, batch: int, workers: int, *, train: bool) -> DataLoader[object]:
    return DataLoader(
        ImageFolder(folder, transform),
        batch_size=batch,
        shuffle=train,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        logits: torch.Tensor = model(images.to(memory_format=torch.channels_last))
    return logits.float()


@torch.inference_mode()
def accuracy(model: nn.Module, batches: DataLoader[object]) -> float:
    model.eval()
    hits = total = 0
    for images, labels in batches:
        hits += int((answers(model, images).argmax(1) == labels).sum())
        total += len(labels)
    return hits / total


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(answers(model, images), labels, label_smoothing=SMOOTHING).backward()
    optimizer.step()


def resident(model: nn.Module, optimizer: torch.optim.Optimizer, size: int, batch: int, classes: int) -> float:
    """Images a second of the step alone."""
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % classes
    model.train()
    step(model, optimizer, images, labels)
    started = time.perf_counter()
    for _ in range(RESIDENT_STEPS):
        step(model, optimizer, images, labels)
    return RESIDENT_STEPS * batch / (time.perf_counter() - started)


def our_training(weights: Path, classes: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Network and optimiser as a job of ours has them, from the same weights."""
    from image_classifier.contract.config import TrainConfig
    from image_classifier.training.norm_trial import fuse
    from image_classifier.training.optim import make_optimizer
    from image_classifier.vision.model import build_model

    model = build_model(classes).to(memory_format=torch.channels_last)
    body = torch.load(weights, weights_only=True)
    model.load_state_dict({name: value for name, value in body.items() if not name.startswith("fc.")}, strict=False)
    fuse(model, torch.device("cpu"), bf16=BF16)
    return model, make_optimizer(model, TrainConfig(lr=lr))


def main(
    data: Path,
    weights: Path,
    *,
    epochs: int,
    size: int,
    batch: int,
    lr: float,
    workers: int,
    output: Path,
    seed: int,
    alone: bool,
    ours: bool,
) -> None:
    torch.manual_seed(seed)
    model = resnet50()
    model.load_state_dict(torch.load(weights, weights_only=True))
    crop, flip = transforms.RandomResizedCrop(size, CROPS), transforms.RandomHorizontalFlip()
    augmented = transforms.Compose([crop, flip, transforms.ToTensor(), NORMALIZE])
    shrink, centre = transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)
    served = transforms.Compose([shrink, centre, transforms.ToTensor(), NORMALIZE])
    train = loader(data / "train", augmented, batch, workers, train=True)
    valid, test = (loader(data / split, served, batch, workers, train=False) for split in ("valid", "test"))
    classes = len(train.dataset.classes)  # type: ignore[attr-defined]
    model.fc = nn.Linear(2048, classes)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    if alone:
        given = our_training(weights, classes, lr) if ours else (model, optimizer)
        print(json.dumps({"images a second": resident(*given, size, batch, classes)}))
        return
    warmup, planned, done = WARMUP_EPOCHS * len(train), epochs * len(train), 0
    best, kept, speeds = -1.0, model.state_dict(), []
    for _ in range(epochs):
        model.train()
        seen, started = 0, time.perf_counter()
        for images, labels in train:
            past = max(0, done - warmup) / max(1, planned - warmup)
            optimizer.param_groups[0]["lr"] = lr * min((done + 1) / warmup, 0.5 * (1 + math.cos(math.pi * past)))
            if len(labels) > 1:
                step(model, optimizer, images, labels)
            seen, done = seen + len(labels), done + 1
        speeds.append(seen / (time.perf_counter() - started))
        found = accuracy(model, valid)
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    torch.save(kept, output)
    print(json.dumps({"validation": best, "test": accuracy(model, test), "images a second": max(speeds)}))


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if not word.startswith("--")]
    main(
        Path(given[0]),
        Path(given[1]),
        epochs=int(given[2]),
        size=int(given[3]),
        batch=int(given[4]),
        lr=float(given[5]),
        workers=int(given[6]),
        output=Path(given[7]),
        seed=int(given[8]),
        alone="--resident" in sys.argv,
        ours="--ours" in sys.argv,
    )
