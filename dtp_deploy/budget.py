"""Budgets: what the pruned model may cost, parsed once, with units.

A limit is absolute (``5ms``, ``2MB``, ``1.5M``) or a share of the dense model (``60%``). MB is 10^6 bytes, KiB is 2^10.

>>> parse_budget("latency", "5ms")
Budget(kind='latency', limit=5.0, relative=False, scope='global')
>>> str(parse_budget("macs", "50%"))
'50%'
>>> parse_budget("size", "2MB").limit_for(dense=10e6)
2000000.0
>>> parse_budget("size", "25%").limit_for(dense=10e6)
2500000.0
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from dtp_deploy.errors import UsageError

BudgetKind = Literal["macs", "params", "size", "channels", "latency"]
Scope = Literal["global", "per-layer"]
Statistic = Literal["p50", "p90", "p99"]
Granularity = Literal["channels", "weights", "2:4"]
"""What is pruned: channels, which are removed; single weights; or two of every four weights along the input."""

_SCALES: dict[BudgetKind, dict[str, float]] = {
    "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "channels": {"": 1},
    "size": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "latency": {"us": 1e-3, "ms": 1, "s": 1e3},
}
UNITS: dict[BudgetKind, str] = {
    "macs": "MACs",
    "params": "parameters",
    "channels": "channels",
    "size": "bytes",
    "latency": "ms",
}
"""The unit in which `Budget.limit` is given, by kind, where it is not relative."""

_NOT_BY_ZEROS: dict[BudgetKind, str] = {
    "macs": "a runtime multiplies by zeros as by any other number",
    "size": "the ONNX file stores zeros like any other value, and is as large as before",
    "channels": "it removes no channels",
    "latency": "no runtime is faster for single zeros",
}

_FLAGS: dict[str, str] = {"channels": "--channel-count"}

_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*")


class HasPercentiles(Protocol):
    """What a latency report shows of itself."""

    @property
    def p50_ms(self) -> float: ...

    @property
    def p90_ms(self) -> float: ...

    @property
    def p99_ms(self) -> float: ...


@dataclass(frozen=True)
class Budget:
    """A limit on one cost of the pruned model.

    Attributes:
        kind: which cost: "macs", "params", "size" (bytes delivered), "channels" or "latency" (ms).
        limit: the upper bound, in the unit of `UNITS[kind]`, or a fraction in (0, 1] of the dense model's cost.
        relative: whether `limit` is such a fraction.
        scope: "global" shares the budget among the layers as the scores want it; "per-layer" keeps the same ratio of
            channels in every layer.
        statistic: which figure of the measured times a latency budget speaks of.

    Raises:
        UsageError: limit not positive and finite, or a relative limit above 1.
    """

    kind: BudgetKind
    limit: float
    relative: bool = False
    scope: Scope = "global"
    statistic: Statistic = field(default="p50", repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind):
            raise UsageError(_unknown_kind(self.kind))
        if self.scope not in get_args(Scope):
            raise UsageError(f"Budget scope {self.scope!r} is unknown. Give one of {', '.join(get_args(Scope))}.")
        if self.statistic not in get_args(Statistic):
            raise UsageError(
                f"--statistic {self.statistic!r} is unknown. Give one of {', '.join(get_args(Statistic))}."
            )
        if self.kind != "latency" and self.statistic != "p50":
            raise UsageError(
                f"--statistic {self.statistic} is of a latency, and {flag_of(self.kind)} {self} is none. "
                "Give --latency, or leave --statistic out."
            )
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise UsageError(f"{flag_of(self.kind)} {self}: a budget must be above zero. Give a larger limit.")
        if self.relative and self.limit > 1:
            raise UsageError(
                f"{flag_of(self.kind)} {self} of the dense model is over 100%: pruning only makes a model smaller. "
                "Give at most 100%."
            )

    @property
    def unit(self) -> str:
        """The unit of the absolute limit."""
        return UNITS[self.kind]

    def limit_for(self, dense: float) -> float:
        """The absolute limit, given the dense model's cost in `unit`."""
        if not self.relative:
            return self.limit
        limit = self.limit * dense
        # 29 % of 100 channels are 29 of them, and not 28.999999999999996.
        return float(round(limit)) if abs(limit - round(limit)) <= 4 * math.ulp(limit) else limit

    def latency_of(self, report: "HasPercentiles") -> float:
        """The figure that this latency budget speaks of, in ms."""
        return {"p50": report.p50_ms, "p90": report.p90_ms, "p99": report.p99_ms}[self.statistic]

    def __str__(self) -> str:
        quantity = _typed(100 * self.limit, {"%": 1}) if self.relative else _typed(self.limit, _SCALES[self.kind])
        return quantity if self.statistic == "p50" else f"{quantity} ({self.statistic})"


def _typed(value: float, scales: Mapping[str, float]) -> str:
    """A quantity as a user would type it, with the largest decimal unit that leaves no digit out.

    >>> _typed(2e6, _SCALES["size"]), _typed(5.0, _SCALES["latency"]), _typed(1234567.0, _SCALES["params"])
    ('2MB', '5ms', '1.234567M')
    """
    decimal = [(name, scale) for name, scale in scales.items() if not name.endswith("iB")]
    for name, scale in sorted(decimal, key=lambda pair: pair[1], reverse=True):
        text = f"{value / scale:.12g}"
        if value >= scale and "e" not in text and float(text) * scale == value:
            return text + name
    name, scale = min(decimal, key=lambda pair: pair[1])
    return f"{value / scale!r}{name}"


def amount(value: float, unit: str) -> str:
    """A cost for a message: times to four digits, anything that is counted exactly.

    >>> amount(5.12345, "ms"), amount(616205.0, "bytes")
    ('5.123 ms', '616,205 bytes')
    """
    return f"{value:.4g} {unit}" if unit == "ms" else f"{value:,.0f} {unit}"


def flag_of(kind: str) -> str:
    """The flag that gives a budget of this kind.

    >>> flag_of("macs"), flag_of("channels")  # --channels is the order of a picture's channels
    ('--macs', '--channel-count')
    """
    return _FLAGS.get(kind, f"--{kind}")


def _unknown_kind(kind: str) -> str:
    return f"Budget kind {kind!r} is unknown. Give one of {', '.join(get_args(BudgetKind))}."


def parse_budget(kind: BudgetKind, text: str, scope: Scope = "global", statistic: Statistic = "p50") -> Budget:
    """Read a limit as a user types it: a number with a unit of its kind, or a percentage.

    Raises:
        UsageError: the text is no such quantity, or there is no such kind.

    >>> parse_budget("latency", "60%").limit
    0.6
    >>> parse_budget("macs", "1.5G").limit
    1500000000.0
    """
    if kind not in _SCALES:
        raise UsageError(_unknown_kind(kind))
    scales = _SCALES[kind]
    match = _QUANTITY.fullmatch(text)
    unit = match.group(2) if match else None
    if match is None or unit is None or (unit != "%" and unit not in scales):
        raise UsageError(
            f"{flag_of(kind)} {text!r} is not a budget. Give a percentage of the dense model such as 50%, or "
            f"{_example(kind)} (units: {', '.join(name or 'none' for name in scales)})."
        )
    number = float(match.group(1))
    if unit == "%":
        if not 0 < number <= 100:
            raise UsageError(f"{flag_of(kind)} {text}: give a percentage above 0% and at most 100%.")
        return Budget(kind, number / 100, relative=True, scope=scope, statistic=statistic)
    if number <= 0:
        raise UsageError(f"{flag_of(kind)} {text}: a budget must be above zero. Give {_example(kind)}, say.")
    return Budget(kind, number * scales[unit], scope=scope, statistic=statistic)


def check_budgets(granularity: Granularity, budgets: Sequence[Budget]) -> None:
    """Raise unless a run of that granularity can keep these budgets.

    Raises:
        UsageError: no budget, two of a kind, or one that zeros cannot keep.

    >>> check_budgets("2:4", [])
    >>> check_budgets("weights", [parse_budget("params", "20%")])
    """
    if granularity == "2:4":
        if budgets:
            raise UsageError(
                f"{flag_of(budgets[0].kind)} {budgets[0]} does not go with --granularity 2:4, which keeps two of every "
                "four weights whatever the budget. Leave it out."
            )
        return
    if not budgets or len({one.kind for one in budgets}) < len(budgets):
        raise UsageError(f"compress() got the budgets {[str(one) for one in budgets]}. Give one, or one of each kind.")
    refused = [one for one in budgets if one.kind != "params"] if granularity == "weights" else []
    if refused:
        raise UsageError(
            f"{flag_of(refused[0].kind)} {refused[0]} cannot be kept by --granularity weights: "
            f"{_NOT_BY_ZEROS[refused[0].kind]}. Give --params, or --granularity channels."
        )


def check_depth(granularity: Granularity, budgets: Sequence[Budget]) -> None:
    """Raise unless a run of that granularity, with these budgets, can remove residual blocks as a whole.

    Raises:
        UsageError: single weights are pruned, or every layer keeps the same ratio.

    >>> check_depth("channels", [parse_budget("macs", "20%")])
    """
    if granularity != "channels":
        raise UsageError(
            f"--allow-depth removes layers, and --granularity {granularity} sets single weights to zero. Leave one of "
            "the two out."
        )
    if any(one.scope == "per-layer" for one in budgets):
        raise UsageError(
            "--allow-depth lets a residual block go for the sake of other layers, and --per-layer keeps the same ratio "
            "in every layer. Leave one of the two out."
        )


def _example(kind: BudgetKind) -> str:
    return {"macs": "30M", "params": "1.5M", "size": "2MB", "channels": "512", "latency": "5ms"}[kind]
