"""Pictures as SVG, by hand: a report draws a few lines and a table of colours, and needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"
LINES = ("#1f6fb4", "#d9730d", "#3a8f3a")
_SCALE = ((253, 249, 236), (126, 205, 187), (44, 127, 184), (12, 44, 132))
"""Colours of 0, 1/3, 2/3 and 1: light to dark, so that the order survives a black-and-white print."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        values: a value for every place on the x axis; None where there is none.
    """

    name: str
    values: Sequence[float | None]


def text(
    x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", fill: str = INK, extra: str = ""
) -> str:
    """One line of text whose base line is at y."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{extra}>'
        f"{escape(words)}</text>"
    )


def document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def colour(share: float) -> str:
    """The colour of a share.

    >>> colour(0.0), colour(1.0)
    ('#fdf9ec', '#0c2c84')
    """
    place = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(place), len(_SCALE) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within low..high, at most `most` of them.

    >>> ticks(0.0, 100.0), ticks(0.0, 7.0, 8)
    ([0.0, 25.0, 50.0, 75.0, 100.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    """
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50):
        step = factor * magnitude
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [number * step for number in range(first, last + 1)]
    raise AssertionError((low, high, most))


def chart(
    box: tuple[float, float, float, float],
    title: str,
    x: Sequence[float],
    series: Sequence[Series],
    limits: tuple[float, float] | None = None,
    x_label: str = "epoch",
) -> list[str]:
    """A line chart in a box (x, y, width, height), with a dot at every value; several lines get a legend.

    Args:
        box: where, labels included.
        title: what is drawn, and in which unit.
        x: places on the x axis, rising.
        series: at most as many as there are colours.
        limits: of the y axis; by default what the values need.
        x_label: of the x axis.
    """
    left, top, width, height = box[0] + 52, box[1] + 44, box[2] - 64, box[3] - 84
    known = [value for one in series for value in one.values if value is not None]
    if limits is None:
        low, high = min([0.0, *known]), max([0.0, *known])
        limits = (low, high if high > low else low + 1)
    low, high = limits
    start, end = x[0], x[-1] if x[-1] > x[0] else x[0] + 1

    def at(place: float, value: float) -> tuple[float, float]:
        return left + width * (place - start) / (end - start), top + height * (1 - (value - low) / (high - low))

    parts = [text(box[0] + 16, box[1] + 14, title, size=13, extra=' font-weight="bold"')]
    for value in ticks(low, high):
        y = at(start, value)[1]
        parts.append(f'<path d="M{left:.1f} {y:.1f}h{width:.1f}" stroke="{PALE}"/>')
        parts.append(text(left - 6, y + 4, f"{value:.4g}", size=11, anchor="end", fill=GREY))
    for place in ticks(start, end, 9):
        parts.append(text(at(place, low)[0], top + height + 16, f"{place:.3g}", size=11, anchor="middle", fill=GREY))
    parts.append(text(left + width / 2, top + height + 32, x_label, size=11, anchor="middle", fill=GREY))
    legend = left
    for one, stroke in zip(series, LINES, strict=False):
        points = [at(place, value) for place, value in zip(x, one.values, strict=True) if value is not None]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{stroke}" stroke-width="2"/>' if points else "")
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{stroke}"/>' for px, py in points]
        if len(series) == 1 and points:
            break  # the title says it
        parts.append(f'<path d="M{legend:.1f} {box[1] + 27:.1f}h16" stroke="{stroke}" stroke-width="2"/>')
        words = one.name if points else f"{one.name} (not known)"
        parts.append(text(legend + 21, box[1] + 31, words, size=11))
        legend += 36 + 6.2 * len(words)
    return [part for part in parts if part]
