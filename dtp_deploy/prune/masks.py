"""`ChannelMasks`: differentiable transportation pruning inside any training loop.

    masks = ChannelMasks(model, groups, budget, steps=1000)
    for x, y in batches:                       # 1000 of them
        optimizer.zero_grad()
        loss_function(model(x), y).backward()
        optimizer.step()
        masks.step()
    plan = masks.harden()
    small = remove_channels(model, plan)

The masks multiply the input slices of every layer that reads a group. There, and not at the filters, masked and removed
agree whatever lies between, and no BatchNorm can cancel a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dtp_deploy.budget import Budget, check_depth, flag_of
from dtp_deploy.cost import ChannelCount, WidthFunction, macs_cost, parameter_cost
from dtp_deploy.errors import BudgetError, UsageError
from dtp_deploy.graph import ChannelGroup, Groups, tensor_by_name
from dtp_deploy.graph.groups import index_tensor
from dtp_deploy.modules import device_of, require_finite
from dtp_deploy.prune.choice import choose_channels, kept_counts
from dtp_deploy.prune.depth import Depth
from dtp_deploy.prune.importance import Losses, initial_scores
from dtp_deploy.prune.learning import ScoreLearner
from dtp_deploy.prune.parametrised import MaskedWeight, Parametrised
from dtp_deploy.prune.plan import PruningPlan, fingerprint_of, make_plan
from dtp_deploy.prune.schedule import MaskSettings
from dtp_deploy.prune.stepwise import StepsFor, StepwiseMasks, above_least, steps_of
from dtp_deploy.prune.widths import (
    WidthLevels,
    allowed_widths,
    even_widths,
    floor_units,
    raised_to_floors,
    uniform_ratio,
)
from dtp_deploy.ranks import by_first, mean_over_ranks
from dtp_deploy.transport import (
    Floors,
    TransportProblem,
    TransportResult,
    budget_price,
    epsilon_for_softness,
    sinkhorn_step,
    solve_exact,
)


def cost_of(budget: Budget, model: nn.Module, groups: Groups) -> WidthFunction:
    """The cost that a budget speaks of, as a function of the widths; bytes are counted at four a parameter.

    Raises:
        UsageError: the budget is a latency, which no formula gives: it must be learned from a target.
    """
    if budget.kind == "macs":
        return macs_cost(model, groups)
    if budget.kind == "params":
        return parameter_cost(model, groups)
    if budget.kind == "size":
        return parameter_cost(model, groups, per_value=4.0)
    if budget.kind == "channels":
        widths = [float(group.channels_per_unit) for group in groups.prunable]
        return ChannelCount(torch.tensor(widths, dtype=torch.float64))
    raise UsageError(
        "A latency budget needs a cost learned from the target: give ChannelMasks(..., cost=..., limit=...), or use "
        "dtp_deploy.compress."
    )


_LARGEST_LAG = 0.1
"""How far, as a share of the budget, the masks of "sinkhorn-1" may be from it before it is solved exactly."""


class _UnitCost:
    """A cost of widths, seen as a cost of single masks."""

    def __init__(self, cost: WidthFunction, group_of_unit: Tensor, groups: int) -> None:
        self.cost, self.group_of_unit, self.groups = cost, group_of_unit, groups

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        widths = torch.zeros(self.groups, dtype=masks.dtype, device=masks.device)
        value, gradient = self.cost(widths.index_add(0, self.group_of_unit, masks))
        return value, gradient[self.group_of_unit]


class _ReaderMask(MaskedWeight):
    """Multiplies one dimension of a reader's weight by the masks of the units it belongs to."""

    def __init__(self, padded: Tensor, positions: Tensor, dim: int, ndim: int) -> None:
        super().__init__()
        self.padded = padded  # shared by all readers: the masks, and a one for indices of no group
        self.register_buffer("positions", positions, persistent=False)
        self.shape = [-1 if d == dim else 1 for d in range(ndim)]

    def forward(self, weight: Tensor) -> Tensor:
        assert isinstance(self.positions, Tensor)
        mask = self.padded.to(weight.dtype).index_select(0, self.positions)
        return weight * mask.view(self.shape)


class ChannelMasks(StepwiseMasks):
    """Soft masks on the readers of all prunable groups, learned by differentiable transportation.

    Args:
        model: on the device where it trains, since masks do not move with it. Changed in place while the masks are on:
            the weights of reading layers become parametrised. `harden` takes the masks off again.
        groups: proven groups of this model.
        budget: the budget; a relative one is a share of the cost of the model as it is.
        steps: how many times `step` will be called, >= 1, or a function that says so of `ratio`. The masks are hard
            after the last.
        settings: hyper-parameters, none of which needs tuning.
        cost: the cost of the widths that `limit` bounds, where it is not the budget's own (latency).
        limit: the largest cost allowed; by default the budget's.
        preferred: for every prunable group the numbers of units that `choose` may keep, besides the full width; by
            default all that `settings.round_to` allows.
        losses: yields the loss of the model on one batch after the other; the scores "taylor" start from it.
        depth: the residual blocks that `choose` may remove as a whole; by default none.

    Attributes:
        limit: the largest cost allowed, in the unit of `cost`.
        dense_cost: cost of the full widths.
        smallest_cost: cost of one unit in every group.
        ratio: the share of its units that every group keeps where all keep the same and meet the limit.
        scores: one score a unit, all groups one after the other, shape [n,], float64.
        result: the transport result of the present step.
        price: what the last step's loss would have fallen by, to first order, for as much more budget as the full
            widths cost; None before the first gradient, and where every layer has a budget of its own.

    Raises:
        UsageError: no steps, a latency budget without a cost, or the scores "taylor" without losses.
        BudgetError: not even one unit a group meets the limit.
        InputError: weights hold NaN or infinity.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        budget: Budget,
        *,
        steps: int | StepsFor,
        settings: MaskSettings | None = None,
        cost: WidthFunction | None = None,
        limit: float | None = None,
        preferred: Sequence[Sequence[int]] | None = None,
        losses: Losses | None = None,
        depth: Depth | None = None,
    ) -> None:
        if depth is not None:
            check_depth("channels", [budget])
        if budget.scope == "per-layer" and settings is not None and settings.solver == "sinkhorn-1":
            raise UsageError(
                "--solver sinkhorn-1 shares one budget among the layers; with --per-layer every layer has its own, and "
                "is solved exactly. Leave one of the two out."
            )
        _check_unmasked(model)
        require_finite(model)
        self.model, self.groups, self.budget = model, groups, budget
        self.depth = depth
        settings = (settings if settings is not None else MaskSettings()).for_granularity("channels")
        self.settings = settings.with_split_decided(budget, preferred=preferred is not None, depth=depth is not None)
        self.cost = cost if cost is not None else cost_of(budget, model, groups)
        prunable = groups.prunable
        self.preferred = [None] * len(prunable) if preferred is None else [frozenset(units) for units in preferred]
        self._units = torch.tensor([float(group.units) for group in prunable], dtype=torch.float64)
        self.dense_cost = float(self.cost(self._units)[0])
        self.limit = budget.limit_for(self.dense_cost) if limit is None else limit
        self._fingerprint = fingerprint_of(model)  # before the masks rename tensors
        smallest = [level.units[0] for level in self._allowed([1] * len(prunable))]
        self.smallest_cost = float(self.cost(torch.tensor(smallest, dtype=torch.float64))[0])
        if self.smallest_cost > self.limit:
            rounded = self.settings.round_to > 1
            narrowest = "one channel in every layer that may be pruned"
            if rounded:
                narrowest = "the narrowest widths that --round-to allows"
            raise BudgetError(
                f"{flag_of(budget.kind)} {budget} is a limit of {self.limit:.6g}, but {narrowest} still "
                f"cost{'' if rounded else 's'} {self.smallest_cost:.6g} of the dense {self.dense_cost:.6g}. "
                f"Give {math.ceil(1000 * self.smallest_cost / self.dense_cost) / 10:g}% or more"
                f"{', or a smaller --round-to' if rounded else ''}."
            )
        self.ratio = uniform_ratio(self.cost, self._units, self.limit)
        self.steps = by_first(lambda: steps_of(steps, self.ratio))
        self.floors = self._floors(self.limit, self.cost)
        device = device_of(model)
        self._group_of_unit = torch.cat(
            [torch.full((group.units,), number, dtype=torch.int64) for number, group in enumerate(prunable)]
        )
        frozen = [
            any(not tensor_by_name(model, piece.tensor).requires_grad for piece in group.readers) for group in prunable
        ]
        self._frozen = torch.tensor(frozen)[self._group_of_unit]
        self._unit_cost = _UnitCost(self.cost, self._group_of_unit, len(prunable))
        start = initial_scores(model, prunable, self.settings.scores, losses)
        # The same in all processes: GPUs may add up in another order each time.
        self.scores = by_first(lambda: torch.cat(start).cpu()).requires_grad_()
        group = None if self.settings.learn_split else self._group_of_unit
        self._learner = ScoreLearner(self.scores, self.settings, group)
        self.price: float | None = None
        self._step = 0
        self._epsilon = 1.0
        self._padded = torch.ones(len(self.scores) + 1, device=device, requires_grad=True)
        self._threshold = self._start = 0.0
        self.result = self._solve()
        self._parametrised = _put_on(model, prunable, self._padded)
        self._write()

    def _present(self) -> Tensor:
        return self.result.masks

    def _in_model(self) -> list[Tensor]:
        return [self._padded]

    @property
    def cost_share(self) -> float:
        """The cost of the masks, as a share of that of the full widths."""
        return self.result.cost / self.dense_cost

    def step(self) -> None:
        """Learn from the gradients that have gathered since the last call, and move on by one step of the schedule.

        Call it after the optimiser's step; where that is skipped, as by a `GradScaler` after an overflow, call
        `zero_grad` instead. Where several processes train together, the mean of their gradients counts,
        so that all of them keep the same masks. Gradients of several backward passes add up, as in an optimiser.
        After `steps` calls the masks are hard and stay as they are.

        Raises:
            TrainingError: the gradients hold NaN or infinity.
        """
        if self._step >= self.steps:
            return
        gradient = self._padded.grad
        if gradient is not None:
            gradient = mean_over_ranks(gradient[:-1]).to(self.scores)
            rate = self.settings.rate_at(self.progress, self.ratio)
            self._learner.step(self.result.masks, gradient, self._epsilon, self._step, rate)
            if self.budget.scope == "global":
                self.price = budget_price(self._problem(self._epsilon), self.result, gradient) * self.dense_cost
            self._padded.grad = None
        self._step += 1
        self.result = self._solve()
        self._write()

    def zero_grad(self) -> None:
        """Forget the gradients that have gathered since the last step."""
        self._padded.grad = None

    def _solve(self) -> TransportResult:
        """The next step's epsilon, and its transport."""
        problem, ratio = self._problem(self._epsilon), self._ratio_now()
        wanted, least = self.settings.softness_at(self.progress, self.ratio, ratio), 0.0
        if self.budget.scope == "per-layer":
            least = self._softness_of_parts(self._units * ratio)
            wanted = above_least(wanted, least, ratio)
        epsilon = self._epsilon_that_follows(wanted)
        if epsilon is None:
            epsilon = epsilon_for_softness(problem, wanted, least=least)
        self._start = self._threshold * self._epsilon / epsilon  # thresholds are logits: they scale with 1 / epsilon
        result = self._transport(epsilon, self._start)
        self._epsilon = epsilon
        self._threshold = result.threshold if math.isfinite(result.threshold) else 0.0
        return result

    def _least_softness(self) -> float:
        if self.budget.scope == "global":
            return 0.0
        return self._softness_of_parts(
            torch.zeros_like(self._units).index_add(0, self._group_of_unit, self.result.masks.detach())
        )

    def _softness_of_parts(self, mass: Tensor) -> float:
        """Of masks of such a mass a group, shape [groups,], as hard as they can be: one unit each is kept in part."""
        part = mass.fmod(1.0)
        return float((4 * part * (1 - part)).sum() / self._units.sum())

    def _ratio_now(self) -> float:
        """The uniform mask that meets the budget of this step."""
        budget = self._budget_now()
        return self.ratio if budget == self.limit else uniform_ratio(self.cost, self._units, budget)

    def _budget_now(self) -> float:
        return self.settings.budget_at(self.progress, self.limit, self.dense_cost)

    def _problem(self, epsilon: float) -> TransportProblem:
        if self.budget.scope == "per-layer":
            # Every group at its floor is the same ratio in every layer; no budget is left to share.
            floors, budget = self._units * self._ratio_now(), 0.0
        else:
            floors, budget = torch.tensor(self.floors, dtype=torch.float64), self._budget_now()
        return TransportProblem(self.scores, epsilon, self._unit_cost, budget, Floors(self._group_of_unit, floors))

    def _transport(self, epsilon: float, start: float) -> TransportResult:
        problem = self._problem(epsilon)
        if self.settings.solver == "sinkhorn-1" and self.budget.scope == "global":
            # One iteration moves little: a potential from far outside of the scores would never come back.
            logits = problem.logits()
            result = sinkhorn_step(problem, min(max(start, float(logits.min()) - 9), float(logits.max()) + 9))
            # Where it lags too far behind, and at the last step, the budget is caught up with at once.
            if self._step < self.steps and abs(result.marginal_error) <= _LARGEST_LAG:
                return result
        result = solve_exact(problem, start)
        # At the same ratio in every layer the floors are the budget, and they hold exactly.
        return replace(result, marginal_error=0.0) if self.budget.scope == "per-layer" else result

    def _write(self) -> None:
        with torch.no_grad():
            self._padded[:-1] = self.result.masks.to(self._padded)

    def state(self) -> dict[str, Any]:
        """Everything that `step` changes, in plain values and tensors; weights are the model's own."""
        return {
            "step": self._step,
            "epsilon": self._epsilon,
            "threshold": self._threshold,
            "start": self._start,
            "masks": self._padded.detach().cpu().clone(),
            **self._learner.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where masks of the same model, groups, budget and steps were; what follows is the same bit for bit."""
        self._step, self._epsilon = state["step"], state["epsilon"]
        self._threshold, self._start = state["threshold"], state["start"]
        self._learner.load_state(state)
        with torch.no_grad():
            self._padded.copy_(state["masks"])
        self.result = self._transport(self._epsilon, self._start)

    def group_scores(self) -> tuple[Tensor, ...]:
        """The scores by group, each [units,]."""
        sizes = [group.units for group in self.groups.prunable]
        return torch.split(self.scores.detach().clone(), sizes)

    def levels(self, limit: float | None = None, cost: WidthFunction | None = None) -> list[WidthLevels]:
        """The widths that `choose` may give each group; of a network with another cost than `self.cost`, if given."""
        limit = self.limit if limit is None else limit
        cost = self.cost if cost is None else cost
        groups = self.groups.prunable
        if self.budget.scope == "per-layer":
            ratio = uniform_ratio(cost, self._units, limit)
            whole = self._allowed([1] * len(groups))
            return [even_widths(level, ratio * group.units) for level, group in zip(whole, groups, strict=True)]
        floors = self._floors(limit, cost)
        return raised_to_floors(self._allowed(floors), floors, cost, limit)

    def _floors(self, limit: float, cost: WidthFunction) -> list[int]:
        """The least units of every group."""
        settings = self.settings
        return floor_units(self.groups.prunable, cost, limit, settings.floor_share, settings.floor_units)

    def _allowed(self, floors: Sequence[int]) -> list[WidthLevels]:
        """Widths from the floors up: by rounding, and of those the preferred ones."""
        levels = []
        for group, floor, preferred in zip(self.groups.prunable, floors, self.preferred, strict=True):
            if preferred is None:
                levels.append(allowed_widths(group, floor, self.settings.round_to))
            else:
                levels.append(allowed_widths(group, 1, self.settings.round_to).only(preferred).from_floor(floor))
        return levels

    def learned_widths(self) -> dict[str, int]:
        """Channels of every prunable group whose masks are 0.5 or more: what is learned, before any rounding."""
        sizes = [group.units for group in self.groups.prunable]
        parts = torch.split(self.result.masks.detach(), sizes)
        return {
            group.name: int((part >= 0.5).sum()) * group.channels_per_unit
            for group, part in zip(self.groups.prunable, parts, strict=True)
        }

    def choose(self, limit: float | None = None) -> PruningPlan:
        """The plan that the present scores give within `limit` (default: the budget), without touching the model.

        Raises:
            BudgetError: the smallest allowed widths cost more.
        """
        limit = self.limit if limit is None else limit
        scores = self.group_scores()
        if self.depth is None:
            kept = choose_channels(self.groups.prunable, scores, self.cost, limit, self.levels(limit))
            return make_plan(self.groups, kept, self._fingerprint)
        kept, blocks = self.depth.choose(scores, limit, lambda cost: self.levels(limit, cost))
        return make_plan(self.groups, kept, self._fingerprint, blocks)

    def cost_of_plan(self, plan: PruningPlan) -> float:
        """The cost of a plan, by the formula."""
        kept = {choice.name: choice.kept_units for choice in plan.groups}
        cost = self.cost
        if self.depth is not None:
            cost = self.depth.cost(self.depth.named([block.name for block in plan.removed_blocks]))
        return float(cost(kept_counts(kept, self.groups.prunable))[0])

    def harden(self, plan: PruningPlan | None = None) -> PruningPlan:
        """Take the masks off: kept units keep their last mask as a factor in the weights, the others become zero.

        Args:
            plan: what to keep; by default what `choose` gives.

        Returns:
            The plan. `remove_channels(model, plan)` then gives a model with the same outputs; where it removes residual
            blocks, as those have under `blocks_silenced`.
        """
        plan = self.choose() if plan is None else plan
        kept: Mapping[str, Sequence[int]] = {choice.name: choice.kept_units for choice in plan.groups}
        hard = torch.cat(
            [
                torch.zeros(group.units).index_fill_(0, torch.tensor(kept[group.name], dtype=torch.int64), 1.0)
                for group in self.groups.prunable
            ]
        )
        with torch.no_grad():
            # A kept unit that was undecided counts as kept: a tiny factor would only slow its fine-tuning. A frozen
            # reader could not make up for any.
            factors = self._padded[:-1].clamp_min(0.5).masked_fill(self._frozen.to(self._padded.device), 1.0)
            self._padded[:-1] = hard.to(self._padded) * factors
        self.detach()
        return plan


def _check_unmasked(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, MaskedWeight):
            layer = name.partition(".parametrizations.")[0]
            raise UsageError(
                f"{type(model).__name__} has masks already, on '{layer}'. Call harden() or detach() of them before you "
                "make others."
            )


def _put_on(model: nn.Module, groups: Sequence[ChannelGroup], padded: Tensor) -> list[Parametrised]:
    """Parametrise every reader's weight; one that reads several groups gets one mask for all of them."""
    last = len(padded) - 1
    positions: dict[tuple[str, int], Tensor] = {}
    offset = 0
    for group in groups:
        for piece in group.readers:
            units = index_tensor(piece)
            key = (piece.tensor, piece.dim)
            known = positions.setdefault(key, torch.full_like(units, last))
            inside = units >= 0
            assert bool((known[inside] == last).all()), f"two groups share indices of {key}"
            known[inside] = units[inside] + offset
        offset += group.units
    done = []
    for (name, dim), where in positions.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        mask = _ReaderMask(padded, where.to(padded.device), dim, getattr(module, leaf).ndim)
        done.append(Parametrised.put_on(module, leaf, mask))
    return done
