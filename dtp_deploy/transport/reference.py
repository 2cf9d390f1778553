"""The reference solver: Sinkhorn's algorithm in the log domain, iterated until the masses are right.

It is what the literature does (Peyré and Cuturi, 2019, section 4.4) on the (n, 2) plan itself: source masses a_i in
proportion to the unit costs, target masses (1 - B, B), potentials f of the units and g of the bins,

    g_j <- epsilon (log b_j - logsumexp_i((f_i - C_ij) / epsilon)),   f_i <- epsilon (log a_i - logsumexp_j(...)).

Nothing of it is shared with `solve_exact`, which it is there to check; autograd differentiates it through all of its
iterations. It needs many where epsilon is small against the spread of the scores, and says so where they do not do.
"""

import math

import torch
from torch import Tensor

from dtp_deploy.errors import TransportError
from dtp_deploy.transport.problem import LinearCost, TransportProblem
from dtp_deploy.transport.result import TransportResult


def solve_sinkhorn(
    problem: TransportProblem, *, tolerance: float = 1e-10, max_iterations: int = 10_000
) -> TransportResult:
    """Sinkhorn iterations until the marginal error is at most `tolerance`.

    Args:
        problem: n units of a linear cost, without floors, whose budget is above zero and below the dense cost.
        tolerance: of the cost, relative to the budget.
        max_iterations: at least one; give up after these. The result then says that it has not converged, unless it is
            near enough.

    Returns:
        Masks, differentiable through the iterations, all of which autograd keeps in memory.

    Raises:
        TransportError: the problem is another one, or no iteration is allowed.
    """
    if max_iterations < 1:
        raise TransportError(f"max_iterations is {max_iterations}; give 1 or more.")
    cost, scores = problem.cost, problem.scores.to(torch.float64)
    if not isinstance(cost, LinearCost) or problem.floors is not None:
        raise TransportError(
            "solve_sinkhorn takes a LinearCost without floors: a plan whose masses are known. Take solve_exact."
        )
    dense_cost = float(cost.unit_costs.sum())
    share = problem.budget / dense_cost
    if not 0 < share < 1:
        raise TransportError(
            f"solve_sinkhorn takes a budget above zero and below the cost of all units, {dense_cost:g}; it is "
            f"{problem.budget:g}. Take solve_exact."
        )
    log_source = cost.unit_costs.log() - math.log(dense_cost)  # the quotient may be too small to be a number
    log_target = torch.tensor([1 - share, share], dtype=torch.float64, device=scores.device).log()
    # Of the costs (s - j)^2 only the difference counts; s^2 in both columns would only cost digits.
    kernel = torch.stack([torch.zeros_like(scores), (2 * scores - 1) / problem.epsilon], dim=1)
    units: Tensor = log_source - torch.logsumexp(kernel, dim=1)
    iterations, error = 0, 1.0
    while abs(error) > tolerance and iterations < max_iterations:
        bins = log_target - torch.logsumexp(kernel + units[:, None], dim=0)
        units = log_source - torch.logsumexp(kernel + bins, dim=1)
        masks = (kernel[:, 1] + units + bins[1] - log_source).exp()
        kept = float(cost.unit_costs @ masks.detach())
        error = problem.relative_error(kept, dense_cost)
        iterations += 1
    threshold = float(bins.detach()[0] - bins.detach()[1]) + 1 / problem.epsilon
    return TransportResult(
        masks=masks.clamp(0, 1).to(problem.scores.dtype),
        threshold=threshold,
        at_floor=torch.empty(0, dtype=torch.bool, device=scores.device),
        cost=kept,
        marginal_error=error,
        iterations=iterations,
    )
