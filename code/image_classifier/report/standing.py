"""How a model stands: better than guessing or not, and whether anything speaks against serving it.

The page, report.json, the console after `train` and `tune`, the warning of `serve` and the question before money is
spent on AWS say what is said here.

    measured    an accuracy with its interval, and what guessing would have got on the same images
    standing    the verdict on a training's model
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from image_classifier.debugging.rules import RULES
from image_classifier.report.formats import GAP, count, interval, share_tick
from image_classifier.vision.confidence import exact_interval

Facts = Mapping[str, Any]
SPLITS = (
    ("test", "test"),
    ("validation", "valid"),
)  # of a metric's name, of the images; the first that there is counts
IN_THE_WAY = frozenset({"ending", "learning", "generalization", "classes"})  # of advice: what it is about
NAMED = 3  # rules or pieces of advice that a sentence names


def measured(metrics: Mapping[str, float], answered: Mapping[str, Any], looks: int) -> dict[str, Any] | None:
    """The accuracy that counts: on test if there is one, else on validation. None without any.

    Args:
        metrics: metric name -> value.
        answered: valid, test -> `images` that were answered and, where it is known, those of the `largest_class`.
        looks: out of so many validations the best was chosen; no test chose anything.

    Returns:
        split, value, images; low and high: the exact 95 % interval, for the best of `looks`; guessing: the share that
        naming the largest class would get right, None when that is not known; better: whether all of the interval lies
        above it, None when that cannot be told.
    """
    for split, images_of in SPLITS:
        value = metrics.get(f"{split}:accuracy")
        if value is None:
            continue
        counts = answered.get(images_of) or {}
        images, largest = counts.get("images"), counts.get("largest_class")
        looks = 1 if split == "test" else max(looks, 1)
        low, high = exact_interval(value * images, images, looks) if images else (None, None)
        guessing = largest / images if images and largest else None
        better = None if low is None or guessing is None else low > guessing
        return {
            "split": split,
            "value": value,
            "images": images,
            "low": low,
            "high": high,
            "looks": looks,
            "guessing": guessing,
            "better": better,
        }
    return None


def in_words(accuracy: Facts) -> str:
    """`test accuracy 27.0 %, 95 % interval 19–37 %, 100 images`."""
    text = f"{accuracy['split']} accuracy {plain(100 * accuracy['value'], 1)}"
    if accuracy["low"] is None:
        return text
    best = f" of the best of {accuracy['looks']} validations" if accuracy["looks"] > 1 else ""
    spread = interval(accuracy["low"], accuracy["high"]).replace(GAP, " ")
    return f"{text}, 95 % interval {spread}{best}, {count(accuracy['images'], 'image')}"


def plain(value: float, digits: int) -> str:
    """A number of percent with an ordinary space, for sentences that programs look for."""
    return f"{value:.{digits}f} %"


def guessing_in_words(accuracy: Facts) -> str:
    """`guessing (20 %)`, `guessing (0.8 %)`; `guessing` alone when its share is not known."""
    share = accuracy["guessing"]
    return "guessing" if share is None else f"guessing ({share_tick(share).replace(GAP, ' ')})"


def standing(outcome: Facts, rules: Sequence[Facts], advice: Sequence[Facts]) -> dict[str, Any]:
    """The verdict on a training's model.

    Args:
        outcome: with `status` and `accuracy` (see `measured`).
        rules: the rows of rules.json.
        advice: all that is advised, but for serving: `title`, and `about` what it is.

    Returns:
        ready: whether it may be served on this evidence: better than guessing, nothing open, nothing unjudged.
        verdict: ready, open, unjudged, unknown, guessing or `no model`, the worst that holds.
        sentence: the page's first line.
        open: what speaks against it, rules that fired and advice about the model.
        lacking: rules that matter and could not judge, each with `rule` and `why`.
    """
    accuracy, status = outcome["accuracy"], outcome["status"]
    fired = [rule["rule"] for rule in rules if rule["verdict"] == "IssuesFound" and rule["severity"] != "info"]
    symptoms = {rule["rule"] for rule in rules if rule.get("symptom_of")}
    fired = [rule for rule in fired if rule not in symptoms] or fired
    others = [item["title"] for item in advice if item.get("about") in IN_THE_WAY]
    lacking = [{"rule": rule["rule"], "why": rule["summary"]} for rule in rules if could_not_judge(rule)]
    verdict, sentence = _verdict(
        status, accuracy, fired, others, lacking, judged=any(found_nothing(rule) and _matters(rule) for rule in rules)
    )
    return {
        "ready": verdict == "ready",
        "verdict": verdict,
        "sentence": sentence,
        "open": [*fired, *others],
        "lacking": lacking,
    }


def _verdict(
    status: str,
    accuracy: Facts | None,
    fired: Sequence[str],
    others: Sequence[str],
    lacking: Sequence[Facts],
    *,
    judged: bool,
) -> tuple[str, str]:
    if status != "completed":
        ends = {"failed": "the training failed", "stopped": "the training was stopped"}
        return "no model", f"No model: {ends.get(status, 'the training has not finished')}."
    if accuracy is None:
        return "unknown", "Not known to be better than guessing: nothing was evaluated."
    guessing, numbers = guessing_in_words(accuracy), in_words(accuracy)
    if accuracy["better"] is None:
        why = f"how many {accuracy['split']} images the largest class has was not recorded"
        return "unknown", f"Not known to be better than guessing: {why}; {numbers}."
    if not accuracy["better"]:
        above = accuracy["value"] > accuracy["guessing"]  # and only the interval is not
        far = f", as far as {count(accuracy['images'], 'image')} can tell" if above else ""
        return "guessing", f"Not better than {guessing}{far}: {numbers}."
    verdict, but = _reservation(fired, others, lacking, judged=judged)
    if verdict == "ready":
        return verdict, f"Better than {guessing}, and no rule that matters found an issue or lacked data: {numbers}."
    return verdict, f"Better than {guessing}, but {but}; {numbers}."


def _reservation(
    fired: Sequence[str], others: Sequence[str], lacking: Sequence[Facts], *, judged: bool
) -> tuple[str, str]:
    """What stands between a model that is better than guessing and serving it."""
    if fired:
        found = "a rule found an issue" if len(fired) == 1 else f"{len(fired)} rules found issues"
        return "open", f"{found}: {_listed(fired)}"
    if others:
        return "open", f"there is more to do: {_listed(others)}"
    if lacking:
        why = _listed([f"{each['rule']} lacked data ({each['why']})" for each in lacking])
        return "unjudged", f"not judged in full: {why}"
    return ("ready", "") if judged else ("unjudged", "no rule about the model judged the training")


def could_not_judge(rule: Facts) -> bool:
    """Whether a rule about the model, that applies to this job, was left without an answer.

    A rule that this version does not know counts.
    """
    if rule["verdict"] not in ("InsufficientData", "Error") or not rule.get("applies", True):
        return False
    return _matters(rule)


def _matters(rule: Facts) -> bool:
    """Whether a rule asks about the model, and not about the machine."""
    known = RULES.get(rule["rule"])
    return rule["severity"] != "info" and (known is None or known.about == "tensors")


def found_nothing(rule: Facts) -> bool:
    """Whether a rule looked and found nothing wrong; tables without a judgement did not look."""
    known = RULES.get(rule["rule"])
    return bool(rule["verdict"] == "NoIssuesFound" and (known is None or known.judges))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more
