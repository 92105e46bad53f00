"""Statistics of outputs that stand one to one with their labels, and labels of classes in other forms than numbers.

All of them stay on the device, as those in tensorstats do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it

from image_classifier.debugging.tensorstats import Scalars

MOST_CROSSED = 1024  # outputs of a batch of which all pairs with all labels are looked at
MOST_ROWS = 8192  # positions of a batch, each with a label of its own, that are looked at
TINY = 1e-12
LEAST_LOG = -100.0  # torch.nn.BCELoss's


def are_classes(labels: torch.Tensor) -> bool:
    """Whether labels are one integer an image."""
    return labels.ndim == 1 and len(labels) > 0 and not labels.is_floating_point() and not labels.is_complex()


def class_labels(labels: torch.Tensor, num_classes: int) -> torch.Tensor | None:
    """(n,) int64: labels of classes, however they are written; all -1 where this batch's are none.

    Args:
        labels: (n,) int64; (n,) or (n, 1) numbers of classes, or -1 and 1 for two; (n, num_classes) of a 1 and zeros.
        num_classes: 0 for what is no classifier.

    Returns:
        None where the form tells that they are no classes.
    """
    if are_classes(labels):
        return labels
    if not num_classes or labels.ndim not in {1, 2} or not len(labels) or labels.is_complex():
        return None
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        chosen = (labels == 1).all(1) if num_classes == 1 else (labels.amax(1) == 1) & (labels.sum(1) == 1)
        return torch.where(chosen.all(), labels.argmax(1), -1)
    if labels.numel() != len(labels):
        return None
    flat = labels.detach().reshape(-1).float()
    both = (flat.abs() == 1).all() & (flat == -1).any() if num_classes == 2 else flat.new_zeros((), dtype=torch.bool)
    numbers = torch.where(both, (flat > 0).float(), flat)
    return torch.where((numbers == numbers.round()).all(), numbers.long(), -1)


def predicted_classes(outputs: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(n,) int64: the answers of (n, columns) outputs. Of one column: the second of two classes from one half on, where
    all outputs are shares, else from 0 on; the nearest number of more classes."""
    if outputs.shape[1] > 1:
        return outputs.argmax(1)
    one = outputs[:, 0].float()
    if num_classes > 2:
        return one.round().long()
    shares = ((one >= 0) & (one <= 1)).all()
    return (one > torch.where(shares, 0.5, 0.0)).long()


def true_loss(loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The cross entropy of (n, columns) outputs and classes (n,), of a batch all of whose labels are classes; else the
    loss itself. Of one column and two classes: a logistic one, of shares or of logits."""
    inside = labels.clamp(0, max(1, outputs.shape[1] - 1))
    if outputs.shape[1] > 1:
        return torch.where(counted.any(), F.cross_entropy(outputs.float(), inside), loss.float())
    one, truth = outputs[:, 0].float(), inside.float()
    shares = ((one >= 0) & (one <= 1)).all()
    of_logits = F.binary_cross_entropy_with_logits(one, truth)
    logistic = torch.where(shares, _of_shares(one, truth), of_logits)
    return torch.where(counted.all(), logistic, loss.float())


@torch.no_grad()
def rows_of_answers(outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The answers to a class for each position: words of a text, pixels of a picture; at most MOST_ROWS of them.

    Args:
        outputs: (n, positions, classes), or as torch.nn.CrossEntropyLoss takes them, (n, classes, positions).
        labels: (n, positions) integers; what lies outside of the classes is left out by some losses.

    Returns:
        (rows, classes) float32 and (rows,) int64 within the classes; None of other shapes, or of both at once.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.ndim < 2 or outputs.ndim != labels.ndim + 1:
        return None
    last = outputs.shape[:-1] == labels.shape
    second = (outputs.shape[0], *outputs.shape[2:]) == tuple(labels.shape)
    if last == second:
        return None
    rows = (outputs.detach() if last else outputs.detach().movedim(1, -1)).reshape(labels.numel(), -1)
    stride = -(-len(rows) // MOST_ROWS)
    rows, classes = rows[::stride].float(), labels.reshape(-1)[::stride].long()
    inside = (classes >= 0) & (classes < rows.shape[1])
    kept = inside.nonzero()[:, 0] if rows.device.type != "cuda" else torch.arange(len(rows), device=rows.device)
    return (rows[kept], classes[kept].clamp(0, rows.shape[1] - 1)) if len(kept) else None


def soft_cross_entropy(outputs: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Of (n, classes) logits and shares of the classes."""
    return -(shares * outputs.log_softmax(dim=1)).sum(dim=1).mean()


@torch.no_grad()
def pair_statistics(loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> Scalars:
    """Of outputs and labels of as many numbers; empty of any others.

    Returns:
        `pairs` -> how far the loss lies, in shares of itself, from the mean of: their squared, absolute and huber
        differences, the logistic loss of outputs that are logits (logistic) or shares (shares); negated, from the
        nearest of these, and of a cross entropy (soft) or divergence (divergence) of shares of the classes, with the
        other sign; crossed, from the nearest of each output's with every label, where their
        shapes differ; low, high, spread of the labels; explained, the share of their variance that the outputs explain.
    """
    if labels.numel() != outputs.numel() or len(labels) != len(outputs) or labels.is_complex():
        return {}
    given, wanted = outputs.detach().float().reshape(-1), labels.detach().float().reshape(-1)
    own = loss.detach().float()
    size = own.abs().clamp(min=TINY)
    means = {
        "squared": (given - wanted).square().mean(),
        "absolute": (given - wanted).abs().mean(),
        "huber": F.smooth_l1_loss(given, wanted),
        "logistic": F.binary_cross_entropy_with_logits(given, wanted),
        "shares": _of_shares(given, wanted),
    }
    if outputs.shape == labels.shape and outputs.ndim == 2 and outputs.shape[1] > 1:
        means |= _of_distributions(outputs.detach().float(), labels.detach().float())
    found = {name: (own - mean).abs() / size for name, mean in means.items()}
    found["negated"] = torch.stack([(own + mean).abs() for mean in means.values()]).min() / size
    low, high = torch.aminmax(wanted)
    spread = wanted.std(correction=0)
    found |= {"low": low, "high": high, "spread": spread}
    found["explained"] = 1 - means["squared"] / spread.square().clamp(min=TINY)
    if outputs.shape != labels.shape and 1 < len(given) <= MOST_CROSSED:
        found["crossed"] = (own - _crossed(given, wanted)).abs().min() / size
    return {"pairs": found}


def _of_distributions(outputs: torch.Tensor, shares: torch.Tensor) -> dict[str, torch.Tensor]:
    entropy = -(shares * shares.clamp(min=TINY).log()).sum(dim=1).mean()
    soft = soft_cross_entropy(outputs, shares)
    return {"soft": soft, "divergence": soft - entropy}


def _of_shares(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    share = given.clamp(0, 1)
    yes, no = share.log().clamp(min=LEAST_LOG), (1 - share).log().clamp(min=LEAST_LOG)
    return -(wanted * yes + (1 - wanted) * no).mean()


def _crossed(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(5,) the means over each output with every label."""
    share = given.clamp(1e-6, 1 - 1e-6)
    part = wanted.mean()
    return torch.stack(
        [
            given.square().mean() - 2 * given.mean() * part + wanted.square().mean(),
            (given[:, None] - wanted[None]).abs().mean(),
            F.smooth_l1_loss(given[:, None].expand(-1, len(wanted)), wanted[None].expand(len(given), -1)),
            F.softplus(given).mean() - given.mean() * part,
            -(part * share.log().mean() + (1 - part) * (1 - share).log().mean()),
        ]
    )
