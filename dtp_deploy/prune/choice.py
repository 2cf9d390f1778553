"""Choosing whole channels by their scores, within a budget, and using all of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_deploy.cost import WidthFunction
from dtp_deploy.errors import BudgetError
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.prune.widths import WidthLevels


def choose_channels(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    cost: WidthFunction,
    limit: float,
    levels: Sequence[WidthLevels],
) -> dict[str, list[int]]:
    """The units to keep: the highest scores, cost <= limit, and no further unit in the learned order would fit.

    First one threshold for all groups, the lowest that the limit allows; then what the limit leaves is filled with
    single steps up, best mean score first. The unit that comes next below that threshold may be a dear one that only
    just does not fit. So it is tried, too, to keep it and to make room by single steps down elsewhere, and what keeps
    more score for its cost is taken.

    Args:
        groups: the prunable groups, G of them.
        scores: one score a unit for every group, each [units,].
        cost: of the kept units of each group, rising with each.
        limit: largest cost allowed.
        levels: allowed widths of every group.

    Returns:
        Kept units by group name, ascending.

    Raises:
        BudgetError: the smallest allowed widths cost more than the limit.
    """
    return choose_with_threshold(groups, scores, cost, limit, levels)[0]


def choose_with_threshold(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    cost: WidthFunction,
    limit: float,
    levels: Sequence[WidthLevels],
) -> tuple[dict[str, list[int]], float]:
    """As `choose_channels`, and the one threshold before single steps: a unit of this score is worth what it costs."""
    orders = [torch.argsort(score.detach().cpu(), descending=True, stable=True) for score in scores]
    ranked = [score.detach().cpu()[order] for score, order in zip(scores, orders, strict=True)]

    def cost_of(positions: Sequence[int]) -> float:
        widths = [level.units[position] for level, position in zip(levels, positions, strict=True)]
        return float(cost(torch.tensor(widths, dtype=torch.float64))[0])

    def above(threshold: float) -> list[int]:
        return [level.at_most(int((values >= threshold).sum())) for level, values in zip(levels, ranked, strict=True)]

    smallest = [0] * len(groups)
    if cost_of(smallest) > limit:
        raise BudgetError(
            f"The smallest widths allowed cost {cost_of(smallest):.6g}, above the limit of {limit:.6g}. "
            "Give a larger budget, or a smaller --round-to."
        )
    thresholds = sorted(set(torch.cat(ranked).tolist()))  # the cost falls along it
    low, high = 0, len(thresholds)
    while low < high:
        middle = (low + high) // 2
        if cost_of(above(thresholds[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    positions = above(thresholds[low]) if low < len(thresholds) else smallest
    # What is pruned is worth nothing; the median, as one unit far below the others shall not decide.
    steps = _Steps(levels, ranked, thresholds[low // 2], cost_of, limit)
    chosen = steps.filled(positions)
    if low > 0:
        roomy = steps.made_to_fit(above(thresholds[low - 1]), positions)
        if roomy is not None:
            chosen = max(chosen, steps.filled(roomy), key=lambda choice: steps.gain(choice, positions))
    kept = {
        group.name: sorted(order[: level.units[position]].tolist())
        for group, order, level, position in zip(groups, orders, levels, chosen, strict=True)
    }
    return kept, thresholds[min(low, len(thresholds) - 1)]


@dataclass(frozen=True)
class _Steps:
    """Single steps of widths. Widths are positions among the levels of each group.

    Attributes:
        levels: allowed widths of every group.
        ranked: scores of every group, falling.
        zero: the score at which a unit is worth nothing.
        cost_of: cost of all widths.
        limit: largest cost allowed.
    """

    levels: Sequence[WidthLevels]
    ranked: Sequence[Tensor]
    zero: float
    cost_of: Callable[[Sequence[int]], float]
    limit: float

    def filled(self, positions: Sequence[int]) -> list[int]:
        """Widths raised while the limit allows, best mean score first; a step that does not fit never fits later."""
        positions = list(positions)
        queue: list[tuple[float, int]] = []

        def offer(number: int) -> None:
            if positions[number] + 1 < len(self.levels[number].units):
                heapq.heappush(queue, (-self._score(number, positions[number], positions[number] + 1), number))

        for number in range(len(positions)):
            offer(number)
        while queue:
            _, number = heapq.heappop(queue)
            positions[number] += 1
            if self.cost_of(positions) <= self.limit:
                offer(number)
            else:
                positions[number] -= 1
        return positions

    def made_to_fit(self, positions: Sequence[int], least: Sequence[int]) -> list[int] | None:
        """Widths lowered until they are within the limit, but for those above `least`; None where that is too little.

        Each step is the one that loses least score for what it takes off the excess: one that frees much more than
        that loses the more.
        """
        positions = list(positions)
        open_to_it = [n for n, (position, low) in enumerate(zip(positions, least, strict=True)) if position <= low]
        cost = self.cost_of(positions)
        while cost > self.limit:
            losses: list[tuple[float, int]] = []
            for number in open_to_it:
                if positions[number] == 0:
                    continue
                lowered = [*positions[:number], positions[number] - 1, *positions[number + 1 :]]
                freed = cost - self.cost_of(lowered)
                if freed > 0:
                    lost = self._worth(number, lowered[number], positions[number]) * freed
                    losses.append((lost / min(freed, cost - self.limit), number))
            if not losses:
                return None
            positions[min(losses)[1]] -= 1
            cost = self.cost_of(positions)
        return positions

    def gain(self, positions: Sequence[int], start: Sequence[int]) -> float:
        """How much more score widths keep than those at the start do, each group's weighed by what its change costs.

        That is the mean of what it costs as the first and as the last change, so that where costs are products of
        widths, all add up to what the widths cost in all, in whatever order the groups are.
        """
        total, before, after = 0.0, self.cost_of(start), self.cost_of(positions)
        for number, (old, new) in enumerate(zip(start, positions, strict=True)):
            if new != old:
                first = self.cost_of([*start[:number], new, *start[number + 1 :]]) - before
                last = after - self.cost_of([*positions[:number], old, *positions[number + 1 :]])
                total += self._worth(number, min(old, new), max(old, new)) * (first + last) / 2
        return total

    def _worth(self, number: int, low: int, high: int) -> float:
        """Mean score of the units between two widths of a group, above what is worth nothing."""
        return self._score(number, low, high) - self.zero

    def _score(self, number: int, low: int, high: int) -> float:
        units = self.levels[number].units
        return float(self.ranked[number][units[low] : units[high]].mean())


def kept_counts(kept: Mapping[str, Sequence[int]], groups: Sequence[ChannelGroup]) -> Tensor:
    """Units kept of every group, shape [G,], float64."""
    return torch.tensor([float(len(kept[group.name])) for group in groups], dtype=torch.float64)
