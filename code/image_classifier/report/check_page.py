"""What a check of a data set found, as one page: what is wrong, with pictures of it, and what there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from image_classifier.contract.text import visible
from image_classifier.report.answers import thumbnail
from image_classifier.report.formats import count, short
from image_classifier.report.html import Markup, joined, tag
from image_classifier.report.page import Facts, details, note, page, table
from image_classifier.vision.check import CheckReport
from image_classifier.vision.findings import DataFinding

MAX_THUMBNAILS = 240  # on a page
MAX_THUMBNAIL_BYTES = 4_000_000  # of all of them, as they are written
PICTURES_A_FINDING = 12
FINDINGS_A_KIND = 40
NAMES_A_FINDING = 200
MAX_CLASS_ROWS = 300
FILE_NAME_CHARS = 40

Pictures = Callable[[str], str | None]
"""A file's name -> its thumbnail as a data URI."""


def render_check(report: CheckReport, folder: Path) -> str:
    """A check's report as one self-contained HTML document.

    What HTML has no character for, or what would turn the direction of reading, is shown as an escape.

    Args:
        folder: which the files of the findings are named from.
    """
    pictures = _Thumbnails(folder)
    sections = [
        ("errors", "Errors", _section(report.errors, pictures)),
        ("warnings", "Warnings", _section(report.warnings, pictures)),
        ("notes", "Notes", _section(report.notes, pictures)),
        ("images", "Images", _images(report)),
    ]
    shown = [(name, title, _always(content)) for name, title, content in sections if content is not None]
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "standing": {"verdict": _verdict(report), "sentence": _sentence(report)},
        "source": f"by `check` from every picture of the data set, whose fingerprint is {report.fingerprint[:16]}.",
    }
    meta = f"{count(report.num_images, 'image')}, {count(len(report.classes), 'class', 'classes')}"
    return visible(page(facts, f"Check of {report.root}", meta, shown), keep="\n\t")


class _Thumbnails:
    """Pictures, as long as the page has room for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, str | None] = {}
        self._bytes = 0

    def __call__(self, name: str) -> str | None:
        if name not in self._known:
            if len(self._known) >= MAX_THUMBNAILS or self._bytes >= MAX_THUMBNAIL_BYTES:
                return None
            uri = thumbnail(self._folder / name)
            self._bytes += len(uri or "")
            self._known[name] = uri if self._bytes <= MAX_THUMBNAIL_BYTES else None
        return self._known[name]


def _always(content: Markup) -> Callable[[Facts], Markup]:
    return lambda _: content


def _verdict(report: CheckReport) -> str:
    return "no model" if report.errors else "look" if report.warnings else "ready"


def _sentence(report: CheckReport) -> str:
    warnings = count(len(report.warnings), "warning")
    if report.errors:
        return f"Not fit for training: {count(len(report.errors), 'error')}, {warnings}."
    return f"Fit for training, with {warnings}." if report.warnings else "Fit for training: nothing was found."


def _section(findings: Sequence[DataFinding], pictures: Pictures) -> Markup | None:
    """Findings, those of a kind together; None without any."""
    parts = []
    for (_, hint), alike in itertools.groupby(findings, key=lambda finding: (finding.kind, finding.hint)):
        same = list(alike)
        parts += [_finding(finding, pictures) for finding in same[:FINDINGS_A_KIND]]
        if len(same) > FINDINGS_A_KIND:
            parts.append(note(f"{len(same) - FINDINGS_A_KIND} more like these: `check --json` has all of them."))
        if hint:
            parts.append(tag("p", tag("b", "What to do: "), hint, class_="todo"))
    return joined(*parts) if parts else None


def _finding(finding: DataFinding, pictures: Pictures) -> Markup:
    cards = [_card(name, pictures) for name in finding.files[:PICTURES_A_FINDING]]
    gallery = tag("div", *cards, class_="gallery whole") if any(cards) else None
    return joined(tag("h3", finding.message), gallery, _names(finding, gallery))


def _card(name: str, pictures: Pictures) -> Markup | None:
    uri = pictures(name)
    if uri is None:
        return None
    caption = tag("figcaption", tag("span", short(name, FILE_NAME_CHARS), title=name))
    return tag("figure", tag("img", src=uri, alt=name), caption)


def _names(finding: DataFinding, gallery: Markup | None) -> Markup | None:
    """The files by name: folded away where their pictures are shown, all but what the message says already."""
    files = finding.files
    if not files or (len(files) == 1 and finding.message.startswith(files[0])):
        return None
    listed = tag("ul", *(tag("li", tag("code", name)) for name in files[:NAMES_A_FINDING]))
    more = len(files) - NAMES_A_FINDING
    content = joined(listed, note(f"{more} more: `check --json` has all of them.") if more > 0 else None)
    return details(count(len(files), "file"), content) if gallery else content


def _images(report: CheckReport) -> Markup:
    splits = list(report.counts)
    rows = [(name, *(report.counts[split].get(name, 0) for split in splits)) for name in report.classes]
    total = ("all", *(sum(report.counts[split].values()) for split in splits))
    remarks = []
    if report.valid_split_off:
        remarks.append("There is no valid folder: these images are split off train.")
    if report.split_made:
        remarks.append("No folders say what is train, valid and test: images are split, lookalikes together.")
    if report.smallest and report.largest:
        sizes = (f"{width} x {height}" for width, height in (report.smallest, report.largest))
        remarks.append("The smallest picture has {} pixels, the largest {}.".format(*sizes))
    if len(rows) > MAX_CLASS_ROWS:
        remarks.append(f"The first {MAX_CLASS_ROWS} of {len(rows)} classes: `check --json` has all of them.")
    shown: Iterable[tuple[object, ...]] = (total, *rows[:MAX_CLASS_ROWS])
    numbers = table(("class", *splits), list(shown), numeric=range(1, 1 + len(splits)))
    return joined(*(tag("p", remark) for remark in remarks), numbers)
