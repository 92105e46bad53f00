"""Statistics of what a training makes of a batch: its outputs, its labels, and the mode and rates it was made in.

All of them stay on the device, as those in tensorstats do; a recording takes a few kernels over (n, classes) numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.debugging.pairs import are_classes, pair_statistics
from image_classifier.debugging.tensorstats import Scalars

Norm = nn.modules.batchnorm._BatchNorm
Dropout = nn.modules.dropout._DropoutNd
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
        Of (n, columns) of two images or more `column_sums` -> min, max, and of their exponentials exp_min, exp_max.
        Of (n, classes) with labels of classes besides: `row_sums` -> min, max; `labels` -> min, max, distinct; `fit` ->
        how far the loss lies from a cross entropy that takes the outputs as_logits, as_probabilities, or as_logarithms
        of these; unnormalised, how far the sums of their exponentials lie from 1. Of outputs that stand one to one
        with their labels `pairs`, see pairs.py.
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
    found |= pair_statistics(loss, logits, labels)
    if logits.ndim == 2 and len(logits) > 1:
        sums, of_powers = flat.sum(dim=0), flat.exp().sum(dim=0)
        found["column_sums"] = {
            "min": sums.min(),
            "max": sums.max(),
            "exp_min": of_powers.min(),
            "exp_max": of_powers.max(),
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
        "as_logarithms": (loss.detach().float() + of_label.mean()).abs(),
        "unnormalised": flat.logsumexp(dim=1).abs().max(),
    }
    return found


def mode_statistics(model: nn.Module, device: torch.device) -> Scalars:
    """`norms` -> how many batch norms there are, how many of them have trained weights and are in evaluation mode all
    the same (evaluating), and how many move their statistics though nothing of the network before the head trains
    (moving); dropouts, where there is one, and how many do nothing because all of the network is in evaluation mode
    (idle)."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    evaluating = [each for each in norms if not each.training and _trains(each.parameters(recurse=False))]
    moving = [
        each
        for each in norms
        if each.training and each.track_running_stats and each.affine and not _trains(each.parameters(recurse=False))
    ]
    dropouts = [module for module in model.modules() if isinstance(module, Dropout) and module.p > 0]
    idle = [] if model.training else [each for each in dropouts if not each.training]
    counts = {"count": len(norms), "evaluating": len(evaluating), "moving": len(moving)}
    counts |= {"dropouts": len(dropouts), "idle": len(idle)}
    return {"norms": {name: torch.full((), float(count), device=device) for name, count in counts.items()}}


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def behaves_by_mode(model: nn.Module) -> bool:
    """Whether a network has layers that do something else in evaluation mode, and is in training mode."""
    return model.training and any(
        each.training and (isinstance(each, Norm) or (isinstance(each, Dropout) and each.p > 0))
        for each in model.modules()
    )
