"""Statistics of what a training makes of a batch: its outputs, its labels, and the mode and rates it was made in.

All of them stay on the device, as those in tensorstats do; a recording takes a few kernels over (n, classes) numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.debugging.pairs import are_classes, pair_statistics, rows_of_answers, soft_cross_entropy
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
        Of (n, classes) with labels of classes besides `labels` -> min, max, distinct. Of these, of outputs with a label
        for each of their positions, and of labels that are shares of the classes: `row_sums` -> min, max; `fit` ->
        how far the loss lies from a cross entropy that takes the outputs as_logits, as_probabilities, or as_logarithms
        of these; unnormalised, how far the sums of their exponentials lie from 1; shares: the smallest and largest sum
        of the labels of an image, label_sum_min and label_sum_max. Of outputs that stand one to one with their labels
        `pairs`, see pairs.py.
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
        return found | _of_other_labels(found, loss, logits, labels)
    counted = torch.where(labels == IGNORED, 0, labels)
    first, last = torch.aminmax(counted)
    found["labels"] = {
        "min": first.float(),
        "max": last.float(),
        "distinct": (labels.sort().values.diff() != 0).sum().float() + 1,  # torch.unique waits for its own size
    }
    return found | _fit_of_classes(loss, flat, labels.clamp(0, flat.shape[1] - 1))


def _fit_of_classes(loss: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> Scalars:
    """Of (n, classes) rows and labels (n,) within the classes."""
    of_label = rows.gather(1, labels[:, None])[:, 0]
    own, sums = loss.detach().float(), rows.sum(dim=1)
    return {
        "row_sums": {"min": sums.min(), "max": sums.max()},
        "fit": {
            "as_logits": (own - F.cross_entropy(rows, labels)).abs(),
            "as_probabilities": (own + of_label.clamp(TINY, 1).log().mean()).abs(),
            "as_logarithms": (own + of_label.mean()).abs(),
            "unnormalised": rows.logsumexp(dim=1).abs().max(),
        },
    }


def _of_other_labels(found: Scalars, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> Scalars:
    """Of labels that are not one class an image: a class for each position, or shares of the classes."""
    if (answers := rows_of_answers(logits, labels)) is not None:
        rows, classes = answers
        outputs = found["outputs"] | {"columns": rows.new_full((), rows.shape[1])}
        return {"outputs": outputs} | _fit_of_classes(loss, rows, classes)
    if logits.shape != labels.shape or logits.ndim != 2 or logits.shape[1] < 2 or not labels.is_floating_point():
        return {}
    rows, shares, own = logits.detach().float(), labels.detach().float(), loss.detach().float()
    of_labels, of_rows = shares.sum(dim=1), rows.sum(dim=1)
    return {
        "row_sums": {"min": of_rows.min(), "max": of_rows.max()},
        "shares": {"label_sum_min": of_labels.min(), "label_sum_max": of_labels.max()},
        "fit": {
            "as_logits": (own - soft_cross_entropy(rows, shares)).abs(),
            "as_probabilities": (own + (shares * rows.clamp(TINY, 1).log()).sum(dim=1).mean()).abs(),
            "unnormalised": rows.logsumexp(dim=1).abs().max(),
            "loss": own.abs(),
        },
    }


def mode_statistics(model: nn.Module, device: torch.device) -> Scalars:
    """`norms` -> how many batch norms there are, how many of them have trained weights and are in evaluation mode all
    the same (evaluating), and how many move their statistics though nothing of the network before the head trains
    (moving); dropouts, where there is one, how many do nothing because all of the network is in evaluation mode
    (idle), and the largest share that one of the others drops (heaviest)."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    evaluating = [each for each in norms if not each.training and _trains(each.parameters(recurse=False))]
    moving = [
        each
        for each in norms
        if each.training and each.track_running_stats and each.affine and not _trains(each.parameters(recurse=False))
    ]
    dropouts = [module for module in model.modules() if isinstance(module, Dropout) and module.p > 0]
    idle = [] if model.training else [each for each in dropouts if not each.training]
    heaviest = max((float(each.p) for each in dropouts if each.training), default=0.0)
    counts = {"count": len(norms), "evaluating": len(evaluating), "moving": len(moving)}
    counts |= {"dropouts": len(dropouts), "idle": len(idle)}
    numbers = {**counts, "heaviest": heaviest}
    return {"norms": {name: torch.full((), float(number), device=device) for name, number in numbers.items()}}


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def behaves_by_mode(model: nn.Module) -> bool:
    """Whether a network has layers that do something else in evaluation mode, and is in training mode."""
    return model.training and any(
        each.training and (isinstance(each, Norm) or (isinstance(each, Dropout) and each.p > 0))
        for each in model.modules()
    )
