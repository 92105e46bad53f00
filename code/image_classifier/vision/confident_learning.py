"""Which labels are likely wrong: confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating
Uncertainty in Dataset Labels", JAIR 70), over probabilities of a model that has not seen the label it judges.

An image counts as one of class k when its probability of k is at least the mean one of the images that are labelled k.
That tells how many labels are wrong; so many images are suspects, those whose most probable class lies furthest before
their label. The paper counts and prunes by pairs of classes ("by noise rate"), which loses most of what there is where
a pair has about one wrong label: here all pairs are counted together. And a weak model's own mistakes look like wrong
labels: the chance of each tells them apart. Beside cleanlab: benchmarks/results/label_errors.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_OF_A_CLASS = 5  # images: of fewer the mean probability is nobody's
MIN_CHANCE = 0.2  # of a label to be wrong, for its image to be named
MIN_PRECISION = 0.6  # expected of all candidates: below, most of them are the model's own mistakes
MIN_AGREEMENT = 0.6  # of the labels with the model's answers: below, the model is wrong more often than most labels are


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose label is likely wrong.

    Args:
        index: of the row.
        given, meant: the label, and the class that the model takes it for.
        given_probability, meant_probability: 0..1.
        chance: that the label is wrong, 0..1, by Bayes' rule: the share of all labels that is wrong, spread over the
            other classes, beside the probability of the given label.
    """

    index: int
    given: int
    meant: int
    given_probability: float
    meant_probability: float
    chance: float

    @property
    def margin(self) -> float:
        """How clear the case is, 0..1."""
        return self.meant_probability - self.given_probability


def agreement(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The share of labels that are the most probable class; 0 without any."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else 0.0


def suspects(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> list[Suspect]:
    """The images whose labels may be wrong, as many as labels are estimated to be, the clearest cases first.

    Classes with fewer than MIN_OF_A_CLASS images accuse nobody, and nobody is accused of being one of them.

    Args:
        probabilities: (n, num_classes), each row from a model that was not shown this row's label; rows that are not
            finite are left out.
        labels: (n,), the labels as given.
    """
    found = np.where(np.isfinite(probabilities).all(1, keepdims=True), probabilities, 0.0)
    counts = np.bincount(labels, minlength=found.shape[1])
    best, own = found.argmax(1), found[np.arange(len(labels)), labels]
    joint = _joint(found, labels)
    number = round(joint.sum() - np.trace(joint))
    known = counts >= MIN_OF_A_CLASS
    cases = np.flatnonzero((best != labels) & known[labels] & known[best] & (found.max(1) > 0))
    clearest = cases[np.argsort(own[cases] - found[cases, best[cases]], kind="stable")][:number]
    elsewhere = number / max(len(labels), 1) / max(found.shape[1] - 1, 1)  # a wrong label is one of the other classes
    right = np.clip((own - elsewhere) / max(1 - elsewhere * found.shape[1], 1e-9), 0.0, 1.0)
    chance = np.minimum(elsewhere * (1 - right) / np.maximum(own, 1e-12), 1.0)
    return [
        Suspect(
            chance=float(chance[index]),
            index=int(index),
            given=int(labels[index]),
            meant=int(best[index]),
            given_probability=float(own[index]),
            meant_probability=float(found[index, best[index]]),
        )
        for index in clearest
    ]


def _joint(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """(num_classes, num_classes): estimates of how many images with a label are of a class; the confident joint of
    section 3.1, its rows brought to the numbers of the labels (equation 3)."""
    num_classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    own = probabilities[np.arange(len(labels)), labels]
    means = np.bincount(labels, weights=own, minlength=num_classes) / np.maximum(counts, 1)
    thresholds = np.where(counts >= MIN_OF_A_CLASS, np.maximum(means, 1e-9), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    sure = confident.max(1) > 0
    joint = np.zeros((num_classes, num_classes))
    np.add.at(joint, (labels[sure], confident.argmax(1)[sure]), 1)
    totals = joint.sum(1)
    scaled: NDArray[np.float64] = joint * (counts / np.maximum(totals, 1))[:, None]
    return scaled * (counts >= MIN_OF_A_CLASS)[:, None]
