"""Whether "the batch is too small" can be told from the gradients that a training makes anyway.

    PYTHONPATH=code:. python benchmarks/bench_gradient_noise.py --seeds 3

Writes benchmarks/results/gradient_noise.md. McCandlish et al. 2018 (arXiv 1812.06162, appendix A): from the squared
norms of single gradients and of their mean over a window of steps, the last layer's noise tr(S) / B and |G|^2 without
bias. Their quotient is the simple noise scale in batches: 1 means that noise and gradient are of one size.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from benchmarks.foreign_programs import blobs, perceptron
from benchmarks.record import write_result

WINDOW = 20  # steps
# name -> images of a batch, learning rate, steps, whether labels are mixed up
CASES = {
    "healthy, batches of 200": (200, 0.1, 600, False),
    "healthy, batches of 40": (40, 0.05, 600, False),
    "healthy, batches of 8": (8, 0.02, 1500, False),
    "healthy, batches of 1": (1, 0.005, 3000, False),
    "batches of 1, learning rate of large ones": (1, 0.3, 3000, False),
    "batches of 40, learning rate too high": (40, 5.0, 600, False),
    "batches of 40, learning rate far too low": (40, 1e-5, 600, False),
    "batches of 40, labels mixed up": (40, 0.05, 600, True),
    "batches of 1, labels mixed up": (1, 0.005, 3000, True),
}


def noise_scales(seed: int, batch: int, rate: float, steps: int, *, mixed: bool) -> tuple[list[float], float]:
    """Trains it. Returns the noise over the gradient of each window, inf where no gradient is left beside the noise,
    and the accuracy on the training images at the end."""
    torch.manual_seed(seed)
    inputs, labels = blobs(seed)
    labels = labels[torch.randperm(len(labels))] if mixed else labels
    network = perceptron((20, 64, 64, 5))
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    head = list(network.parameters())[-2]
    found, window = [], []
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        window.append(head.grad.flatten().clone())  # type: ignore[union-attr]
        optimizer.step()
        if len(window) == WINDOW:
            table = torch.stack(window)
            of_mean, of_each = float(table.mean(0).square().sum()), float(table.square().sum(1).mean())
            signal, noise = WINDOW * of_mean - of_each, WINDOW * (of_each - of_mean)  # both times WINDOW - 1
            found.append(noise / signal if signal > 0 else math.inf)
            window.clear()
    with torch.no_grad():
        right = float((network(inputs).argmax(1) == labels).float().mean())
    return found, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (batch, rate, steps, mixed) in CASES.items():
        first, last, right = [], [], []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            scales, share = noise_scales(seed, batch, rate, steps, mixed=mixed)
            first.append(statistics.median(scales[:3]))
            last.append(statistics.median(scales[-len(scales) // 4 :]))
            right.append(share)
        row = [f"{min(each):.2g} .. {max(each):.2g}" for each in (first, last, right)]
        rows.append(f"| {name} | {' | '.join(row)} |")
        print(rows[-1], flush=True)
    write_result(
        "gradient_noise.md",
        [
            "# Can a batch that is too small be told from a training's own gradients?",
            "",
            f"`PYTHONPATH=code:. python benchmarks/bench_gradient_noise.py --seeds {options.seeds}`, seeds from "
            f"{options.first_seed}, {os.cpu_count()} cores, torch {torch.__version__}. A perceptron, five classes; the "
            f"last layer's simple noise scale (McCandlish et al. 2018) in batches, over windows of {WINDOW} steps: "
            "smallest .. largest of the seeds' medians. `inf`: no gradient is left beside the noise.",
            "",
            "| training | first three windows | last quarter | training images right at the end |",
            "|---|---|---|---|",
            *rows,
            "",
            "The estimate is right: at first it goes with one over the batch. But it tells nothing of sickness: a "
            "healthy training with batches of one has as much noise as one that fails, a healthy one of any batch ends "
            "where hardly a gradient is left, and a learning rate that is too high or labels that are wrong look the "
            "same from the start. To tell them apart takes a second gradient at the same weights. So there is no such "
            "rule.",
        ],
    )


if __name__ == "__main__":
    main()
