"""The section about labels that are likely wrong: what a training wrote of them, with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_classifier.contract.outputs import read_suspects
from image_classifier.report.answers import is_below, thumbnail
from image_classifier.report.formats import count, percent, short
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, note, table
from image_classifier.report.sources import Sources
from image_classifier.vision.folders import channel_of

MAX_PICTURES = 24
MAX_ROWS = 200
FILE_NAME_CHARS = 28


def suspected_labels(sources: Sources, earlier: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What SUSPECTED_LABELS says, with `thumbnail` for the first of its suspects: from an earlier report where the
    image is gone. None where nothing was written, as by earlier versions."""
    found = read_suspects(sources.data)
    if found is None:
        return None
    known = {row.get("path"): row.get("thumbnail") for row in (earlier or {}).get("suspects", ())}
    found["suspects"] = found["suspects"][:MAX_ROWS]
    for row in found["suspects"][:MAX_PICTURES]:
        path, picture = row["path"], None
        if sources.paths is not None and is_below(path):
            root = channel_of(sources.paths, "train")
            picture = None if root is None else thumbnail(root.parent / path)
        row["thumbnail"] = picture or known.get(path)
    return found


def labels(facts: Facts) -> Markup:
    """How many labels are likely wrong, the clearest cases as pictures, all of them by name."""
    found = facts.get("labels")
    if found is None:
        return note(
            "Labels were not judged: the job did not finish, is a trial of a search, or an earlier version ran it."
        )
    if found["silent"]:
        return note(f"No label is called wrong, because {found['silent']}.")
    how = (
        f"Each of {count(found['images'], 'image')} was judged by a linear head that all other images have trained."
        if found["method"] == "left out"
        else f"The model judged {count(found['images'], 'validation image')}; it has learned the labels of the others."
    )
    source = "Confident learning (Northcutt et al. 2021)."
    if not found["count"]:
        return joined(tag("p", f"No label is likely wrong. {how}"), note(source))
    share = percent(found["count"] / max(found["images"], 1))
    lead = f"{count(found['count'], 'label')} ({share}) likely wrong: look at them, and move the images or remove them."
    rows = [
        (row["path"], row["label"], row["meant"], percent(row["label_probability"]), percent(row["meant_probability"]))
        for row in found["suspects"]
    ]
    header = ("image", "label", "looks like", "probability of the label", "of the other")
    return joined(
        tag("p", lead),
        note(f"{how} {source}"),
        tag("div", *(_card(row) for row in found["suspects"][:MAX_PICTURES]), class_="gallery"),
        details(f"The first {len(rows)} by name, the clearest first", table(header, rows, numeric=(3, 4))),
    )


def _card(row: Mapping[str, Any]) -> Markup:
    alt = f"labelled {row['label']}, looks like {row['meant']}"
    picture = (
        tag("img", src=row["thumbnail"], alt=alt, title=row["path"])
        if row.get("thumbnail")
        else tag("p", "picture not available", class_="soft")
    )
    text = tag(
        "figcaption",
        tag("b", row["label"]),
        ", looks like ",
        tag("b", row["meant"]),
        f" ({percent(row['meant_probability'], 0)})",
        tag("br"),
        tag("span", short(row["path"].rpartition("/")[2], FILE_NAME_CHARS), title=row["path"]),
    )
    return tag("figure", picture, text)
