"""The transport problem: scores, entropy, a budget on the cost of the masks, and floors."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dtp_deploy.errors import TransportError


class MaskCost(Protocol):
    """What a vector of masks costs: any function that rises strictly with every mask."""

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The cost, shape (), and its gradient c_i = dCost/dm_i > 0, shape [n,], both float64, at masks [n,]."""
        ...


@dataclass(frozen=True)
class LinearCost:
    """Cost a . m: each unit costs a_i, shape [n,], whatever the others do. With it the source mass is a / sum(a).

    >>> LinearCost(torch.tensor([1.0, 3.0], dtype=torch.float64))(torch.tensor([0.5, 0.5], dtype=torch.float64))[0].item()
    2.0
    """

    unit_costs: Tensor

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        return self.unit_costs @ masks, self.unit_costs


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
        TransportError: scores empty or not finite, epsilon or budget out of range, floors above a group's size.
    """

    scores: Tensor
    epsilon: float
    cost: MaskCost
    budget: float
    floors: Floors | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or len(self.scores) == 0:
            raise TransportError(f"Scores have shape {tuple(self.scores.shape)}; give a vector of at least one score.")
        if not bool(torch.isfinite(self.scores.detach()).all()):
            raise TransportError(
                "Scores hold NaN or infinity; they must be finite. Lower the learning rate, or check the data for NaN."
            )
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise TransportError(f"epsilon is {self.epsilon}; it must be positive and finite.")
        if not (math.isfinite(self.budget) and self.budget >= 0):
            raise TransportError(f"The budget is {self.budget}; it must be finite and not negative.")
        if self.floors is not None:
            self._check_floors(self.floors)

    def _check_floors(self, floors: Floors) -> None:
        if floors.group.shape != self.scores.shape:
            raise TransportError(f"Floors name the groups of {len(floors.group)} units; there are {len(self.scores)}.")
        if int(floors.group.min()) < 0 or int(floors.group.max()) >= len(floors.mass):
            raise TransportError(f"Floors name groups outside of 0..{len(floors.mass) - 1}.")
        impossible = torch.nonzero((floors.mass < 0) | (floors.mass > floors.sizes()) | floors.mass.isnan())
        if len(impossible):
            group = int(impossible[0])
            raise TransportError(
                f"The floor of group {group} is {float(floors.mass[group]):g} of its {int(floors.sizes()[group])} units; "
                "give a number between zero and its size."
            )

    def logits(self) -> Tensor:
        """x_i = 2 s_i / epsilon, shape [n,], float64, detached from the scores."""
        return self.scores.detach().to(torch.float64) * (2.0 / self.epsilon)
