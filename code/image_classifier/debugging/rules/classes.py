"""Rules over classes and inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import still_falls
from image_classifier.debugging.rules.base import (
    Finding,
    Rule,
    healthy,
    insufficient,
    issue,
    listed,
    not_applicable,
    percent,
    short,
)
from image_classifier.debugging.rules.managed import Managed
from image_classifier.debugging.rundata import Floats, RunData, Series
from image_classifier.debugging.schema import ClassCounts, Evidence


@dataclass(frozen=True, kw_only=True)
class ClassImbalance(Rule):
    """Some classes have far fewer images than others, or are not learned while the others are.

    Fires when the largest class has more than `imbalance` times the smallest's training images beyond doubt; or when,
    in each of the last `patience` validations, a class's error is above `error` while that of the images of the other
    classes, (wrong + 1) / (images + 2), is below half of it, and above twice theirs beyond doubt. Only validations from
    the middle of the planned epochs on count for the second, and only of a training whose loss has stopped falling:
    classes are learned one after the other.

    Beyond doubt: by chance, as many or more images would be seen with a probability below `alpha` / number of classes
    (binomial). What is seen of the classes' sizes is all that was trained on so far: a part of an epoch in a job that
    was resumed, one process's part in a job of several. Among 100 classes, one of six validation images is accused when
    all six are wrong and fewer than one in eight of the others.

    The managed rule takes the raw ratio, and the raw error of any class of 500 samples.
    """

    looks_at = "images of the largest and smallest class; errors of the classes that are not learned"
    remedy = "add images of the class, or train with class_weights=balanced or sampler=balanced; look at its confusions"
    source = "AWS Debugger's ClassImbalance; beyond doubt by the binomial distribution"
    managed = Managed(
        reads="tensors",
        collections=("labels", "predictions"),
        patterns={"labels_regex": "labels", "predictions_regex": "predictions"},
        fields={"threshold_imbalance": "imbalance", "threshold_misprediction": "error"},
    )
    aspect = "classes"
    imbalance: float = 10.0
    error: float = 0.7
    patience: int = 3
    alpha: float = 0.05

    def judge(self, run: RunData) -> Finding:
        seen = [each.labels for each in run.classes if each.mode == "train"]
        if not seen:
            return insufficient("needs the labels of an epoch")
        labels = np.array(seen, np.float64).sum(axis=0)
        names = run.job.classes or [str(index) for index in range(len(labels))]
        sizes = self._sizes(labels, names)
        if sizes is not None:
            return sizes
        datapoints = int(labels.sum())
        middle = run.job.config.get("epochs", 0) / 2
        valid = [each for each in run.classes if each.mode == "eval" and each.epoch >= middle][-self.patience :]
        if len(valid) == self.patience and not still_falls(run):
            datapoints += sum(valid[-1].labels)
            failed = np.flatnonzero(np.all([self._not_learned(each) for each in valid], axis=0))
            if len(failed):
                return self._unknown_classes(valid[-1], [int(index) for index in failed], names, datapoints)
        return healthy(
            f"the largest class has {short(labels.max() / max(labels.min(), 1))} times the smallest's images",
            datapoints,
        )

    def _sizes(self, labels: Floats, names: Sequence[str]) -> Finding | None:
        """What there is to say of the classes' sizes."""
        smallest, largest = int(labels.argmin()), int(labels.argmax())
        few, many = int(labels[smallest]), int(labels[largest])
        if many <= self.imbalance * few:
            return None
        if binomial_tail(many, few + many, self.imbalance / (1 + self.imbalance)) >= self.alpha / len(labels):
            return None
        evidence = [
            Evidence(step=None, name=f"training images of {names[index]}, all epochs", value=labels[index])
            for index in (smallest, largest)
        ]
        return issue(
            f"{names[largest]} has {short(many / max(few, 1))} times the training images of {names[smallest]}",
            f"add images of {names[smallest]} or leave the class out; the per-class table shows what it costs",
            evidence,
            int(labels.sum()),
        )

    def _not_learned(self, counts: ClassCounts) -> list[bool]:
        """By class, whether one validation found it not learned."""
        labels = np.array(counts.labels)
        wrong = labels - np.array(counts.hits)
        others = (wrong.sum() - wrong + 1) / (labels.sum() - labels + 2)
        suspects = (self._errors(counts) > self.error) & (others < self.error / 2)
        doubt = self.alpha / len(labels)
        return [
            bool(suspect) and binomial_tail(int(wrong[index]), int(labels[index]), 2 * float(others[index])) < doubt
            for index, suspect in enumerate(suspects)
        ]

    def _unknown_classes(
        self, valid: ClassCounts, failed: Sequence[int], names: Sequence[str], datapoints: int
    ) -> Finding:
        """What there is to say of classes that are not learned."""
        errors = self._errors(valid)
        of_all = 1 - sum(valid.hits) / sum(valid.labels)
        return issue(
            f"the network does not know {listed([names[index] for index in failed])}: "
            f"{percent(errors[failed[0]])} of its validation images are wrong, of all {percent(of_all)}",
            "look at these classes' images and labels, and at what they are taken for in the confusion matrix",
            [Evidence(step=valid.step, name=f"error of {names[i]}", value=float(errors[i])) for i in failed],
            datapoints,
        )

    @staticmethod
    def _errors(counts: ClassCounts) -> Floats:
        """Share of each class's images that are wrong; NaN for a class without any."""
        labels = np.array(counts.labels, np.float64)
        errors: Floats = 1 - np.array(counts.hits) / np.where(labels > 0, labels, np.nan)
        return errors


@dataclass(frozen=True, kw_only=True)
class NoBetterThanGuessing(Rule):
    """At its end the network knows its training images, or those of its validation, no better than by guessing.

    Fires when the training is over (all planned epochs; where it may end early, more than the configuration's patience)
    and in each of its last `patience` epochs, or the last alone where there is one, as many right answers or more would
    come with a probability above `alpha` from naming the largest class (binomial). Of validations likewise; these have
    besides to have so few that as few or fewer would come with a probability below `alpha` from being right halfway
    between guessing and what is right in training: what was learned holds for no other image.
    """

    looks_at = "right answers of the last epochs and validations, and images of the largest class"
    remedy = "check that head, loss and labels fit each other; lr; whether the images are read as they are meant"
    source = "ours"
    managed = None
    aspect = "learning"
    patience: int = 2
    alpha: float = 0.01

    def judge(self, run: RunData) -> Finding:
        epochs = [each for each in run.classes if each.mode == "train" and sum(each.labels) > 0]
        if len(epochs) == 0:
            return insufficient("needs the classes of an epoch")
        config, done = run.job.config, epochs[-1].epoch
        stops_early = 0 < config.get("patience", 0) < done
        over = run.finished or stops_early or 0 < config.get("epochs", 0) <= done
        if not over:
            return insufficient("the training goes on", len(epochs))
        late = epochs[-self.patience :]
        if all((max(each.labels) / sum(each.labels)) ** sum(each.labels) > self.alpha for each in late):
            return insufficient("so few images can all be right by chance", len(epochs))
        chances = []
        for each in late:
            right, images = sum(each.hits), sum(each.labels)
            chances.append(binomial_tail(right, images, max(each.labels) / images))
        last = epochs[-1]
        share, guessed = sum(last.hits) / sum(last.labels), max(last.labels) / sum(last.labels)
        if guessed == 1.0 or min(chances) <= self.alpha:
            return self._of_validation(run, share) or healthy(
                f"{percent(share)} of the training images are right, guessing {percent(guessed)}", len(epochs)
            )
        return issue(
            f"in the last epoch {percent(share)} of the training images are right, of guesses {percent(guessed)}",
            f"check that head, loss and labels fit each other; change lr (it is {run.job.config.get('lr', '?')})",
            [Evidence(step=last.step, name="training images that are right", value=share)],
            len(epochs),
        )

    def _of_validation(self, run: RunData, learned: float) -> Finding | None:
        valid = [each for each in run.classes if each.mode == "eval" and sum(each.labels) > 0][-self.patience :]
        if len(valid) < self.patience:
            return None
        for each in valid:
            right, images, guess = sum(each.hits), sum(each.labels), max(each.labels) / sum(each.labels)
            below = _of_no_more_than(right, images, (guess + learned) / 2)
            if binomial_tail(right, images, guess) <= self.alpha or below > self.alpha:
                return None
        share = sum(valid[-1].hits) / sum(valid[-1].labels)
        return issue(
            f"{percent(share)} of the validation images are right, of guesses "
            f"{percent(max(valid[-1].labels) / sum(valid[-1].labels))}, and of the training images {percent(learned)}: "
            "what is learned holds for no other image",
            "see that labels and images belong together, in both splits; more images",
            [Evidence(step=valid[-1].step, name="validation images that are right", value=share)],
            len(valid),
        )


@dataclass(frozen=True, kw_only=True)
class CheckInputImages(Rule):
    """The images are not what a network with ImageNet's normalisation expects.

    Over the first `samples` or more images, as the network sees them: fires when a channel's absolute mean is above
    `threshold_mean`, or the mean of its batches' standard deviations is below `threshold_std`. Photographs have means
    within about 0.7 of 0 and deviations near 1.

    Of a training whose preprocessing is not known (no `image_size` in its configuration, through `watch`) only what no
    network is at ease with counts: a mean beyond `far`, a deviation above twice that, or inputs that are all the same.

    The managed rule's threshold is an absolute mean of 0.2, which dark, bright or plainly green photographs exceed.
    """

    explains = (
        "ExplodingTensor",
        "PoorWeightInitialization",
        "DeadRelu",
        "WeightUpdateRatio",
        "LossNotDecreasing",
        "NoBetterThanGuessing",
        "VanishingGradient",
        "ClassImbalance",
        "ConstantOutput",
        "Overfit",
    )
    looks_at = "mean or deviation of each channel that is out of range"
    remedy = "look at the images; scale and normalise them as the starting weights expect"
    source = "AWS Debugger's CheckInputImages; torchvision's ImageNet normalisation"
    managed = Managed(
        reads="tensors",
        collections=("input_images",),
        patterns={"regex": "input_images"},
        fields={"threshold_samples": "samples"},
        constants={"channel": "1"},
    )
    threshold_mean: float = 1.0
    threshold_std: float = 0.35
    samples: int = 500
    far: float = 10.0

    def judge(self, run: RunData) -> Finding:
        channels = dict(run.tensors("inputs", "mean"))
        images = next((series for _, series in run.tensors("inputs", "images")), None)
        epoch_is_over = any(each.mode == "train" for each in run.classes)
        if images is None or (images.values.sum() < self.samples and not epoch_is_over):
            return insufficient(f"needs {self.samples} images, or an epoch")
        weights = images.values / images.values.sum()
        if not np.isfinite([series.values for series in channels.values()]).all():
            return insufficient("the inputs are not finite")
        if "image_size" not in run.job.config:
            return self._of_anything(run, channels, weights, int(images.values.sum()))
        evidence = []
        means = []
        for name, series in channels.items():
            mean = float((series.values * weights).sum())
            std = float((run.statistics("inputs", name)["std"].values * weights).sum())
            means.append(mean)
            if abs(mean) > self.threshold_mean:
                evidence.append(Evidence(step=None, name=f"input channel_{name} mean", value=mean))
            if std < self.threshold_std:
                evidence.append(Evidence(step=None, name=f"input channel_{name} std", value=std))
        datapoints = int(images.values.sum())
        if not evidence:
            return healthy(f"channel means {', '.join(short(mean) for mean in means)}", datapoints)
        return issue(
            f"{evidence[0].name} of the normalised images is {short(evidence[0].value)}",
            "look at the images: are they black, white, nearly uniform, or scaled to 0..1 before they were saved? "
            "weights=imagenet expects photographs",
            evidence,
            datapoints,
        )

    def _of_anything(self, run: RunData, channels: Mapping[str, Series], weights: Floats, count: int) -> Finding:
        """The verdict on inputs of which nobody said how they should be."""
        means = {name: float((series.values * weights).sum()) for name, series in channels.items()}
        stds = {name: float((run.statistics("inputs", name)["std"].values * weights).sum()) for name in channels}
        farthest, widest = max(means, key=lambda name: abs(means[name])), max(stds, key=lambda name: stds[name])
        same = all(std == 0 for std in stds.values()) and len({*means.values()}) == 1 and count > len(weights)
        if abs(means[farthest]) <= self.far and stds[widest] <= 2 * self.far and not same:
            return healthy(f"inputs with means up to {short(abs(means[farthest]))}", count)
        what = (
            "all inputs are the same"
            if same
            else f"inputs lie about {short(means[farthest])} with deviations up to {short(stds[widest])}"
        )
        return issue(
            what,
            "scale and centre the inputs (subtract their mean, divide by their deviation), and look at what is read",
            [
                Evidence(step=None, name=f"input channel_{farthest} mean", value=means[farthest]),
                Evidence(step=None, name=f"input channel_{widest} std", value=stds[widest]),
            ],
            count,
        )


@dataclass(frozen=True, kw_only=True)
class LabelsPermuted(Rule):
    """The classes of training and validation have other numbers: what was learned is counted as wrong.

    Answers that have nothing to do with the images, also one and the same for all, are right at least as often as the
    smallest class comes, p; with a class that validation lacks, that is never. Fires when, in each of the `patience`
    latest validations, so few answers or fewer are right with a probability below `alpha` for that p, while more than
    `learned` of the training images are answered rightly. What was learned may not hold for other images, but that is
    not below chance. Where only some of many classes are swapped, the numbers are those of classes that are hard to
    tell apart: ClassImbalance may name them, this rule does not.
    """

    severity = "critical"
    looks_at = "right answers in validation, and what chance would give"
    remedy = "make the numbers of the classes of one sorted list of names for all splits"
    source = "ours"
    explains = ("Overfit", "ClassImbalance")
    managed = None
    aspect = "classes"
    patience: int = 2
    alpha: float = 1e-3
    learned: float = 0.6

    def judge(self, run: RunData) -> Finding:
        counted = [each for each in run.classes if any(each.labels)]
        train = [each for each in counted if each.mode == "train"]
        valid = [each for each in counted if each.mode == "eval"]
        if not train or len(valid) < self.patience:
            return not_applicable("needs classes of two validations")
        right = sum(train[-1].hits) / sum(train[-1].labels)
        latest = valid[-self.patience :]
        chances = [_of_no_more(sum(each.hits), each.labels) for each in latest]
        hits, images = sum(latest[-1].hits), sum(latest[-1].labels)
        said = f"{hits} of {images} validation images are right, of the training images {percent(right)}"
        if right <= self.learned or not all(each < self.alpha for each in chances):
            return healthy(said, len(valid))
        return issue(
            f"{said}: fewer than chance would get right",
            "number the classes of all splits alike, from one sorted list of their names",
            [Evidence(step=None, name="eval right answers", value=float(hits))],
            len(valid),
        )


def _of_no_more_than(hits: int, trials: int, probability: float) -> float:
    """The probability of `hits` successes or fewer in so many trials."""
    return binomial_tail(trials - hits, trials, 1 - probability)


def _of_no_more(hits: int, labels: Sequence[int]) -> float:
    """How likely it is that so many answers or fewer are right, where each is with the share of the smallest class."""
    images = sum(labels)
    return binomial_tail(images - hits, images, 1 - min(labels) / images)


def binomial_tail(at_least: int, trials: int, probability: float) -> float:
    """The probability of `at_least` successes or more in so many trials."""
    if at_least <= 0 or probability >= 1:
        return 1.0
    if probability <= 0:
        return 0.0
    yes, no = math.log(probability), math.log1p(-probability)
    everything = math.lgamma(trials + 1)
    terms = (
        everything - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * yes + (trials - k) * no
        for k in range(at_least, trials + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))
