"""Names that come from outside, as text that can be kept and shown."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

# What a terminal obeys instead of showing it: controls (Cc), the ends of lines and paragraphs (Zl, Zp), marks that turn
# the direction of writing; and what no encoding can carry: lone surrogates (Cs).
_OBEYED = frozenset({"Cc", "Zl", "Zp", "Cs"})
_NO_TEXT = re.compile("[\ud800-\udfff]")  # lone surrogates
_FOREIGN = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that stand for no byte of a name
# What does not tell two names apart for a person: spaces, what is not seen, hyphens, underscores.
_UNTOLD = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf", "Pd", "Pc"})
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def as_text(name: Path | str) -> str:
    """A path, or text that names one, as every file, log and answer can hold it: a byte that is not UTF-8 becomes
    `\\xe9`. What is text already stays as it is."""
    if isinstance(name, Path):
        return os.fsencode(name).decode("utf-8", errors="backslashreplace")
    if _NO_TEXT.search(name) is None:
        return name
    foreign = _FOREIGN.sub(lambda found: _escape(found[0]), name)
    return foreign.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")


def visible(text: str, keep: str = "") -> str:
    """The text as a terminal can be given it: what it would obey, or could not print, as an escape such as `\\x1b`.

    Args:
        keep: characters to leave as they are, such as a line's end.
    """
    if text.isprintable():
        return text
    if "\n" in keep:  # most lines of a long text are printable, which is known a hundred times faster
        return "\n".join(visible(line, keep.replace("\n", "")) for line in text.split("\n"))
    return "".join(_escape(char) if _is_obeyed(char) and char not in keep else char for char in text)


def json_visible(text: str) -> str:
    """The same for the text of a JSON document: `\\u001b`, which reads back."""
    if text.isprintable():
        return text
    return "".join(
        "".join(f"\\u{unit:04x}" for unit in _units(char)) if _is_obeyed(char) and char != "\n" else char
        for char in text
    )


def plain_name(name: str) -> str:
    """What is left of a name without case, spaces, hyphens, underscores, what is not seen, and Unicode's other forms:
    names with the same plain one are easily taken for each other."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    kept = "".join(char for char in folded if unicodedata.category(char) not in _UNTOLD)
    return kept or name


def _is_obeyed(char: str) -> bool:
    return unicodedata.category(char) in _OBEYED or char in _DIRECTIONS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _units(char: str) -> list[int]:
    """The character's UTF-16 code units."""
    encoded = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(encoded[at : at + 2]) for at in range(0, len(encoded), 2)]
