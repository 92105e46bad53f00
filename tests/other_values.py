"""For every setting a value that is not its default, made from what the setting says of itself."""

from __future__ import annotations

from image_classifier.contract.config import Param, Value


def other_value(known: Param) -> Value:
    """An allowed value that is not the default; a float that is no round decimal."""
    if known.choices:
        return next(choice for choice in known.choices if choice != known.default)
    if isinstance(known.default, bool):
        return not known.default
    if isinstance(known.default, int):
        return known.default + 1 if known.default < known.high else known.default - 1
    if isinstance(known.default, float):
        return known.default / 3 if known.default / 3 > known.low else (known.default + min(known.high, 1e3)) / 3
    return f"other/{known.name} of mine"
