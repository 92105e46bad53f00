"""The page around the sections: one file, nothing fetched, nothing runs or is styled but what is written here."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from image_classifier.contract.installation import as_typed
from image_classifier.contract.outputs import REPORT
from image_classifier.report.html import Markup, joined, tag

Facts = Mapping[str, Any]
Section = tuple[str, str, Callable[[Facts], Markup]]  # id, heading, content
_FOLDER = Path(__file__).parent
SOURCE = f"from the job's own files. The same facts: {REPORT.name}."  # of a page's facts, if they name no other


def page(facts: Facts, heading: str, meta: str, sections: Sequence[Section]) -> str:
    """The document. Text in `facts` is escaped wherever it goes; a policy lets no script or style in but ours."""
    # the page's rules come last, because they set the size of the charts' text on a phone
    style, script = Markup(asset("chart.css") + asset("style.css")), asset("script.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("title", heading),
        tag("link", rel="icon", href="data:,"),
        tag("style", style),
    )
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    made = facts["created"].replace("T", " ").replace("+00:00", " UTC")
    body = tag(
        "body",
        _standing(facts),
        tag("header", tag("h1", heading), tag("p", meta, class_="meta")),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(_section(facts, section) for section in sections)),
        tag(
            "footer",
            tag(
                "p",
                f"Made {made} {facts.get('source', SOURCE)}",
            ),
        ),
        tag("script", script),
    )
    return as_typed(joined(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"))) + "\n"


def _standing(facts: Facts) -> Markup | None:
    """The first line: how the model stands."""
    found = facts.get("standing")
    if found is None:
        return None
    kind = {"ready": "good", "guessing": "critical", "no model": "critical"}.get(found["verdict"], "warning")
    return tag("div", tag("p", found["sentence"]), class_=f"standing {kind}", role="status")


def _section(facts: Facts, section: Section) -> Markup:
    name, title, content = section
    return tag(
        "section", tag("h2", title, id=f"{name}-heading"), content(facts), id=name, aria_labelledby=f"{name}-heading"
    )


@cache
def asset(name: str) -> Markup:
    """A style sheet or script of this package."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def note(text: str) -> Markup:
    """A quiet paragraph."""
    return tag("p", text, class_="soft")


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Sequence[int] = (), class_: str | None = None
) -> Markup:
    """A table; columns in `numeric` are aligned right."""

    def cell(kind: str, index: int, value: Any) -> Markup:
        return tag(kind, value, class_="n" if index in numeric else None, scope="col" if kind == "th" else None)

    head = tag("thead", tag("tr", *(cell("th", i, name) for i, name in enumerate(header))))
    body = tag("tbody", *(tag("tr", *(cell("td", i, value) for i, value in enumerate(row))) for row in rows))
    return tag("div", tag("table", head, body, class_=class_), class_="scroll", tabindex=0)


def figure(content: Markup, caption: str) -> Markup:
    """A chart with what to see in it."""
    return tag("figure", content, tag("figcaption", caption))


def details(summary: str, content: Markup) -> Markup:
    """Something folded away."""
    return tag("details", tag("summary", summary), content)


def plain_list(pairs: Sequence[tuple[str, str, bool]]) -> Markup:
    """Names and values in columns; a value that stands out is bold."""
    items = [
        tag("div", tag("dt", name), tag("dd", value), class_="changed" if strong else None)
        for name, value, strong in pairs
    ]
    return tag("dl", *items, class_="plain")


def next_steps(facts: Facts) -> Markup:
    """The numbered list of what to do."""
    items = [tag("li", tag("b", item["title"]), tag("span", item["reason"])) for item in facts["next"]]
    return tag("ol", *items, class_="next") if items else note("Nothing to do.")


def missing(facts: Facts) -> Markup | None:
    """What the report could not say, folded."""
    if not facts["missing"]:
        return None
    return details(
        f"Not in this report: {len(facts['missing'])} parts were not recorded",
        tag("ul", *(tag("li", each) for each in facts["missing"])),
    )
