"""How the mass of single weights is shared: one budget for all, the same ratio a layer, or two of every four."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dtp_deploy.budget import Scope
from dtp_deploy.prune.layers import BLOCK, KEPT_OF_BLOCK
from dtp_deploy.transport import (
    BlockProblem,
    Floors,
    MaskCount,
    TransportProblem,
    TransportResult,
    budget_price,
    epsilon_for_block_softness,
    epsilon_for_softness,
    solve_blocks,
    solve_exact,
)

Threshold = Any
"""A float, or one a block: what the next solution starts from."""


class Sharing(abc.ABC):
    """Which weights may keep how much mass.

    Attributes:
        kept: how many weights are left in the end.
        ratio: the same as a share of all.
        group: of each weight, shape [n,], int64, where every group keeps its mass whatever the scores; None where mass
            moves between all.
    """

    kept: int
    ratio: float
    group: Tensor | None = None

    @abc.abstractmethod
    def solve(self, scores: Tensor, epsilon: float, ratio: float, start: Threshold) -> tuple[Tensor, Threshold]:
        """Masks with a mean of `ratio`, shape [n,], differentiable with respect to the scores, and the threshold."""

    @abc.abstractmethod
    def epsilon_for(self, scores: Tensor, epsilon: float, ratio: float, wanted: float) -> float:
        """The epsilon at which softness is `wanted` above the least possible, searched from a first guess."""

    @abc.abstractmethod
    def choose(self, scores: Tensor) -> Tensor:
        """Whether each weight is kept, shape [n,], bool: `kept` in all; of equal scores the one that comes first."""

    def least_softness(self, ratio: float) -> float:
        """The softness of masks with a mean of `ratio` that are as hard as they can be, at any epsilon."""
        return 0.0

    def price(self, gradient: Tensor) -> float | None:
        """What a loss falls by, to first order, for as much more budget as all weights; None without one budget.

        Args:
            gradient: of the loss by the masks that `solve` gave last, shape [n,].
        """
        return None


class SharedBudget(Sharing):
    """One budget for all weights, with a floor a layer; or the same ratio in every layer.

    Args:
        sizes: weights of each layer; together the n weights, one layer after the other.
        kept: how many weights are left, at least one a layer.
        scope: "global" or "per-layer".
        floor_share: least share of a layer's weights, as a share of the ratio of all.
        device: where the scores are.
    """

    def __init__(
        self, sizes: Sequence[int], kept: int, scope: Scope, floor_share: float, device: torch.device | None = None
    ) -> None:
        self.sizes, self.kept, self.scope = list(sizes), kept, scope
        self.ratio = kept / sum(sizes)
        self._sizes = torch.tensor(self.sizes, dtype=torch.float64, device=device)
        if scope == "per-layer":
            self.floors = even_counts(self.sizes, kept)
        else:
            self.floors = [max(1, math.floor(floor_share * self.ratio * size)) for size in self.sizes]
            if sum(self.floors) > kept:
                self.floors = [1] * len(self.sizes)
        self._group = torch.repeat_interleave(
            torch.arange(len(self.sizes), device=device), torch.tensor(self.sizes, device=device)
        )
        self.group = self._group if scope == "per-layer" else None
        self._last: tuple[TransportProblem, TransportResult]

    def _problem(self, scores: Tensor, epsilon: float, ratio: float) -> TransportProblem:
        if self.scope == "per-layer":
            # Every layer at its floor is the same ratio in all of them; no budget is left to share.
            mass, budget = self._sizes * ratio, 0.0
        else:
            mass = torch.tensor(self.floors, dtype=torch.float64, device=scores.device)
            budget = ratio * len(scores)
        return TransportProblem(scores, epsilon, MaskCount(), budget, Floors(self._group, mass))

    def solve(self, scores: Tensor, epsilon: float, ratio: float, start: Threshold) -> tuple[Tensor, Threshold]:
        """Solved exactly."""
        problem = self._problem(scores, epsilon, ratio)
        result = solve_exact(problem, start)
        self._last = problem, result
        return result.masks, result.threshold if math.isfinite(result.threshold) else 0.0

    def price(self, gradient: Tensor) -> float | None:
        """Where the budget is one for all."""
        return budget_price(*self._last, gradient) * sum(self.sizes) if self.scope == "global" else None

    def epsilon_for(self, scores: Tensor, epsilon: float, ratio: float, wanted: float) -> float:
        """Searched with exact solutions."""
        return epsilon_for_softness(self._problem(scores, epsilon, ratio), wanted)

    def choose(self, scores: Tensor) -> Tensor:
        """The best of each layer up to its floor, then the best of all that is left."""
        scores = scores.detach()
        keep = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        first = 0
        for size, floor in zip(self.sizes, self.floors, strict=True):
            keep[first + _order(scores[first : first + size])[:floor]] = True
            first += size
        others = _order(scores.masked_fill(keep, -math.inf))
        keep[others[: self.kept - sum(self.floors)]] = True
        return keep


class BlockSharing(Sharing):
    """Two of every four consecutive weights.

    Args:
        count: how many weights there are; four divides it.
        device: where the scores are.
    """

    def __init__(self, count: int, device: torch.device | None = None) -> None:
        self.group = torch.arange(count, device=device) // BLOCK
        self.ratio = KEPT_OF_BLOCK / BLOCK
        self.kept = count // BLOCK * KEPT_OF_BLOCK

    def _problem(self, scores: Tensor, epsilon: float, ratio: float) -> BlockProblem:
        return BlockProblem(scores.view(-1, BLOCK), epsilon, min(BLOCK * ratio, BLOCK))

    def solve(self, scores: Tensor, epsilon: float, ratio: float, start: Threshold) -> tuple[Tensor, Threshold]:
        """All blocks at once."""
        result = solve_blocks(self._problem(scores, epsilon, ratio), start)
        return result.masks.view(-1), result.thresholds

    def least_softness(self, ratio: float) -> float:
        """Of every block, one weight is kept in part where its mass is not a whole number."""
        part = math.fmod(BLOCK * ratio, 1.0)
        return 4 * part * (1 - part) / BLOCK

    def epsilon_for(self, scores: Tensor, epsilon: float, ratio: float, wanted: float) -> float:
        """Searched for all blocks together."""
        return epsilon_for_block_softness(
            self._problem(scores, epsilon, ratio), wanted, least=self.least_softness(ratio)
        )

    def choose(self, scores: Tensor) -> Tensor:
        """The best two of each block."""
        blocks = scores.detach().view(-1, BLOCK)
        keep = torch.zeros_like(blocks, dtype=torch.bool)
        return keep.scatter(1, _order(blocks)[:, :KEPT_OF_BLOCK], value=True).view(-1)


def even_counts(sizes: Sequence[int], kept: int) -> list[int]:
    """How many of each layer are kept where all have the same ratio: `kept` in all, at least one in each.

    Args:
        sizes: weights of each layer.
        kept: from the number of layers to the sum of the sizes.

    >>> even_counts([10, 10, 1], 11), even_counts([7, 7, 7], 8)
    ([5, 5, 1], [3, 3, 2])
    """
    ratio = kept / sum(sizes)
    counts = [max(1, math.floor(ratio * size)) for size in sizes]
    while (left := kept - sum(counts)) != 0:
        step = 1 if left > 0 else -1
        possible = [index for index, count in enumerate(counts) if 1 <= count + step <= sizes[index]]
        index = max(possible, key=lambda index: step * (ratio * sizes[index] - counts[index]))
        counts[index] += step
    return counts


def _order(scores: Tensor) -> Tensor:
    """Indices along the last dimension, the highest score first; of equal ones the first."""
    return torch.argsort(scores, dim=-1, descending=True, stable=True)
