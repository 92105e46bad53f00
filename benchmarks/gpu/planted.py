"""The product's training script with a fault planted in its process.

    python -m benchmarks.gpu.planted FAULT... -- --epochs 2 ...

starved: each picture takes SLOW_S longer to load. leak: a thread keeps a little more of the GPU's memory every moment.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import torch
from benchmarks.gpu.kit import after_steps

from image_classifier.training.data import ImageDataset
from image_classifier.training.script import main as train

SLOW_S = 0.004  # twice to three times what decoding takes
LEAK_EVERY_S = 0.5
LEAK_SHARE = 0.01  # of the GPU's memory, each time: 20 seconds take 40 %


def starve() -> None:
    """Slows every loading process down."""
    load = ImageDataset.__getitem__

    def slowly(self: ImageDataset, key: Any) -> Any:
        time.sleep(SLOW_S)
        return load(self, key)

    ImageDataset.__getitem__ = slowly  # type: ignore[method-assign]


def leak() -> None:
    """Has a thread leak from the first step on: what a job takes before does not count as a leak."""

    def begin() -> None:
        end()
        threading.Thread(target=_leak, daemon=True).start()

    end = after_steps(begin)


def _leak() -> None:
    kept = []
    while len(kept) * LEAK_SHARE < 0.6:
        time.sleep(LEAK_EVERY_S)
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            kept.append(torch.empty(int(LEAK_SHARE * total), dtype=torch.uint8, device="cuda"))
        else:
            kept.append(torch.ones(1024))
    threading.Event().wait()  # holds what it has until the process ends


FAULTS = {"starved": starve, "leak": leak}


def main() -> int:
    at = sys.argv.index("--")
    for fault in sys.argv[1:at]:
        FAULTS[fault]()
    return train(sys.argv[at + 1 :])


if __name__ == "__main__":
    sys.exit(main())
