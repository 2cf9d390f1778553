"""The limits of a run: for every budget the cost that masks are trained on, and the real cost that decides.

A `Limit` knows one budget. Several budgets are kept at once through `StrictestCost`: the largest share of any limit.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtp_deploy.budget import Budget, flag_of
from dtp_deploy.cost import (
    LatencyCost,
    NetworkCost,
    WidthFunction,
    count_parameters,
    macs_per_sample,
    parameter_cost,
)
from dtp_deploy.errors import BudgetError
from dtp_deploy.export.delivery import deliver
from dtp_deploy.forms import Form
from dtp_deploy.graph import Groups, ResidualBlock
from dtp_deploy.graph.groups import is_inside, modules_of
from dtp_deploy.latency import LatencyProbe, learn_table
from dtp_deploy.latency.layers import trace_layers
from dtp_deploy.latency.probe import DENSE, PROBING
from dtp_deploy.latency.timing import is_predicted
from dtp_deploy.latency.verdict import Pair, largest_share, limit_ms
from dtp_deploy.profile.measure import LatencyReport
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import PruningPlan, cost_of, make_plan, remove_blocks, remove_channels
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.target import Arrays, TargetSpec


@dataclass(frozen=True)
class Workbench:
    """What a limit works with.

    Attributes:
        model: the dense model.
        groups: its proven groups.
        dense: its delivered form.
        batches: for the parity of exports.
        scratch: folder for files that are not delivered.
        target: where latency is measured.
        finish: what is done to a network before it is delivered.
        metadata: what is written into the delivered file.
        progress: told of what takes long.
    """

    model: nn.Module
    groups: Groups
    dense: Form
    batches: Sequence[Arrays]
    scratch: Path
    target: TargetSpec
    finish: Callable[[nn.Module], nn.Module] = lambda model: model
    metadata: Mapping[str, str] | None = None
    progress: Progress = SILENT

    def finished(self, plan: PruningPlan | None = None) -> nn.Module:
        """The network of a plan, or the dense one, as it would be delivered."""
        small = copy.deepcopy(self.model) if plan is None else remove_channels(self.model, plan)
        return self.finish(small).eval()


class Limit(abc.ABC):
    """One budget of a run.

    Attributes:
        budget: as given.
        cost: what masks are trained on.
        limit: largest `cost` allowed, to begin with.
        fill: share of the budget that shall be used before the search for a plan stops.
        aim: share that the search aims at.
        preferred: for every prunable group the numbers of units that are worth having, ascending; None for all.
        notes: what a reader of the report should know.
    """

    budget: Budget
    cost: WidthFunction
    limit: float
    fill: float = 0.99
    aim: float = 1.0
    preferred: Sequence[Sequence[int]] | None = None
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def cost_without(self, blocks: Sequence[ResidualBlock]) -> WidthFunction:
        """`cost` of the network without some residual blocks, of the same widths."""

    @abc.abstractmethod
    def used(self, plan: PruningPlan) -> float:
        """The real cost of a plan as a share of the budget; at most 1 meets it."""

    @abc.abstractmethod
    def entry(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> dict[str, Any]:
        """The budget's part of the report."""

    def decision(self) -> dict[str, Any]:
        """What was found out by measuring, in plain values, so that nobody need measure it again."""
        return {}

    def _entry(self, limit: float, achieved: float, basis: str) -> dict[str, Any]:
        return {
            "kind": self.budget.kind,
            "requested": str(self.budget),
            "relative": self.budget.relative,
            "limit": limit,
            "unit": self.budget.unit,
            "achieved": achieved,
            "met": achieved <= limit,
            "basis": basis,
        }


class CountedLimit(Limit):
    """MACs, parameters or channels: counted on the network that a plan gives."""

    def __init__(self, budget: Budget, bench: Workbench) -> None:
        self.budget, self.bench = budget, bench
        dense = {
            "macs": bench.dense.macs,
            "params": bench.dense.params,
            "channels": sum(group.width for group in bench.groups.prunable),
        }[budget.kind]
        cost = cost_of(budget, bench.model, bench.groups)
        self._finishing = 0.0
        if isinstance(cost, NetworkCost):
            # The formula is of the network as it is pruned; what finishing it adds or takes is a constant.
            units = torch.tensor([float(group.units) for group in bench.groups.prunable], dtype=torch.float64)
            self._finishing = dense - float(cost(units)[0])
        self.cost = self._finished(cost)
        self.limit = budget.limit_for(float(dense))
        self.notes = _met_already(budget, self.limit, float(dense))

    def _finished(self, cost: WidthFunction) -> WidthFunction:
        return replace(cost, constant=cost.constant + self._finishing) if isinstance(cost, NetworkCost) else cost

    def cost_without(self, blocks: Sequence[ResidualBlock]) -> WidthFunction:
        """Counted on the network without them."""
        small = remove_blocks(self.bench.model, modules_of(blocks))
        return self._finished(cost_of(self.budget, small, self.bench.groups))

    def used(self, plan: PruningPlan) -> float:
        """Counted on the network that the plan gives."""
        if self.budget.kind == "channels":
            return _channels(plan) / self.limit
        small = self.bench.finished(plan)
        if self.budget.kind == "macs":
            return macs_per_sample(small, self.bench.groups.inputs) / self.limit
        return count_parameters(small) / self.limit

    def entry(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> dict[str, Any]:
        """Computed exactly."""
        achieved = {"macs": pruned.macs, "params": pruned.params, "channels": _channels(plan)}[self.budget.kind]
        return self._entry(self.limit, float(achieved), "computed")


def with_biases(model: nn.Module) -> nn.Module:
    """The model with random biases in place of those that are all zero, until training has moved them: a file leaves
    zeros out, and holds what is equal once."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not bool(parameter.any()):
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return model


class SizeLimit(Limit):
    """Bytes of the delivered file, seen by exporting it."""

    def __init__(self, budget: Budget, bench: Workbench) -> None:
        self.budget, self.bench = budget, bench
        dense = bench.dense.delivery.size_bytes
        self.limit = budget.limit_for(float(dense))
        # Four bytes a parameter; the rest of the file, names and graph, hardly depends on the widths.
        self._around = dense - 4.0 * count_parameters(bench.model)
        self.cost = self.cost_without(())
        self.notes = _met_already(budget, self.limit, float(dense))

    def cost_without(self, blocks: Sequence[ResidualBlock]) -> WidthFunction:
        """The parameters of the network without them."""
        small = remove_blocks(self.bench.model, modules_of(blocks))
        return parameter_cost(small, self.bench.groups, per_value=4.0, constant=self._around)

    def used(self, plan: PruningPlan) -> float:
        """Of the file that the plan gives."""
        bench = self.bench
        path = bench.scratch / "candidate.onnx"
        small = with_biases(bench.finished(plan))
        delivery = deliver(small, bench.groups.inputs, path, bench.batches, "candidate", metadata=bench.metadata)
        return delivery.size_bytes / self.limit

    def entry(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> dict[str, Any]:
        """Computed exactly."""
        return self._entry(self.limit, float(pruned.delivery.size_bytes), "computed")


class LatencyLimit(Limit):
    """The measured latency, by structures that are exported and run on the target.

    A budget that the smallest network does not meet is refused before anything else is measured. Then the latency of
    the layers is learned, which the masks are trained on.

    Args:
        budget: of kind "latency".
        bench: what to work with.
        decided: what `decision` gave in an earlier part of the run, or in another process.

    Raises:
        BudgetError: even the smallest network is slower than the budget; nothing was trained yet.
        TargetError: the target failed.
    """

    fill = 0.95
    aim = 0.975

    def __init__(self, budget: Budget, bench: Workbench, decided: Mapping[str, Any] | None = None) -> None:
        self.budget, self.bench = budget, bench
        self.probe = LatencyProbe(
            bench.model,
            bench.groups,
            bench.target,
            bench.scratch,
            bench.dense.delivery.path,
            bench.batches,
            PROBING,
            bench.finish,
            bench.progress,
        )
        self._decided = dict(decided) if decided is not None else self._learn()
        cost = LatencyCost.from_json(self._decided["table"])
        self._table = cost
        self.cost, self.limit = cost, self._decided["limit"]
        self.preferred = cost.preferred_widths()
        self.notes = tuple(self._decided["notes"])

    def _learn(self) -> dict[str, Any]:
        share = self._share_of_dense()
        table = learn_table(self.probe, progress=self.bench.progress)
        notes = [table.summary()] + ([table.problem] if table.problem else [])
        cost = table.cost
        units = torch.tensor([float(group.units) for group in self.bench.groups.prunable], dtype=torch.float64)
        smallest, dense = (float(cost(widths)[0]) for widths in (torch.ones_like(units), units))
        # The table may be wrong about the smallest network, which was measured: it must not refuse what is possible.
        limit = min(max(share * table.dense_ms, smallest + 0.01 * (dense - smallest)), dense)
        return {"limit": limit, "table": cost.to_json(), "notes": notes}

    def _share_of_dense(self) -> float:
        """The limit as a share of the dense latency.

        Raises:
            BudgetError: the smallest network is above it.
        """
        budget, groups = self.budget, self.bench.groups
        one_each = {group.name: [0] for group in groups.prunable}
        plan = make_plan(groups, one_each, fingerprint_of(self.bench.model))
        reports = self.probe.measure({"smallest": plan})
        dense_ms, smallest_ms = (budget.latency_of(reports[name]) for name in (DENSE, "smallest"))
        limit_ms = budget.limit_for(dense_ms)
        if smallest_ms > limit_ms:
            takes = "is predicted to take" if is_predicted(reports["smallest"]) else "takes"
            raise BudgetError(
                f"--latency {budget} is below what can be reached on {self.probe.target.name}: one channel in every "
                f"layer that may be pruned {takes} {smallest_ms:.4g} ms ({smallest_ms / dense_ms:.0%} of the dense "
                f"{dense_ms:.4g} ms), the limit is {limit_ms:.4g} ms. "
                f"{_advise(smallest_ms / dense_ms)}"
            )
        return limit_ms / dense_ms

    def cost_without(self, blocks: Sequence[ResidualBlock]) -> WidthFunction:
        """Without the times of their layers."""
        layers = trace_layers(self.bench.model, self.bench.groups)
        return self._table.without(
            [place for place, layer in enumerate(layers) if is_inside(layer.name, modules_of(blocks))]
        )

    def used(self, plan: PruningPlan) -> float:
        """The most that any of several fresh processes saw, each in turns with the dense model."""

        def once() -> Pair:
            reports = self.probe.measure({"plan": plan})
            return reports["plan"], reports[DENSE]

        return largest_share(self.budget, once)

    def entry(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> dict[str, Any]:
        """Measured in turns with the dense model, at the end of the run; or predicted where the target is not here."""
        limit = limit_ms(self.budget, latencies["pruned"], latencies["dense"])
        basis = "predicted" if is_predicted(latencies["pruned"]) else "measured"
        return self._entry(limit, self.budget.latency_of(latencies["pruned"]), basis)

    def decision(self) -> dict[str, Any]:
        """The limit and the table."""
        return self._decided


def _advise(smallest: float) -> str:
    """What to give where the smallest network takes this share of the dense latency.

    >>> _advise(0.4)
    'Give 42% or more.'
    >>> _advise(0.96)
    'Nearly all of the time is what removing channels does not shorten: give another budget, as --macs 50%.'
    """
    least = math.ceil(100 * smallest * 1.05)
    if least < 100:
        return f"Give {least}% or more."
    return "Nearly all of the time is what removing channels does not shorten: give another budget, as --macs 50%."


@dataclass(frozen=True)
class StrictestCost:
    """Several costs as one: the p-norm of their shares of their limits, a smooth maximum that is never below it.

    Attributes:
        costs: functions of the same widths.
        limits: largest allowed, one a cost.
        power: the larger, the closer to the maximum.
    """

    costs: tuple[WidthFunction, ...]
    limits: tuple[float, ...]
    power: float = 16.0

    def __call__(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [cost(widths) for cost in self.costs]
        shares = torch.stack([value / limit for (value, _), limit in zip(pairs, self.limits, strict=True)])
        total = shares.pow(self.power).sum().pow(1 / self.power)
        weights = (shares / total).pow(self.power - 1)
        gradients = [gradient / limit for (_, gradient), limit in zip(pairs, self.limits, strict=True)]
        return total, torch.stack([weight * part for weight, part in zip(weights, gradients, strict=True)]).sum(0)


class Limits:
    """All budgets of a run together, as one cost and one limit.

    Args:
        limits: at least one.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.all = tuple(limits)
        self.cost = self._together([one.cost for one in self.all])
        self.limit = self.all[0].limit if len(self.all) == 1 else 1.0
        self.fill = min(one.fill for one in self.all)
        self.aim = min(one.aim for one in self.all)
        self.preferred = next((one.preferred for one in self.all if one.preferred is not None), None)
        self.notes = tuple(note for one in self.all for note in one.notes)

    def cost_without(self, blocks: Sequence[ResidualBlock]) -> WidthFunction:
        """`cost` of the network without some residual blocks, of the same widths."""
        return self._together([one.cost_without(blocks) for one in self.all])

    def _together(self, costs: Sequence[WidthFunction]) -> WidthFunction:
        (first, *others) = costs
        return StrictestCost(tuple(costs), tuple(one.limit for one in self.all)) if others else first

    def used(self, plan: PruningPlan) -> float:
        """The largest share of any budget that a plan uses; budgets after one that is not met are not looked at."""
        worst = 0.0
        for one in self.all:
            worst = max(worst, one.used(plan))
            if worst > 1:
                break
        return worst

    def decisions(self) -> list[dict[str, Any]]:
        """What was found out by measuring, so that a run that goes on later need not measure again."""
        return [one.decision() for one in self.all]


def make_limits(
    budgets: Sequence[Budget], bench: Workbench, decided: Sequence[Mapping[str, Any]] | None = None
) -> Limits:
    """The limits of some budgets, the cheapest to check first.

    Raises:
        BudgetError: a latency that even the smallest network does not reach.
    """
    makers: dict[str, Callable[[Budget, Workbench], Limit]] = {"size": SizeLimit}
    order = ("channels", "params", "macs", "size", "latency")
    limits: list[Limit] = []
    for number, budget in enumerate(sorted(budgets, key=lambda one: order.index(one.kind))):
        if budget.kind == "latency":
            limits.append(LatencyLimit(budget, bench, None if decided is None else decided[number]))
        else:
            limits.append(makers.get(budget.kind, CountedLimit)(budget, bench))
    return Limits(limits)


def _met_already(budget: Budget, limit: float, dense: float) -> tuple[str, ...]:
    """A note where there is nothing to do."""
    if budget.relative or limit < dense:
        return ()
    return (
        f"The dense model meets {flag_of(budget.kind)} {budget} already, with {dense:,.0f} {budget.unit}: nothing had "
        "to be removed for it.",
    )


def _channels(plan: PruningPlan) -> int:
    return sum(choice.width_after for choice in plan.groups if choice.frozen_because is None)
