"""Solver `sinkhorn-1`: one Sinkhorn iteration a training step, with the potential kept from step to step.

The published scheme alternates one proximal point step with one Sinkhorn iteration (Xie et al., "A fast proximal point
method for computing exact Wasserstein distance", UAI 2019). With two bins an iteration is one update of the threshold:
scaling the columns moves t by the difference of the log-ratios of wanted to present mass, and scaling the rows is the
sigmoid.

    t <- t - [logit(B) - logit(B_now)],     m = sigmoid(x - t)

B is the budget and B_now the present cost, both as shares of the cost of all-ones. For a linear cost this is exactly
one Sinkhorn iteration with source mass a_i = c_i / sum(c); for another cost it is one iteration of the self-consistent
scheme, and its fixed point is Cost(m) = budget all the same. It lags behind a moving budget and behind hardening masks.
"""

import math

import torch
from torch import Tensor

from dtp_deploy.errors import TransportError
from dtp_deploy.transport.exact import group_thresholds
from dtp_deploy.transport.problem import Floors, TransportProblem
from dtp_deploy.transport.result import TransportResult

_EDGE = 1e-12


def sinkhorn_step(problem: TransportProblem, threshold: float) -> TransportResult:
    """One Sinkhorn iteration from the threshold of the step before.

    Args:
        problem: the problem, n units.
        threshold: t of the step before, in units of this problem's logits; finite. Start with 0.

    Returns:
        Masks that come closer to the budget, differentiable through this one iteration.

    Raises:
        TransportError: the threshold is not finite; or all units together cost nothing, or no finite amount.
    """
    if not math.isfinite(threshold):
        raise TransportError(f"The threshold is {threshold}; give a finite one, 0 to start with.")
    x = problem.scores.to(torch.float64) * (2.0 / problem.epsilon)
    floor_thresholds = torch.empty(0, dtype=x.dtype, device=x.device)
    ceiling = torch.full_like(x, math.inf)
    if problem.floors is not None:
        floor_thresholds = _attached_thresholds(x, problem.floors)
        ceiling = floor_thresholds[problem.floors.group]
    before = torch.sigmoid(x - ceiling.clamp(max=threshold))
    dense_cost = problem.checked_dense_cost(float(problem.cost(torch.ones_like(x))[0]))
    present, unit_costs = problem.cost(before.detach())
    # The cost is a smooth function of the masks: its value at `before`, with its gradient attached.
    attached = present + (unit_costs * (before - before.detach())).sum()
    wanted = torch.as_tensor(problem.budget / dense_cost, dtype=x.dtype, device=x.device)
    t = threshold - (torch.logit(wanted, eps=_EDGE) - torch.logit(attached / dense_cost, eps=_EDGE))
    masks = torch.sigmoid(x - torch.minimum(t, ceiling))
    cost = float(problem.cost(masks.detach())[0])
    return TransportResult(
        masks=masks.to(problem.scores.dtype),
        threshold=float(t.detach()),
        at_floor=floor_thresholds.detach() <= t.detach(),
        cost=cost,
        marginal_error=problem.relative_error(cost, dense_cost),
        iterations=1,
    )


def _attached_thresholds(x: Tensor, floors: Floors) -> Tensor:
    """`group_thresholds`, with the gradient dt_g = sum(v dx) / sum(v) over the group that keeps its mass."""
    thresholds = group_thresholds(x.detach(), floors)
    masks = torch.sigmoid(x.detach() - thresholds[floors.group])
    v = masks * (1 - masks)
    zeros = torch.zeros_like(thresholds)
    spread = zeros.index_add(0, floors.group, v)
    moved = zeros.index_add(0, floors.group, v * (x - x.detach()))
    return thresholds + moved / torch.where(spread > 0, spread, 1.0)
