"""Images without splits of their own into train, valid and test: by class, always the same way, and pictures that show
the same on one side."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from image_classifier.vision.image_list import ListedImage

Group = list[int]  # indices of images that show the same


def split_images(
    images: Sequence[ListedImage],
    first_alike: Sequence[int],
    *,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[ListedImage, ...]:
    """The images, each with its split.

    Of each class the share `test_fraction` becomes test and `valid_fraction` valid, chosen by a hash of seed and name:
    adding images later does not reshuffle the others. A class of two pictures has none in test, a class of one is in
    train alone, and so are pictures that look alike and have different labels: one of the labels is wrong.

    Args:
        images: those that have a split already keep it; then nothing becomes test, and valid only where none is.
        first_alike: for each image the index of the first one that shows the same (`lookalikes.groups_of`).
        valid_fraction, test_fraction: shares of each class, 0..1.
    """
    given = {image.split for image in images} - {""}
    if "valid" in given:
        return tuple(images)
    if given:
        test_fraction = 0.0
    chosen = [image.split or "train" for image in images]
    for groups in _groups_by_class(images, first_alike, chosen).values():
        ranked = sorted(groups, key=lambda group: _rank(seed, images[group[0]]))
        count = sum(map(len, groups))
        for split, fraction, others in (("test", test_fraction, 2), ("valid", valid_fraction, 1)):
            if fraction and len(ranked) > others:
                for group in _take(ranked, max(1, round(count * fraction)), others):
                    ranked.remove(group)
                    for index in group:
                        chosen[index] = split
    return tuple(replace(image, split=split) for image, split in zip(images, chosen, strict=True))


def _groups_by_class(
    images: Sequence[ListedImage], first_alike: Sequence[int], chosen: Sequence[str]
) -> Mapping[str, list[Group]]:
    """Label -> the groups of that label which are in train as a whole."""
    groups: dict[int, Group] = defaultdict(list)
    for index, first in enumerate(first_alike):
        groups[first].append(index)
    found: dict[str, list[Group]] = defaultdict(list)
    for group in groups.values():
        labels = {images[index].label for index in group}
        if len(labels) == 1 and all(chosen[index] == "train" for index in group):
            found[labels.pop()].append(group)
    return found


def _take(ranked: Sequence[Group], wanted: int, leave: int) -> list[Group]:
    """Groups with `wanted` images together or a few less, at least one group; `leave` groups stay."""
    taken: list[Group] = []
    for group in ranked:
        if len(ranked) - len(taken) == leave:
            break
        if len(group) <= wanted:
            taken.append(group)
            wanted -= len(group)
    return taken or [min(ranked, key=len)]


def _rank(seed: int, image: ListedImage) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}/{image.path.as_posix()}")).digest()
