"""The figures that matter most, as plain texts: dense, pruned, and one over the other."""

from collections.abc import Sequence
from typing import NamedTuple

from dtp_deploy.report.schema import LayerTimeEntry, ModelEntry, Report

NOT_KNOWN = "-"

_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COUNTS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


class SummaryRow(NamedTuple):
    """One line of the summary."""

    quantity: str
    dense: str
    pruned: str
    ratio: str
    """Pruned over dense; for accuracy the difference in points."""


def summary_rows(report: Report) -> list[SummaryRow]:
    """Accuracy, latency, MACs, parameters (of masked models those left too) and size of the two models."""
    dense, pruned = report.dense, report.pruned
    return [
        SummaryRow(
            "accuracy (points)", points(dense.accuracy), points(pruned.accuracy), _gain(dense.accuracy, pruned.accuracy)
        ),
        SummaryRow("latency p50", _p50(dense), _p50(pruned), _latency_ratio(report)),
        SummaryRow("MACs", count(dense.macs), count(pruned.macs), _ratio(dense.macs, pruned.macs)),
        SummaryRow("parameters", count(dense.params), count(pruned.params), _ratio(dense.params, pruned.params)),
        *_nonzero(report),
        SummaryRow(
            "size", size(dense.size_bytes), size(pruned.size_bytes), _ratio(dense.size_bytes, pruned.size_bytes)
        ),
    ]


def _nonzero(report: Report) -> list[SummaryRow]:
    dense, left = report.dense.nonzero_params or report.dense.params, report.pruned.nonzero_params
    return (
        []
        if left is None
        else [SummaryRow(f"not zero ({report.granularity})", count(dense), count(left), _ratio(dense, left))]
    )


def layer_rows(layers: Sequence[LayerTimeEntry]) -> list[tuple[str, str, str, str, str]]:
    """Name, share, mean, median and precision of every layer, the slowest first."""
    total = sum(layer.mean_ms for layer in layers) or 1.0
    return [
        (
            layer.name,
            percent(layer.mean_ms / total),
            milliseconds(layer.mean_ms),
            NOT_KNOWN if layer.median_ms is None else milliseconds(layer.median_ms),
            layer.precision or NOT_KNOWN,
        )
        for layer in sorted(layers, key=lambda layer: -layer.mean_ms)
    ]


def points(accuracy: float | None) -> str:
    """An accuracy as people read it.

    >>> points(0.9234), points(None)
    ('92.34', '-')
    """
    return NOT_KNOWN if accuracy is None else f"{100 * accuracy:.2f}"


def percent(fraction: float | None) -> str:
    """A fraction as people read it.

    >>> percent(0.0213), percent(None)
    ('2.1%', '-')
    """
    return NOT_KNOWN if fraction is None else f"{100 * fraction:.1f}%"


def milliseconds(value_ms: float) -> str:
    """A time with four digits that mean something.

    >>> milliseconds(0.012345), milliseconds(1234.5)
    ('0.01235 ms', '1,234 ms')
    """
    return f"{value_ms:,.0f} ms" if value_ms >= 1000 else f"{value_ms:.4g} ms"


def count(number: float) -> str:
    """A number of operations, parameters or channels.

    >>> count(640), count(1_234_567)
    ('640', '1.235 M')
    """
    return _scaled(number, _COUNTS, "")


def size(size_bytes: float) -> str:
    """A number of bytes. MB is 10^6 bytes.

    >>> size(2_000_000), size(12)
    ('2.000 MB', '12 B')
    """
    return _scaled(size_bytes, tuple((scale, f" {unit}") for scale, unit in _SIZES), " B")


def quantity(value: float, unit: str) -> str:
    """An amount in one of the units of a budget.

    >>> quantity(3.2, "ms"), quantity(2e6, "bytes"), quantity(1500, "MACs")
    ('3.2 ms', '2.000 MB', '1.500 k MACs')
    """
    match unit:
        case "ms":
            return milliseconds(value)
        case "bytes":
            return size(value)
        case _:
            return f"{count(value)} {unit}"


def _scaled(number: float, scales: tuple[tuple[float, str], ...], plain: str) -> str:
    for scale, suffix in scales:
        if number >= scale:
            return f"{number / scale:.3f}{suffix}"
    return f"{number:g}{plain}"


def _p50(model: ModelEntry) -> str:
    if model.latency is not None:
        return milliseconds(model.latency.p50_ms) + ("" if model.latency.stable else " (unstable)")
    return NOT_KNOWN if model.predicted_ms is None else f"{milliseconds(model.predicted_ms)} (predicted)"


def _ratio(dense: float, pruned: float) -> str:
    return f"{pruned / dense:.3f}" if dense else NOT_KNOWN


def _latency_ratio(report: Report) -> str:
    interval = report.latency_ratio
    dense, pruned = report.dense, report.pruned
    if dense.predicted_ms and pruned.predicted_ms and pruned.latency is None:
        return f"{_ratio(dense.predicted_ms, pruned.predicted_ms)} (predicted)"
    return NOT_KNOWN if interval is None else f"{interval.ratio:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _gain(dense: float | None, pruned: float | None) -> str:
    return NOT_KNOWN if dense is None or pruned is None else f"{100 * (pruned - dense):+.2f}"
