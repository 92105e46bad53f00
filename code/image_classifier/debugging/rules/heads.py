"""Rules over how network, loss and labels fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from image_classifier.debugging.measures import updates
from image_classifier.debugging.rules.base import Finding, Rule, healthy, insufficient, issue, not_applicable, short
from image_classifier.debugging.rules.batches import of_batches, without_batches
from image_classifier.debugging.rundata import Floats, RunData, Series
from image_classifier.debugging.schema import Evidence

LEARNS_NOTHING = (
    "LossNotDecreasing",
    "NoBetterThanGuessing",
    "ConstantOutput",
    "VanishingGradient",
    "UnchangedTensor",
    "WeightUpdateRatio",
    "AllZero",
    "ClassImbalance",
)
SAME = 1e-4  # the share of their size by which outputs differ that are all the same
_SIGMOID = "a sigmoid stands before"
STILL = 1e-6  # the median update of a network that does not move: the range of its outputs tells nothing of a head


@dataclass(frozen=True, kw_only=True)
class WrongHead(Rule):
    """The last layer and the loss do not fit each other.

    A cross entropy wants logits: any numbers. Fires when, at `patience` recorded steps or more and at all of them, the
    loss is that of a cross entropy, or a logistic loss, which takes the outputs as logits (and not as probabilities),
    although
    - they are shares already, all in 0..1 with rows that sum to 1: a softmax stands before the loss;
    - all of them, `outputs_seen` or more, lie in 0..1, and not for being small: a sigmoid stands before the loss;
    - none is below 0 (or above it), and at one step or more some, but not all, are exactly 0, but for the logarithms
      of shares: a ReLU (or minus one) stands before the loss;
    - all lie within -1..1, and at the latest two steps reach beyond `full` of both ends: a tanh stands before the loss.
    Fires too when
    - the loss is minus the output of the label, as of log-probabilities, and the outputs are none; or it takes
      probabilities, and outputs lie outside of 0..1;
    - the columns of a batch, not its rows, sum to 1 (or their exponentials do): a softmax over the batch;
    - a single output is a share of 1 in all rows, a softmax over one unit; or it has to name more than two classes;
    - labels that do not exclude each other, of which an image may have several or none, are learned by a logistic loss
      of shares that sum to 1: a softmax stands before it;
    - numbers are to be learned, by their squared, absolute or huber differences, that lie where the outputs cannot go:
      below 0 of a ReLU (above it of minus one), outside of 0..1 of a sigmoid, of -1..1 of a tanh.

    A class for each position of the outputs (a word, a pixel) counts like one for each image, and so do labels that
    are shares of the classes (mixup), where the loss is a cross entropy of them to `soft` of itself.
    """

    looks_at = "the range of the outputs, the sums of their rows, the distance of the loss from what it could be"
    remedy = "hand the loss what the last linear layer gives, without an activation; or a loss that takes probabilities"
    source = "ours; the faults of TheDeepChecker (TOSEM 2022), UMLAUT (CHI 2021) and deepmufl's benchmark"
    explains = (*LEARNS_NOTHING, "Regulariser", "OscillatingLoss", "Overfit")
    managed = None
    aspect = "learning"
    patience: int = 3
    close: float = 1e-3
    full: float = 0.98
    outputs_seen: int = 64  # a few logits may lie there by chance
    soft: float = 0.2

    def judge(self, run: RunData) -> Finding:
        outputs, fit, pairs = (of_batches(run, name) for name in ("outputs", "fit", "pairs"))
        if not outputs or not (fit or pairs or of_batches(run, "column_sums")):
            return without_batches(run, "the outputs are no answers to classes or numbers")
        count = len(outputs["min"])
        if count < self.patience:
            return insufficient(f"needs {self.patience} recorded steps", count)
        low, high = outputs["min"].values, outputs["max"].values
        if not np.isfinite([low, high]).all():
            return insufficient("the outputs are not finite", count)
        what = (
            self._whatever_the_loss(run, low, high)
            or self._of_classes(run, fit, low, high)
            or self._of_pairs(run, pairs, low, high)
        )
        if not what:
            return healthy(f"outputs from {short(float(low.min()))} to {short(float(high.max()))}", count)
        seen = int((outputs["images"].values * outputs["columns"].values).sum())
        if what.startswith(_SIGMOID) and seen < self.outputs_seen:
            return insufficient(
                f"needs {self.outputs_seen} outputs to know a sigmoid by their range, has {seen}", count
            )
        step = int(outputs["min"].steps[0])
        named = {"outputs min": low[0], "outputs max": high[0]}
        return issue(
            f"{what}: outputs from {short(float(low.min()))} to {short(float(high.max()))}",
            "the head and the loss do not fit: hand the loss what the last linear layer gives, without an activation, "
            "and an output for each class",
            [Evidence(step=step, name=name, value=float(value)) for name, value in named.items()],
            count,
        )

    def _whatever_the_loss(self, run: RunData, low: Floats, high: Floats) -> str:
        columns = float(of_batches(run, "outputs")["columns"].values.max())
        if columns == 1 and (np.abs([low - 1, high - 1]) < self.close).all():
            return "the only output is 1 whatever the image, a softmax over one unit"
        if columns == 1 and len(run.job.classes) > 2:
            return f"one output cannot tell {len(run.job.classes)} classes apart"
        sums, rows = of_batches(run, "column_sums"), of_batches(run, "row_sums")
        if not sums or columns == 1 or (of_batches(run, "outputs")["images"].values < 2).any():
            return ""
        by_row = rows and (np.abs([rows["min"].values - 1, rows["max"].values - 1]) < self.close).all()
        for least, most in (("min", "max"), ("exp_min", "exp_max")):
            ends = np.array([sums[least].values, sums[most].values])
            if not by_row and len(ends[0]) >= self.patience and (np.abs(ends - 1) < self.close).all():
                return "a softmax runs over the batch, not over the classes (dim=0)"
        return ""

    def _of_classes(self, run: RunData, fit: Mapping[str, Series], low: Floats, high: Floats) -> str:
        """Of (n, classes) outputs and the numbers of classes."""
        sums = of_batches(run, "row_sums")
        if not fit or len(fit["as_logits"]) < self.patience or len(fit["as_logits"]) != len(low):
            return ""
        one = float(of_batches(run, "outputs")["columns"].values.max()) == 1
        if one or ("loss" in fit and not self._is_soft(run, fit)):
            return ""
        if len(fit.get("as_logarithms", ())) == len(low):
            small = self.close * np.maximum(1, np.abs(high))
            if (fit["as_logarithms"].values < small).all() and (fit["unnormalised"].values > 0.01).all():
                return "the loss takes the logarithms of probabilities (NLL), and the outputs are none"
        if not (fit["as_logits"].values <= fit["as_probabilities"].values).all():
            return ""
        ones = (np.abs([sums["min"].values - 1, sums["max"].values - 1]) < self.close).all()
        shares = (low >= 0).all() and (high <= 1 + self.close).all()
        if shares and ones:
            return "a softmax stands before a cross entropy that takes logits"
        distance = fit.get("unnormalised")
        logarithms = distance is not None and bool((distance.values <= self.close).all())
        return self._activation(run, low, high, "a cross entropy that takes logits", logarithms=logarithms)

    def _is_soft(self, run: RunData, fit: Mapping[str, Series]) -> bool:
        """Whether the loss is a cross entropy of labels that are shares of the classes, and no other known loss."""
        sums, pairs = of_batches(run, "shares"), of_batches(run, "pairs")
        if not sums or not len(sums["label_sum_min"]) == len(fit["loss"]) == len(fit["as_logits"]):
            return False
        ends = np.array([sums["label_sum_min"].values, sums["label_sum_max"].values])
        near = fit["as_logits"].values < self.soft * fit["loss"].values
        others = ("squared", "absolute", "huber", "logistic", "shares")
        known = any((pairs[name].values < self.close).all() for name in others if name in pairs)
        return bool((np.abs(ends - 1) < self.close).all() and near.all() and not known)

    def _activation(self, run: RunData, low: Floats, high: Floats, loss: str, *, logarithms: bool = False) -> str:
        usual = updates(run).medians
        moved = not len(usual) or bool((usual > STILL).any())
        if _is_cut_off(low, high):
            return f"a ReLU stands before {loss}"
        if _is_cut_off(-high, -low) and not logarithms:
            return f"minus a ReLU stands before {loss}"
        if moved and (low > 0).all() and (high <= 1 + self.close).all() and high[0] > 0.2:
            return f"{_SIGMOID} {loss}"
        bound = (low >= -1).all() and (high <= 1).all()
        full = (high > self.full) & (low < -self.full)
        return f"a tanh stands before {loss}" if bound and full[-2:].all() else ""

    def _of_pairs(self, run: RunData, pairs: Mapping[str, Series], low: Floats, high: Floats) -> str:
        """Of as many outputs as labels."""
        if not pairs or len(pairs["low"]) < self.patience or len(pairs["low"]) != len(low):
            return ""

        def is_near(name: str) -> bool:
            return bool((pairs[name].values < self.close).all())

        if is_near("logistic") != is_near("shares"):
            if is_near("logistic"):
                return self._activation(run, low, high, "a logistic loss that takes logits")
            out = (low < -self.close).any() or (high > 1 + self.close).any()
            several = self._has_several_labels(run)
            return (
                "the loss takes probabilities, and the outputs are none"
                if out
                else ("a softmax stands before a loss of labels that do not exclude each other" if several else "")
            )
        if any(map(is_near, ("squared", "absolute", "huber"))):
            return self._out_of_reach(pairs, low, high)
        return ""

    def _has_several_labels(self, run: RunData) -> bool:
        """Whether images have none or several of the labels, and outputs that sum to 1 all the same."""
        rows, labels = of_batches(run, "row_sums"), of_batches(run, "shares")
        if not rows or not labels or len(labels["label_sum_min"]) < self.patience:
            return False
        ones = (np.abs([rows["min"].values - 1, rows["max"].values - 1]) < self.close).all()
        of_one = (np.abs([labels["label_sum_min"].values - 1, labels["label_sum_max"].values - 1]) < self.close).all()
        return bool(ones and not of_one)

    def _out_of_reach(self, pairs: Mapping[str, Series], low: Floats, high: Floats) -> str:
        """Of outputs that should become numbers which their activation cannot give."""
        least, most = float(pairs["low"].values.min()), float(pairs["high"].values.max())
        beyond = float(np.median(pairs["spread"].values)) / 2
        said = f"what is to be learned goes from {short(least)} to {short(most)}, and the outputs end at"
        if _is_cut_off(low, high) and least < -beyond:
            return f"{said} 0, a ReLU stands at the end"
        if _is_cut_off(-high, -low) and most > beyond:
            return f"{said} 0, minus a ReLU stands at the end"
        for bottom, name in ((0, "sigmoid"), (-1, "tanh")):
            over = most > 1 + beyond and (high[-2:] > self.full).all()
            under = least < bottom - beyond and (low[-2:] < bottom + 1 - self.full).all()
            if (low >= bottom).all() and (high <= 1).all() and (over or under):
                return f"{said} {bottom} and 1, a {name} stands at the end"
        return ""


@dataclass(frozen=True, kw_only=True)
class LossForm(Rule):
    """The loss is made of the outputs and labels in a wrong way: of all pairs of them, or with the other sign.

    Looks at outputs that stand one to one with their labels. Fires when, at `patience` recorded steps or more and at
    all of them, the loss is not the mean of their squared, absolute, huber or logistic differences, nor a cross entropy
    or divergence of shares of the classes (to `close` of itself), but
    - it is that of every output with every label: (n, 1) and (n,) were broadcast to (n, n);
    - or it is minus that: the loss is maximised.
    """

    severity = "critical"
    looks_at = "how far the loss lies from that of all pairs, and from that with the other sign"
    remedy = "give outputs and labels one shape: labels[:, None] or outputs.squeeze(1); minimise the loss"
    source = "ours; the broadcast of (N, 1) and (N,) is among the silent errors of deepmufl's and UMLAUT's programs"
    explains = (*LEARNS_NOTHING, "OscillatingLoss", "ExplodingTensor", "Overfit", "WrongHead", "LabelsOutside")
    managed = None
    aspect = "learning"
    patience: int = 3
    close: float = 1e-3

    def judge(self, run: RunData) -> Finding:
        pairs = of_batches(run, "pairs")
        if not pairs:
            return without_batches(run, "outputs and labels do not stand one to one")
        count = len(pairs["squared"])
        forms = ("squared", "absolute", "huber", "logistic", "shares", "soft", "divergence")
        usual = np.array([pairs[name].values for name in forms if len(pairs.get(name, ())) == count])
        if count < self.patience or not np.isfinite(usual[0]).all():
            return insufficient(f"needs finite losses of {self.patience} recorded steps", count)
        outputs = of_batches(run, "outputs")
        sizes = np.maximum(np.abs(outputs["min"].values), np.abs(outputs["max"].values))
        if (outputs["spread"].values <= SAME * sizes).all():
            return healthy("the outputs are all the same, and so are their pairs", count)
        if (usual < self.close).all(axis=1).any():
            return healthy("the loss is that of the outputs and their labels", count)
        for name, what, advice in (
            ("crossed", "the loss compares every output with every label of the batch", "give both one shape"),
            ("negated", "the loss has the other sign: what should become small is made large", "minimise the loss"),
        ):
            far = pairs.get(name)
            if far is not None and len(far) >= self.patience and (far.values < self.close).all():
                return issue(
                    what,
                    f"{advice}: {self.remedy}",
                    [Evidence(step=int(far.steps[0]), name=f"pairs {name}", value=float(far.values[0]))],
                    count,
                )
        return healthy("the loss is none of all pairs, nor one with the other sign", count)


@dataclass(frozen=True, kw_only=True)
class NoActivation(Rule):
    """The layers have no activation between them: all of them together can do what one can.

    Fires when what enters the last filter or matrix, of a network that has two or more, is an affine function of the
    inputs: the answer to what lies halfway between an input and the negative of another is, to `most` of the distance
    of the answers to these, halfway between them. Looked at before the first step, in evaluation mode, and twice more
    where it was so: branches that begin at zero bend nothing yet.
    """

    looks_at = "how far the answer halfway between two inputs is from the middle of their answers"
    remedy = "an activation (ReLU) after each layer but the last"
    source = "ours; missing activations are among the faults of deepmufl, DeepLocalize and TheDeepChecker"
    explains = LEARNS_NOTHING
    managed = None
    aspect = "learning"
    most: float = 1e-4

    def judge(self, run: RunData) -> Finding:
        bends = of_batches(run, "network").get("bend")
        if bends is None or not len(bends):
            return not_applicable("it was not seen whether the layers bend anything")
        value = float(bends.values.max())
        if not value <= self.most:
            return healthy(f"the layers bend what they are given, by {short(value)}", len(bends))
        return issue(
            "there is no activation between the layers: the network is linear up to its last layer",
            self.remedy,
            [Evidence(step=int(bends.steps[0]), name="network bend", value=value)],
            len(bends),
        )


def _is_cut_off(low: Floats, high: Floats) -> bool:
    """Whether a ReLU gave outputs of such ranges: a number that is exactly 0 is none of a linear layer's."""
    return bool((low >= 0).all() and ((low == 0) & (high > 0)).any())
