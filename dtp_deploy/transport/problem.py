"""The transport problem: scores, entropy, a budget on the cost of the masks, and floors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dtp_deploy.errors import TransportError


class MaskCost(Protocol):
    """What a vector of masks costs: any function that rises strictly with every mask."""

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The cost, shape (), and its gradient c_i = dCost/dm_i > 0, shape [n,], both float64, at masks [n,].

        The masks are the solver's own and change after the call: nothing may be kept of them.
        """
        ...


@dataclass(frozen=True)
class LinearCost:
    """Cost a . m: each unit costs a_i whatever the others do. With it the source mass is a / sum(a).

    Attributes:
        unit_costs: a_i > 0, shape [n,], float64.

    >>> unit_costs = torch.tensor([1.0, 3.0], dtype=torch.float64)
    >>> cost, gradient = LinearCost(unit_costs)(torch.full((2,), 0.5, dtype=torch.float64))
    >>> cost.item(), gradient.tolist()
    (2.0, [1.0, 3.0])

    Raises:
        TransportError: costs of another type or shape, or one that is not positive and finite.
    """

    unit_costs: Tensor

    def __post_init__(self) -> None:
        costs = self.unit_costs
        if costs.ndim != 1 or costs.dtype != torch.float64:
            raise TransportError(
                f"Unit costs have shape {tuple(costs.shape)} and dtype {costs.dtype}; give a vector of float64."
            )
        if len(costs) == 0:
            return  # no problem takes them
        lowest, highest = torch.stack(torch.aminmax(costs)).tolist()  # NaN, too, comes through
        if not (lowest > 0 and highest < math.inf):
            raise TransportError(
                f"Unit costs go from {lowest:g} to {highest:g}; give positive, finite ones. What costs nothing need "
                "not be chosen: leave it out of the problem."
            )

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        return self.unit_costs @ masks, self.unit_costs


@dataclass(frozen=True)
class MaskCount:
    """Cost sum of m: the number of units kept, whatever they are.

    >>> cost, gradient = MaskCount()(torch.tensor([1.0, 0.5]))
    >>> cost.item(), gradient.tolist()
    (1.5, [1.0, 1.0])
    """

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        return masks.sum(), torch.ones_like(masks)


@dataclass(frozen=True)
class Floors:
    """The least mass that each group of units keeps.

    Attributes:
        group: group of each unit, shape [n,], int64 in 0..G-1.
        mass: least sum of the masks of each group, shape [G,], float64, in 0..(number of its units).
    """

    group: Tensor
    mass: Tensor

    def sizes(self) -> Tensor:
        """Number of units a group, shape [G,], float64."""
        return torch.bincount(self.group, minlength=len(self.mass)).to(torch.float64)


def check_logits(scores: Iterable[float], epsilon: float) -> None:
    """Raise unless scores over epsilon, and differences of such logits, are numbers.

    Raises:
        TransportError: they overflow.
    """
    largest = max(map(abs, scores))
    if not math.isfinite(8 * largest / epsilon):
        raise TransportError(
            f"Scores of up to {largest:g} over an epsilon of {epsilon:g} are too large for a float64. Give a larger "
            "epsilon, or scale the scores."
        )


@dataclass(frozen=True)
class TransportProblem:
    """Transport of n units into the bins pruned and kept, with Cost(m) = budget.

    Attributes:
        scores: s_i, shape [n,], float32 or float64, finite. Gradients flow to it.
        epsilon: weight of the entropy, > 0.
        cost: what masks cost.
        budget: the cost that the masks shall have. At or above the cost of all-ones everything is kept; below the cost
            of the floors the floors are kept, and the result says that it has not converged.
        floors: least mass a group, or None.

    Raises:
        TransportError: scores empty, not finite or of another type, epsilon or budget out of range, scores over epsilon
            that overflow, another number of unit costs, floors of another type or shape, or outside of 0..(a group's
            size).
    """

    scores: Tensor
    epsilon: float
    cost: MaskCost
    budget: float
    floors: Floors | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or len(self.scores) == 0:
            raise TransportError(f"Scores have shape {tuple(self.scores.shape)}; give a vector of at least one score.")
        if self.scores.dtype not in (torch.float32, torch.float64):
            raise TransportError(f"Scores have dtype {self.scores.dtype}; give float32 or float64.")
        ends = torch.stack(torch.aminmax(self.scores.detach())).tolist()  # NaN, too, comes through
        if not all(map(math.isfinite, ends)):
            raise TransportError(
                "Scores hold NaN or infinity; they must be finite. Lower the learning rate, or check the data for NaN."
            )
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise TransportError(f"epsilon is {self.epsilon}; give a positive, finite number.")
        check_logits(ends, self.epsilon)
        if not (math.isfinite(self.budget) and self.budget >= 0):
            raise TransportError(f"The budget is {self.budget}; give a finite cost of zero or more.")
        if isinstance(self.cost, LinearCost) and self.cost.unit_costs.shape != self.scores.shape:
            raise TransportError(
                f"There are {len(self.cost.unit_costs)} unit costs for {len(self.scores)} scores. Give as many of one "
                "as of the other."
            )
        if self.floors is not None:
            self._check_floors(self.floors)

    def _check_floors(self, floors: Floors) -> None:
        if floors.group.shape != self.scores.shape:
            raise TransportError(
                f"Floors name the groups of units of shape {tuple(floors.group.shape)}; the scores have shape "
                f"{tuple(self.scores.shape)}. Give one group a score."
            )
        if (floors.group.dtype, floors.mass.dtype) != (torch.int64, torch.float64):
            raise TransportError(
                f"Floors have groups of dtype {floors.group.dtype} and masses of dtype {floors.mass.dtype}; "
                "give int64 and float64."
            )
        lowest, highest = int(floors.group.min()), int(floors.group.max())
        if lowest < 0 or highest >= len(floors.mass):
            raise TransportError(
                f"Floors name groups from {lowest} to {highest}; there are {len(floors.mass)} masses. "
                "Number the groups from 0 and give a mass for each."
            )
        sizes = floors.sizes()
        possible = (floors.mass >= 0) & (floors.mass <= sizes)  # false for NaN
        if not bool(possible.all()):
            group = int(torch.nonzero(~possible)[0])
            raise TransportError(
                f"The floor of group {group} is {float(floors.mass[group]):g} of its {int(sizes[group])} units; "
                "give a number between zero and its size."
            )

    def logits(self) -> Tensor:
        """x_i = 2 s_i / epsilon, shape [n,], float64, detached from the scores."""
        return self.scores.detach().to(torch.float64) * (2.0 / self.epsilon)

    @staticmethod
    def checked_dense_cost(dense_cost: float) -> float:
        """The cost of all-ones, which a solver has found.

        Raises:
            TransportError: it is no positive number, so that no budget could choose among the units.
        """
        if not (math.isfinite(dense_cost) and dense_cost > 0):
            raise TransportError(
                f"All units together cost {dense_cost:g}, so that no budget can choose among them. Give a cost that is "
                "finite and rises with every mask."
            )
        return dense_cost

    def relative_error(self, cost: float, dense_cost: float) -> float:
        """How far `cost` is from the one wanted, as a share of that; the difference itself where nothing is wanted.

        Wanted is the budget, or the cost of all-ones where the budget is above it.
        """
        wanted = min(self.budget, dense_cost)
        return (cost - wanted) / wanted if wanted > 0 else cost - wanted
