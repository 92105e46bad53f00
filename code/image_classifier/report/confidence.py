"""How far a measured share can be trusted."""

from __future__ import annotations

import math


def wilson(hits: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `total` independent trials (Wilson, 1927)."""
    if total <= 0:
        return 0.0, 1.0
    z = 1.959964
    share = min(max(hits / total, 0.0), 1.0)
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
