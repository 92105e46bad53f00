"""Numbers as people read them."""

from __future__ import annotations

import math
import re
import unicodedata

DASH = "–"
GAP = "\u00a0"  # between a number and its unit, where no line may break
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LARGEST = 1e15  # above it no prefix makes a number readable


def percent(share: float | None, digits: int = 1) -> str:
    """0.9312 -> `93.1 %`."""
    return DASH if share is None else f"{100 * share:.{digits}f}{GAP}%"


def share_tick(share: float) -> str:
    """As `percent`, without a decimal that is 0: `80 %`, `82.5 %`."""
    return percent(share).replace(".0", "")


def interval(low: float, high: float) -> str:
    """Two shares as `71–85 %`."""
    return f"{100 * low:.0f}–{percent(high, 0)}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: 0.081 -> `8.1 points`."""
    return f"{100 * difference:.1f}{GAP}points"


def duration(seconds: float | None) -> str:
    """`850 µs`, `12 ms`, `3.2 s`, `4 min 10 s`, `3 h 05 min`."""
    if seconds is None:
        return DASH
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f}{GAP}µs" if seconds else "0"
    if seconds < 1:
        return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f}{GAP}ms"
    if seconds < 60:
        return f"{seconds:.1f}{GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{GAP}min {rest:02d}{GAP}s"
    return f"{minutes // 60}{GAP}h {minutes % 60:02d}{GAP}min"


def number(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, `1.2e-5` when it is tiny, `12.3k` when it is large, `3.4e35` beyond."""
    if value is None or not math.isfinite(value):
        return DASH if value is None else str(value)
    if value == int(value) and abs(value) < 10_000:
        return str(int(value))
    if not 1e-3 <= abs(value) < _LARGEST:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    for factor, prefix in _PREFIXES:
        if abs(value) >= max(factor, 10_000):
            return f"{value / factor:.{digits}g}{prefix}"
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def count(value: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`, `8,351 images`."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def short(text: str, limit: int) -> str:
    """The text, cut in the middle when it is longer than `limit`."""
    if len(text) <= limit:
        return text
    keep = limit - 1
    return f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"


def text_width(text: str, size: float) -> float:
    """About how many pixels a text takes in a sans-serif face of `size` pixels; rather too many than too few, so that
    room made for a label cuts nothing of it."""
    ems = 0.0
    for char in text:
        if unicodedata.east_asian_width(char) in "WF":
            ems += 1.05
        elif char in "mwMW@%—…":
            ems += 1.0
        else:
            ems += 0.75 if char.isupper() else 0.4 if char in "iljtfrI.,:;'|! " else 0.65
    return ems * size


def sentence(text: str) -> str:
    """The text with a capital at its beginning and a full stop at its end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


def words(name: str) -> str:
    """`LowGPUUtilization` -> `Low GPU utilization`, `IOBottleneck` -> `IO bottleneck`."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]+$|[A-Z][a-z]+|\d+", name) or [name]
    return " ".join([parts[0], *(part if part.isupper() else part.lower() for part in parts[1:])]).replace(
        "relu", "ReLU"
    )
