"""What to do next, in the order in which it is worth doing, from the facts of a training job.

Each item is a title (an instruction) and a reason with the numbers it rests on. Rules that fired speak first; of the
aspects that their classes name, nothing more is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from image_classifier.debugging.rules import RULES
from image_classifier.debugging.rules.base import Aspect
from image_classifier.report.formats import count, interval, percent, points, sentence, words
from image_classifier.report.standing import found_nothing, guessing_in_words, in_words, standing
from image_classifier.vision.confidence import exact_interval

MAX_ITEMS = 6
LARGE_GAP = 0.05  # training minus validation accuracy worth acting on, if it is no sampling noise either
LOW_TRAIN_ACCURACY = 0.80  # below it the network has not yet learned its own training images
LATE_SHARE = 0.9  # a best epoch in the last tenth: the curve was still rising
WIDE_INTERVAL = 0.05  # half width of the accuracy's interval that hides the differences people tune for
PAIR_SHARE = 0.2  # of all errors
WEAK_RECALL = 0.2  # below the accuracy
MIN_IMAGES_OF_WEAK = 8  # fewer tell nothing about a class
GAIN_WORTH_SAYING = 0.10
LAUNCH_BOUND = 0.8  # of a step goes into launching it

Item = dict[str, str]
Covered = frozenset[Aspect | None]  # by the rules that fired


def judged_advice(facts: Mapping[str, Any]) -> tuple[dict[str, Any], list[Item]]:
    """The model's standing, and what to do next: at most MAX_ITEMS items, the most important first. Never empty."""
    advice = _open(facts)
    found = standing(facts["outcome"], facts["rules"], advice)
    items = [*_of_standing(facts, found), *advice]
    if found["ready"]:
        judged = count(sum(map(found_nothing, facts["rules"])), "rule")
        reason = f"{sentence(in_words(facts['outcome']['accuracy']))} {judged} looked and found nothing wrong."
        items.append(_item(f"Serve it: python deploy.py serve {facts['name']}".rstrip(), reason, "serving"))
    if not items:
        items.append(_item("Look at the rules and curves below", found["sentence"], "measuring"))
    return found, _merged(items)[:MAX_ITEMS]


def what_next(facts: Mapping[str, Any]) -> list[Item]:
    """The second of `judged_advice`."""
    return judged_advice(facts)[1]


def _of_standing(facts: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Item]:
    """Why a model is not to be served that no other item speaks against."""
    accuracy = facts["outcome"]["accuracy"]
    if found["verdict"] == "guessing":
        many = "; more images would say more surely" if accuracy["value"] > accuracy["guessing"] else ""
        yield _item(
            f"Keep this model off any endpoint: it is not better than {guessing_in_words(accuracy)}",
            f"Always naming the class with the most {accuracy['split']} images would be right as often: "
            f"{in_words(accuracy)}{many}.",
            "learning",
        )
    elif found["verdict"] == "unknown":
        yield _item("Measure the model before you serve it: give it a test folder", found["sentence"], "measuring")
    for each in found["lacking"][:3] if found["verdict"] == "unjudged" else ():
        yield _item(f"Let {each['rule']} judge before you serve it", f"It lacked data: {each['why']}.", "measuring")
    if found["verdict"] == "unjudged" and not found["lacking"]:
        yield _item(
            "Let the rules judge the training before you serve it: rules=all, debug=true",
            found["sentence"],
            "measuring",
        )


def _open(facts: Mapping[str, Any]) -> list[Item]:
    """All that there is to do, but for serving."""
    found = [rule for rule in facts["rules"] if rule["verdict"] == "IssuesFound" and rule["severity"] != "info"]
    fired = [rule for rule in found if not rule.get("symptom_of")]
    covered = frozenset(RULES[rule["rule"]].aspect for rule in found if rule["rule"] in RULES)  # a file may be older
    items = [*_ending(facts), *_of_rules(fired), *_no_test(facts)]
    if facts["history"]:
        items += [*_learning(facts, covered), *_errors(facts, covered), *_speed(facts, covered), *_measuring(facts)]
    if facts["unreadable"]:
        items.append(
            _item(
                "Repair the unreadable images",
                f"{count(len(facts['unreadable']), 'image')} could not be read and did not count.",
                "data",
            )
        )
    return items


def _item(title: str, reason: str, about: str) -> Item:
    """`about`: an aspect of rules, or ending, data, measuring, rule, serving; see `standing.IN_THE_WAY`."""
    return {"title": title, "reason": reason, "about": about}


def _merged(items: list[Item]) -> list[Item]:
    """Items whose titles begin with the same two words ask for the same: their reasons are put together."""
    found: dict[tuple[str, ...], Item] = {}
    for item in items:
        key = tuple(item["title"].split()[:2])
        if key in found:
            found[key]["reason"] += " " + item["reason"]
        else:
            found[key] = _item(item["title"].rstrip("."), item["reason"], item["about"])
    return list(found.values())


def _ending(facts: Mapping[str, Any]) -> Iterator[Item]:
    outcome = facts["outcome"]
    if outcome["status"] in ("failed", "stopped"):
        title = outcome["hint"] or "Read the log around the failure"
        yield _item(title[:1].upper() + title[1:], f"The job ended early: {outcome['failure']}.", "ending")
    elif outcome["status"] == "unfinished":
        yield _item(
            "Start the job again with the same checkpoint folder",
            "It wrote no result: it is still running, or was killed.",
            "ending",
        )


def _of_rules(fired: list[Mapping[str, Any]]) -> Iterator[Item]:
    for rule in fired[:3]:
        advice = rule["advice"] or f"See the rule {rule['rule']}"
        yield _item(advice[:1].upper() + advice[1:], f"{words(rule['rule'])}: {sentence(rule['summary'])}", "rule")


def _learning(facts: Mapping[str, Any], covered: Covered) -> Iterator[Item]:
    outcome, config, last = facts["outcome"], facts["config"], facts["history"][-1]
    best = best_row(facts)
    train, valid = best.get("train:accuracy"), best.get("validation:accuracy")
    if train is None or valid is None:
        return
    if config.get("weights") == "none" and valid < 0.95:
        yield _item(
            "Start from pretrained weights: weights=imagenet",
            f"The network began from random numbers and reached {percent(valid)} on validation images; with a few "
            "hundred images a class, pretrained weights usually decide more than every other setting.",
            "learning",
        )
    images = outcome["images"].get("valid")
    certain = images is None or train > exact_interval(valid * images, images)[1]
    if certain and train - valid > LARGE_GAP and "generalization" not in covered:
        change = "augment=standard" if config.get("augment") != "standard" else "more images, or a higher weight_decay"
        yield _item(
            f"Close the gap between training and validation: {change}",
            f"In the best epoch, training accuracy is {points(train - valid)} above validation accuracy.",
            "generalization",
        )
    first = first_peak(facts["history"])[0]
    late = first >= LATE_SHARE * len(facts["history"])
    if late and outcome["status"] == "completed" and valid < 0.99 and not covered & {"generalization", "learning"}:
        epochs = config.get("epochs") or len(facts["history"])
        yield _item(
            f"Train longer: epochs={2 * epochs}",
            f"The first epoch as good as the best, {first}, is among the last of {len(facts['history'])}: there may be "
            "more to gain.",
            "learning",
        )
    elif last.get("train:accuracy", 1.0) < LOW_TRAIN_ACCURACY and "learning" not in covered:
        yield _item(
            "Let the network learn more: tune lr, or train longer",
            f"Even its training images are classified with {percent(last['train:accuracy'])} accuracy only.",
            "learning",
        )


def _errors(facts: Mapping[str, Any], covered: Covered) -> Iterator[Item]:
    accuracy = facts["outcome"]["accuracy"]
    if accuracy and accuracy["better"] is False:
        return  # what a network that knows nothing takes for what says nothing of the classes
    confusion = facts["confusion"]
    if confusion and confusion["pairs"]:
        pair, errors = confusion["pairs"][0], confusion["errors"]
        if pair["images"] >= 3 and pair["images"] >= PAIR_SHARE * errors:
            yield _item(
                f"Look at {pair['true']} taken for {pair['predicted']}",
                f"{pair['images']} of the {errors} errors are this confusion: check the labels, then add images of "
                "both.",
                "data",
            )
    if accuracy and facts["per_class"] and "classes" not in covered:
        weakest = facts["per_class"][0]
        large_enough = weakest["images"] >= MIN_IMAGES_OF_WEAK and weakest["high"] < accuracy["value"]
        if large_enough and accuracy["value"] - weakest["recall"] > WEAK_RECALL:
            yield _item(
                f"Add images of {weakest['class']}",
                f"Only {percent(weakest['recall'])} of its {weakest['images']} test images are recognised, "
                f"against {percent(accuracy['value'])} overall.",
                "classes",
            )


def _speed(facts: Mapping[str, Any], covered: Covered) -> Iterator[Item]:
    launching = facts["time"].get("launch_share", 0.0) if facts["time"] else 0.0
    if launching >= LAUNCH_BOUND and "speed" not in covered:
        reason = (
            f"Launching its kernels takes the CPU {percent(min(launching, 1.0), 0)} of a step, however large the "
            "batch: the GPU waits for it."
        )
        yield _item(REMEDIES["rest_s"], reason, "speed")
        return
    found = facts["time"] and facts["time"]["bottleneck"]
    if not found or found["gain"] < GAIN_WORTH_SAYING or "speed" in covered:
        return
    what, share = PHASE_NAMES[found["avoidable"]], percent(found["avoidable_share"], 0)
    reason = f"{what} takes {share} of a step; without it training would be {percent(found['gain'], 0)} faster."
    yield _item(REMEDIES[found["avoidable"]], reason, "speed")


def first_peak(history: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """The first epoch that had the highest validation accuracy, and that accuracy; (0, nan) without one.

    The weights that are kept may be of a later one, which had the same and a lower loss.
    """
    rows = [(row["validation:accuracy"], -row["epoch"]) for row in history if "validation:accuracy" in row]
    value, minus_epoch = max(rows, default=(math.nan, 0))
    return -minus_epoch, value


def best_row(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The history's row of the best epoch; empty when it is not there."""
    return next((row for row in facts["history"] if row["epoch"] == facts["outcome"]["best_epoch"]), {})


def _no_test(facts: Mapping[str, Any]) -> Iterator[Item]:
    accuracy = facts["outcome"]["accuracy"]
    if accuracy and accuracy["split"] != "test":
        yield _item(
            "Add a test folder",
            "The accuracy was measured on the validation images, which also chose the best epoch: it is flattering.",
            "measuring",
        )


def _measuring(facts: Mapping[str, Any]) -> Iterator[Item]:
    accuracy = facts["outcome"]["accuracy"]
    if accuracy and accuracy["low"] is not None and (accuracy["high"] - accuracy["low"]) / 2 > WIDE_INTERVAL:
        yield _item(
            f"Do not compare models on these {accuracy['split']} images alone",
            f"With {count(accuracy['images'], 'image')} the true accuracy may lie anywhere in "
            f"{interval(accuracy['low'], accuracy['high'])}; more images narrow it.",
            "measuring",
        )


PHASE_NAMES: Mapping[str, str] = {
    "data_wait_s": "Waiting for data",
    "sync_s": "Waiting for other processes",
    "h2d_s": "Copying to the device",
    "forward_s": "Forward pass",
    "backward_s": "Backward pass",
    "optimizer_s": "Optimiser",
    "hook_s": "Recording (hook)",
    "rest_s": "Python between the phases",
}
REMEDIES: Mapping[str, str] = {
    "data_wait_s": "Feed the network faster: raise workers, set cache=decoded, or store the images smaller",
    "sync_s": "Find what holds the slowest process up: its data, its device, other programs",
    "h2d_s": "Copy less: a smaller image_size, or larger batches",
    "hook_s": "Record less often: raise debug_interval and activation_interval (the first steps, recorded more often, "
    "weigh less in a longer job)",
    "rest_s": "Give each step more to do: a larger batch_size",
}
