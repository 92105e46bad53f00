"""Statistics of what a training makes of a batch: its outputs, its labels, and the mode and rates it was made in.

All of them stay on the device, as those in tensorstats do; a recording takes a few kernels over (n, classes) numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.debugging.tensorstats import Scalars

Norm = nn.modules.batchnorm._BatchNorm
TINY = 1e-12
IGNORED = -100  # torch's ignore_index: such a label counts in no loss


@torch.no_grad()
def output_statistics(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> Scalars:
    """Of one batch.

    Args:
        loss: scalar.
        logits: (n, ...) what the network gives.
        labels: (n,) int64 of classes, or anything else.

    Returns:
        `outputs` -> min, max, images, columns, and spread, the deviation over the images, mean over the columns.
        Of (n, classes) with labels of classes besides: `row_sums` -> min, max; `labels` -> min, max, distinct; `fit` ->
        how far the loss lies from a cross entropy that takes the outputs as_logits, or as_probabilities.
    """
    flat = logits.detach().float().reshape(len(logits), -1)

    def number(value: float) -> torch.Tensor:
        return flat.new_full((), value)  # a tensor made of a number is copied to the device, and the host waits

    least, most = torch.aminmax(flat)
    found: Scalars = {
        "outputs": {
            "min": least,
            "max": most,
            "spread": flat.std(dim=0, unbiased=False).mean(),
            "images": number(flat.shape[0]),
            "columns": number(flat.shape[1]),
        }
    }
    if not are_classes(labels):
        return found
    counted = torch.where(labels == IGNORED, 0, labels)
    first, last = torch.aminmax(counted)
    found["labels"] = {
        "min": first.float(),
        "max": last.float(),
        "distinct": (labels.sort().values.diff() != 0).sum().float() + 1,  # torch.unique waits for its own size
    }
    sums = flat.sum(dim=1)
    found["row_sums"] = {"min": sums.min(), "max": sums.max()}
    inside = labels.clamp(0, flat.shape[1] - 1)
    of_label = flat.gather(1, inside[:, None])[:, 0]
    as_logits = F.cross_entropy(flat, inside)
    as_probabilities = -of_label.clamp(TINY, 1).log().mean()
    found["fit"] = {
        "as_logits": (loss.detach().float() - as_logits).abs(),
        "as_probabilities": (loss.detach().float() - as_probabilities).abs(),
    }
    return found


def are_classes(labels: torch.Tensor) -> bool:
    """Whether labels are one integer an image."""
    return labels.ndim == 1 and len(labels) > 0 and not labels.is_floating_point() and not labels.is_complex()


def mode_statistics(model: nn.Module, device: torch.device) -> Scalars:
    """`norms` -> how many batch norms there are, how many of them have trained weights and are in evaluation mode all
    the same (evaluating), and how many move their statistics though nothing of the network before the head trains
    (moving)."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    evaluating = [each for each in norms if not each.training and _trains(each.parameters(recurse=False))]
    moving = [
        each
        for each in norms
        if each.training and each.track_running_stats and each.affine and not _trains(each.parameters(recurse=False))
    ]
    counts = {"count": len(norms), "evaluating": len(evaluating), "moving": len(moving)}
    return {"norms": {name: torch.full((), float(count), device=device) for name, count in counts.items()}}


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)
