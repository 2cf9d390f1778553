"""``mask_phase.svg``: how the masks went from the dense network to their choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtp_deploy.report.charts import GREY, Series, chart, colour, document, text, ticks
from dtp_deploy.report.schema import MaskPhaseEntry, Report

_WIDTH, _CHART = 960.0, (480.0, 220.0)
_ROW, _NAMES, _FIGURES = 18.0, 250.0, 150.0
_LONGEST = 36
"""Characters of a group's name; of a longer one the end is shown, which tells more."""


@dataclass(frozen=True)
class _Row:
    """A group or a layer, with its channels or weights before."""

    name: str
    before: int


def render_mask_phase(report: Report) -> str | None:
    """The picture; None where the report has nothing to draw."""
    entries = report.mask_phase
    rows = [_Row(group.name, group.width_before) for group in report.groups if group.frozen_because is None]
    rows += [_Row(layer.name, layer.weights) for layer in report.layers if layer.left_because is None]
    if not entries:
        return None
    top = 50.0
    title = f"{report.model}: how the masks were learned"
    parts = [text(16, 28, title, size=17, extra=' font-weight="bold"'), *_charts(entries, top)]
    below = top + 2 * _CHART[1] + 16
    parts += _widths(entries, rows, "channels" if report.groups else "weights", below)
    return document(_WIDTH, below + 84 + _ROW * len(rows), title, parts)


def _charts(entries: Sequence[MaskPhaseEntry], top: float) -> list[str]:
    epochs = [entry.epoch for entry in entries]
    width, height = _CHART
    full = (0.0, 100.0)

    def box(column: int, row: int) -> tuple[float, float, float, float]:
        return column * width, top + row * height, width, height

    return [
        *chart(
            box(0, 0),
            "Cost of the masks, % of the dense network",
            epochs,
            [_series(entries, "cost", "cost_share")],
            full,
        ),
        *chart(
            box(1, 0),
            "Masks that are not decided yet, %",
            epochs,
            [
                _series(entries, "undecided", "undecided"),
                _series(entries, "mean entropy (100 = 1 bit)", "entropy_bits"),
            ],  # of single weights hardly any is undecided: the axis follows the values
        ),
        *chart(
            box(0, 1),
            "Accuracy on validation samples, points",
            epochs,
            [_series(entries, "soft masks", "accuracy_soft"), _series(entries, "hardened now", "accuracy_hard")],
            full,
        ),
        *chart(
            box(1, 1),
            "Price of the budget: loss per 1 % of the dense cost",
            epochs,
            [Series("mean of the epoch", [None if e.price is None else e.price / 100 for e in entries])],
        ),
    ]


def _series(entries: Sequence[MaskPhaseEntry], name: str, field: str) -> Series:
    """A fraction of every entry, in hundredths."""
    values = [getattr(entry, field) for entry in entries]
    return Series(name, [None if value is None else 100 * value for value in values])


def _widths(entries: Sequence[MaskPhaseEntry], rows: Sequence[_Row], what: str, top: float) -> list[str]:
    """A row a group or layer, a column an entry; the colour is the share of channels or weights that is kept."""
    left, across = _NAMES, _WIDTH - _NAMES - _FIGURES
    column = across / len(entries)
    first = top + 40
    parts = [
        text(
            16,
            top + 14,
            f"Learned widths: share of each row's {what} that is kept",
            size=13,
            extra=' font-weight="bold"',
        ),
        text(_WIDTH - _FIGURES + 10, first - 6, "dense → last", size=11, fill=GREY),
        *_legend(left + across - 190, top + 2),
    ]
    for number, row in enumerate(rows):
        y = first + number * _ROW
        name = row.name if len(row.name) <= _LONGEST else f"…{row.name[1 - _LONGEST :]}"
        parts.append(text(left - 8, y + 13, name, size=11, anchor="end"))
        for place, entry in enumerate(entries):
            width = entry.widths[number]
            share = width / row.before
            parts.append(
                f'<rect x="{left + place * column:.1f}" y="{y:.1f}" width="{column:.1f}" height="{_ROW - 1:.1f}" '
                f'fill="{colour(share)}"><title>{width} of {row.before} {what} ({share:.0%}), epoch '
                f"{entry.epoch:.3g}</title></rect>"
            )
        last = entries[-1].widths[number]
        figures = f"{row.before} → {last} ({last / row.before:.0%})"
        parts.append(text(_WIDTH - _FIGURES + 10, y + 13, figures, size=11))
    bottom = first + len(rows) * _ROW
    step = max(1, -(-len(entries) // 12))
    for place in range(0, len(entries), step):
        x = left + (place + 0.5) * column
        parts.append(text(x, bottom + 14, f"{entries[place].epoch:.3g}", size=11, anchor="middle", fill=GREY))
    parts.append(text(left + across / 2, bottom + 30, "epoch", size=11, anchor="middle", fill=GREY))
    return parts


def _legend(left: float, top: float) -> list[str]:
    cell, cells = 8.0, 20
    parts = [text(left - 10, top + 10, "kept", size=11, anchor="end", fill=GREY)]
    for number in range(cells):
        parts.append(
            f'<rect x="{left + number * cell:.1f}" y="{top:.1f}" width="{cell + 0.5:.1f}" height="12" '
            f'fill="{colour(number / (cells - 1))}"/>'
        )
    for share in ticks(0, 100, 3):
        x = left + cells * cell * share / 100
        parts.append(text(x, top + 23, f"{share:.0f} %", size=10, anchor="middle", fill=GREY))
    return parts
