"""The baseline of bench_training.py: a head on a frozen ResNet50 as most tutorials train it. Prints a line of JSON.

    python benchmarks/stock_training.py DATA WEIGHTS EPOCHS OUTPUT

Pillow transforms, no loading processes, float32, Adam; the best epoch's weights are tested and saved. `epochs` are the
seconds of each.
"""

from __future__ import annotations

import copy
import json
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
TRAIN = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
)
SERVED = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])


def loader(folder: Path, transform: transforms.Compose, *, shuffle: bool = False) -> DataLoader[object]:
    return DataLoader(ImageFolder(folder, transform), batch_size=32, shuffle=shuffle)


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader[object]) -> float:
    model.eval()
    hits = total = 0
    for images, labels in batches:
        hits += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return hits / total


def main(data: Path, weights: Path, epochs: int, output: Path) -> None:
    torch.manual_seed(0)
    model = resnet50()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.requires_grad_(False)
    train = loader(data / "train", TRAIN, shuffle=True)
    valid, test = loader(data / "valid", SERVED), loader(data / "test", SERVED)
    model.fc = nn.Linear(2048, len(train.dataset.classes))  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam(model.fc.parameters(), 1e-3)
    criterion = nn.CrossEntropyLoss()
    best, kept, seconds = -1.0, model.state_dict(), []
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        found = accuracy(model, valid)
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
        seconds.append(time.perf_counter() - started)
    model.load_state_dict(kept)
    torch.save(kept, output)
    print(json.dumps({"validation": best, "test": accuracy(model, test), "epochs": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
