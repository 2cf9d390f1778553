"""Which widths are worth their time, where time does not rise in proportion to them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

_EXCESS = 0.03
"""How much dearer than a mix of other widths one may be, as a share of what its units, or those of a whole period if
these are more, cost in proportion."""


def worth_their_time(widths: Sequence[tuple[int, float]], period: float) -> list[int]:
    """Those of some widths and their times that are not much dearer than a mix of two others not a period away.

    Only so near, as a mix of widths far apart is another network, and accuracy is not linear.

    >>> worth_their_time([(8, 8.0), (16, 16.0), (24, 30.0), (32, 32.0), (40, 40.5)], period=16)
    [8, 16, 32, 40]
    """
    (first, first_ms), (last, last_ms) = widths[0], widths[-1]
    per_unit = (last_ms - first_ms) / max(last - first, 1)
    kept = []
    for place, (count, ms) in enumerate(widths):
        below = [one for one in widths[:place] if count - one[0] <= period and one[0] > 1]  # nobody wants a single one
        above = [one for one in widths[place + 1 :] if one[0] - count <= period]
        mixes = [a + (b - a) * (count - low) / (high - low) for (low, a), (high, b) in product(below, above)]
        if ms - min(mixes, default=ms) <= _EXCESS * per_unit * max(count, period):
            kept.append(count)
    return kept
