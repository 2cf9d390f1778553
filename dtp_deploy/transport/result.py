"""What a solver returns."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TransportResult:
    """A solution of a `TransportProblem`.

    Attributes:
        masks: m_i in [0, 1], shape [n,], in the scores' dtype, differentiable with respect to them.
        threshold: t of the whole problem, in units of the logits; -inf keeps all units, +inf only the floors.
        at_floor: whether a group is held at its floor by a threshold of its own, shape [G,], bool; empty without
            floors.
        cost: Cost(masks).
        marginal_error: how far the cost is from the one wanted, see `TransportProblem.relative_error`.
        iterations: evaluations of the cost until the threshold was found; 1 for `sinkhorn_step`.
    """

    masks: Tensor
    threshold: float
    at_floor: Tensor
    cost: float
    marginal_error: float
    iterations: int

    @property
    def converged(self) -> bool:
        """Whether the marginal error is at most 1e-9, up or down.

        False where floors forbid it, and usually for `sinkhorn_step`, which lags behind.
        """
        return abs(self.marginal_error) <= 1e-9

    def transport_plan(self, mass: Tensor) -> Tensor:
        """P, shape (n, 2), for source masses a_i, shape [n,]: columns pruned and kept, rows sum to a_i."""
        kept = self.masks * mass
        return torch.stack([mass - kept, kept], dim=1)
