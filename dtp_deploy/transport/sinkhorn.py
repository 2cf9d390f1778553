"""Solver `sinkhorn-1`: one Sinkhorn iteration a training step, with the potential kept from step to step.

The published scheme alternates one proximal point step with one Sinkhorn iteration (Xie et al., "A fast proximal point
method for computing exact Wasserstein distance", UAI 2019). With two bins an iteration is one update of the threshold:
scaling the columns moves t by the difference of the log-ratios of wanted to present mass, and scaling the rows is the
sigmoid.

    t <- t - [logit(B) - logit(B_now)],     m = sigmoid(x - t)

B is the budget and B_now the present cost, both as shares of the cost of all-ones. For a linear cost this is exactly one
Sinkhorn iteration with source mass a_i = c_i / sum(c); for another cost it is one iteration of the self-consistent
scheme, and its fixed point is Cost(m) = budget all the same. It lags behind a moving budget and behind hardening masks.
"""

import torch

from dtp_deploy.transport.exact import group_thresholds
from dtp_deploy.transport.problem import TransportProblem
from dtp_deploy.transport.result import TransportResult

_EDGE = 1e-12


def sinkhorn_step(problem: TransportProblem, threshold: float) -> TransportResult:
    """One Sinkhorn iteration from the threshold of the step before.

    Args:
        problem: the problem, n units.
        threshold: t of the step before, in units of this problem's logits; finite. Start with 0.

    Returns:
        Masks that come closer to the budget, differentiable through this one iteration; `converged` says whether they
        are within it.
    """
    x = problem.scores.to(torch.float64) * (2.0 / problem.epsilon)
    ceiling = None
    at_floor = torch.empty(0, dtype=torch.bool, device=x.device)
    if problem.floors is not None:
        floor_thresholds = group_thresholds(x.detach(), problem.floors)
        ceiling = floor_thresholds[problem.floors.group]
    before = torch.sigmoid(x - _capped(torch.tensor(threshold, dtype=x.dtype, device=x.device), ceiling))
    dense, _ = problem.cost(torch.ones_like(x))
    present, unit_costs = problem.cost(before.detach())
    # The cost is a smooth function of the masks: its value at `before`, with its gradient attached.
    attached = present + (unit_costs * (before - before.detach())).sum()
    wanted = torch.as_tensor(problem.budget, dtype=x.dtype, device=x.device) / dense
    t = threshold - (torch.logit(wanted, eps=_EDGE) - torch.logit(attached / dense, eps=_EDGE))
    masks = torch.sigmoid(x - _capped(t, ceiling))
    if ceiling is not None:
        at_floor = floor_thresholds <= t.detach()
    cost = float(problem.cost(masks.detach())[0])
    error = cost - problem.budget
    relative = error / problem.budget if problem.budget > 0 else error
    return TransportResult(
        masks=masks.to(problem.scores.dtype),
        threshold=float(t.detach()),
        at_floor=at_floor,
        cost=cost,
        marginal_error=relative,
        iterations=1,
        converged=relative <= 1e-9,
    )


def _capped(t: torch.Tensor, ceiling: torch.Tensor | None) -> torch.Tensor:
    return t if ceiling is None else torch.minimum(t, ceiling)
