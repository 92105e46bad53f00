"""Markup that cannot be injected into: text becomes markup by `tag` only, which escapes it.

Knows nothing of reports. Class names, file names and failure sentences are other people's words; whatever they hold,
they come out as text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Union

Child = Union[str, int, None, Iterable["Child"]]  # noqa: UP007  # a recursive alias needs the quotes
VOID = frozenset({"meta", "link", "img", "br"})


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Any value as markup: Markup as it is, the rest as escaped text."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def joined(*children: Child) -> Markup:
    """Children one after the other; None is nothing, lists are flattened, text is escaped."""
    return Markup("".join(_flat(children)))


def tag(name: str, *children: Child, **attributes: object) -> Markup:
    """One element.

    Args:
        name: `p`, `svg`, ...
        children: markup, text, numbers, None, or iterables of these.
        attributes: `class_="x"` is written class="x", `data_tip` data-tip, `viewBox` as it is; None is left out, True
            is written without a value, floats with two decimals at most.
    """
    pairs = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in VOID:
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{joined(*children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{html.escape(str(value), quote=True)}"'


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, (str, int)):
            yield escaped(child)
        else:
            yield from _flat(child)
