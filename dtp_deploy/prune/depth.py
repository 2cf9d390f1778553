"""Removing residual blocks as a whole: when all of a block's channels together are worth less than the block costs.

The scores say what a channel is worth for what it costs, and the threshold is where both are equal. A block also has
costs that only removing it frees: a fixed time, biases, the channels that its floor keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_deploy.cost import WidthFunction
from dtp_deploy.graph import Groups, ResidualBlock
from dtp_deploy.prune.choice import choose_with_threshold, kept_counts
from dtp_deploy.prune.plan import BlockChoice
from dtp_deploy.prune.widths import WidthLevels

_GONE = WidthLevels((0,))


class Depth:
    """The residual blocks that may go, and what the network costs without them.

    Args:
        groups: proven, with their blocks.
        cost_without: gives the cost of the network without some blocks, as a function of the units kept of all
            prunable groups, [G,]: those of groups that are gone count nothing.
    """

    def __init__(self, groups: Groups, cost_without: Callable[[Sequence[ResidualBlock]], WidthFunction]) -> None:
        self.groups, self._cost_without = groups, cost_without
        self._known: dict[frozenset[str], WidthFunction] = {}

    def cost(self, removed: Sequence[ResidualBlock]) -> WidthFunction:
        """The cost without these blocks; each set of them is worked out once."""
        key = frozenset(block.name for block in removed)
        if key not in self._known:
            self._known[key] = self._cost_without(removed)
        return self._known[key]

    def named(self, names: Sequence[str]) -> list[ResidualBlock]:
        """The blocks of these names, in the order of the model."""
        return [block for block in self.groups.removable if block.name in names]

    def choose(
        self,
        scores: Sequence[Tensor],
        limit: float,
        levels: Callable[[WidthFunction], Sequence[WidthLevels]],
    ) -> tuple[dict[str, list[int]], tuple[BlockChoice, ...]]:
        """The units to keep, as `choose_channels` does, and a choice for every block.

        As long as a block is worth less than it costs, the one that loses most is removed, and channels are chosen anew
        within the budget that this frees. Where the budget asks for nothing, it has no price, and no block goes.

        Args:
            scores: one score a unit for every prunable group, each [units,].
            limit: largest cost allowed.
            levels: gives the allowed widths of every group under a cost.

        Raises:
            BudgetError: the smallest allowed widths cost more than the limit.
        """
        groups = self.groups.prunable
        reasons: dict[str, str] = {}
        while True:
            removed = self.named(list(reasons))
            cost = self.cost(removed)
            allowed = [
                _GONE if any(block.has_inside(group) for block in removed) else level
                for group, level in zip(groups, levels(cost), strict=True)
            ]
            kept, threshold = choose_with_threshold(groups, scores, cost, limit, allowed)
            balances = {
                block.name: self._balance(block, removed, kept, scores, threshold, limit)
                for block in self.groups.removable
                if block not in removed and not _covered(block, removed)
            }
            worst = min(balances, key=lambda name: balances[name].surplus, default=None)
            if worst is None or balances[worst].surplus >= 0:
                break
            reasons[worst] = str(balances[worst])
        return kept, tuple(self._choice(block, reasons, balances) for block in self.groups.blocks)

    def _balance(
        self,
        block: ResidualBlock,
        removed: Sequence[ResidualBlock],
        kept: Mapping[str, Sequence[int]],
        scores: Sequence[Tensor],
        threshold: float,
        limit: float,
    ) -> Balance:
        """What a block costs and what its channels are worth, at the widths of the others."""
        groups = self.groups.prunable
        cost, counts = self.cost(removed), kept_counts(kept, groups)
        least = min(float(score.min()) for score in scores)
        inner = [number for number, group in enumerate(groups) if block.has_inside(group) and counts[number] > 0]

        def freed(numbers: Sequence[int]) -> float:
            without = counts.clone()
            without[list(numbers)] = 0.0
            return float(cost(counts)[0]) - float(cost(without)[0])

        gone = counts.clone()
        gone[inner] = 0.0
        costs = float(cost(counts)[0]) - float(self.cost([*removed, block])(gone)[0])
        if not inner or threshold <= least or costs <= 0:
            return Balance(0.0, 0.0)
        alone = torch.tensor([freed([number]) for number in inner], dtype=torch.float64)
        parts = freed(inner) * alone / alone.sum().clamp_min(1e-30)  # channels of two groups of a layer cost together
        means = torch.stack([scores[number][list(kept[groups[number].name])].mean().cpu() for number in inner])
        worth = float(parts @ (means - least)) / (threshold - least)
        return Balance(costs / limit, worth / limit)

    def _choice(self, block: ResidualBlock, reasons: Mapping[str, str], balances: Mapping[str, Balance]) -> BlockChoice:
        if block.name in reasons:
            return BlockChoice(block.name, block.modules, removed=True, reason=reasons[block.name])
        if block.name in balances:
            return BlockChoice(block.name, block.modules, removed=False, reason=str(balances[block.name]))
        reason = block.kept_because or "it is a part of a block that was removed"
        return BlockChoice(block.name, block.modules, removed=False, reason=reason)


@dataclass(frozen=True)
class Balance:
    """A block's account.

    Attributes:
        costs: what removing it would free, as a share of the budget.
        worth: what its kept channels are worth, on the same scale: a channel at the threshold is worth its cost.
    """

    costs: float
    worth: float

    @property
    def surplus(self) -> float:
        """What it is worth above its cost; below zero it goes."""
        return self.worth - self.costs

    def __str__(self) -> str:
        if self.costs == 0:
            return "the budget asks for nothing, or removing it would free nothing"
        return f"it costs {self.costs:.2%} of the budget, and its channels are worth {self.worth:.2%}"


def _covered(block: ResidualBlock, removed: Sequence[ResidualBlock]) -> bool:
    """Whether a block is a part of removed ones."""
    return any(all(other.holds(module) for module in block.modules) for other in removed)
