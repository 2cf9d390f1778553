"""How latency follows from MACs on this target, for this network: whole structures measured, lines between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtp_deploy.budget import Budget
from dtp_deploy.cost import WidthFunction
from dtp_deploy.errors import BudgetError
from dtp_deploy.graph import Groups
from dtp_deploy.latency.probe import DENSE, LatencyProbe
from dtp_deploy.profile.measure import LatencyReport
from dtp_deploy.prune import PruningPlan, make_plan
from dtp_deploy.prune.choice import kept_counts

_RATIOS = (0.75, 0.5, 0.25)
"""Uniform widths that are measured between the smallest network and the dense one."""


@dataclass(frozen=True)
class LatencyCurve:
    """Measured points of cost against latency, both rising.

    Attributes:
        costs: MACs, ascending.
        p50_ms: median latencies, never falling.
        limit_ms: the budget's limit, in the run in which the points were measured.
    """

    costs: tuple[float, ...]
    p50_ms: tuple[float, ...]
    limit_ms: float

    def cost_at(self, p50_ms: float) -> float:
        """The largest cost whose latency is `p50_ms`, between the ends of the curve.

        >>> LatencyCurve((1.0, 2.0, 3.0), (1.0, 1.5, 3.5), 2.5).cost_at(2.5)
        2.5
        """
        if p50_ms >= self.p50_ms[-1]:
            return self.costs[-1]
        upper = int(np.searchsorted(self.p50_ms, p50_ms, side="right"))
        if upper == 0:
            return self.costs[0]
        below, above = self.p50_ms[upper - 1], self.p50_ms[upper]
        share = (p50_ms - below) / (above - below)
        return self.costs[upper - 1] + share * (self.costs[upper] - self.costs[upper - 1])


def learn_curve(
    probe: LatencyProbe, groups: Groups, cost: WidthFunction, budget: Budget, fingerprint: str
) -> LatencyCurve:
    """Measure the dense network, the smallest one, and uniform ones between, in one run.

    Raises:
        BudgetError: even the smallest network is slower than the budget; nothing was trained yet.
    """
    plans = {"smallest": _uniform(groups, 0.0, fingerprint)}
    plans |= {f"{ratio:.0%}": _uniform(groups, ratio, fingerprint) for ratio in _RATIOS}
    reports = probe.measure(plans)
    dense_ms = reports[DENSE].p50_ms
    limit_ms = budget.limit_for(dense_ms)
    smallest_ms = reports["smallest"].p50_ms
    if smallest_ms > limit_ms:
        share = f" ({smallest_ms / dense_ms:.0%} of the dense {dense_ms:.4g} ms)"
        raise BudgetError(
            f"--latency {budget} is below what can be reached on {probe.target.name}: one channel in every layer that "
            f"may be pruned takes {smallest_ms:.4g} ms{share}, the limit is {limit_ms:.4g} ms. "
            f"Give {np.ceil(100 * smallest_ms / dense_ms * 1.05):.0f}% or more."
        )
    points = sorted((_cost(cost, groups, plan), reports[name].p50_ms) for name, plan in plans.items())
    points.append((_dense_cost(cost, groups), dense_ms))
    times = np.maximum.accumulate([time for _, time in points])
    return LatencyCurve(tuple(value for value, _ in points), tuple(float(time) for time in times), limit_ms)


def latency_against(budget: Budget, reports: dict[str, LatencyReport], name: str) -> float:
    """Latency of one measured model over the budget's limit in the same run; at most 1 meets it."""
    return reports[name].p50_ms / budget.limit_for(reports[DENSE].p50_ms)


def _uniform(groups: Groups, ratio: float, fingerprint: str) -> PruningPlan:
    kept = {group.name: range(max(1, round(ratio * group.units))) for group in groups.prunable}
    return make_plan(groups, kept, fingerprint)


def _cost(cost: WidthFunction, groups: Groups, plan: PruningPlan) -> float:
    kept: dict[str, Sequence[int]] = {choice.name: choice.kept_units for choice in plan.groups}
    return float(cost(kept_counts(kept, groups.prunable))[0])


def _dense_cost(cost: WidthFunction, groups: Groups) -> float:
    return float(cost(kept_counts({group.name: range(group.units) for group in groups}, groups.prunable))[0])
