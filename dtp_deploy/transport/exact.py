"""The exact solver: one scalar equation, Cost(sigmoid(x - t)) = budget, solved for t to machine precision.

The masks are differentiated by the implicit function theorem. With v = m (1 - m), c = dCost/dm at the solution and
upstream gradient g, moving x changes m by v (dx - dt), and the budget stays met, so sum(c v (dx - dt)) = 0. Hence

    grad_x = v (g - c mu),      mu = sum(v g) / sum(v c),

and mu = 0 where sum(v c) vanishes (budget at 1, or all masks hard). -mu is the price of the budget: the score of a
unit rises if its benefit per cost beats the price. A group at its floor has a threshold of its own and stays out of mu;
there grad_x = v (h - mean(h)), with h = g - c mu and the mean weighted by v over the group, which is
v (g - sum(v g) / sum(v)) where the units of a group cost the same.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dtp_deploy.transport.problem import Floors, TransportProblem
from dtp_deploy.transport.result import TransportResult

_MAX_ITERATIONS = 200
_TOLERANCE = 1e-13
_STEPS = 2
"""A root is found when it is this many neighbouring numbers away at most."""
_ONE, _ZERO = 45.0, -745.0
"""From here on sigmoid is 1, and up to here next to the smallest positive number, in float64."""


def solve_exact(problem: TransportProblem, start: float | None = None) -> TransportResult:
    """Solve the problem to machine precision: safeguarded Newton steps on t, each O(n).

    Args:
        problem: the problem, n units.
        start: a guess of t, say the last solution's, which saves iterations.

    Returns:
        Masks with Cost(masks) = budget, differentiable with respect to the scores.

    Raises:
        TransportError: all units together cost nothing, or no finite amount.
    """
    floors = problem.floors
    if floors is None:
        return _solve(problem, start)
    # Most of the time no group is near its floor: then the solution without floors is the solution.
    free = _solve(replace(problem, floors=None), start)
    zeros = torch.zeros(len(floors.mass), dtype=torch.float64, device=free.masks.device)
    kept = zeros.index_add(0, floors.group, free.masks.detach().to(torch.float64))
    if free.threshold < math.inf and bool((kept >= floors.mass).all()):
        return replace(free, at_floor=zeros.to(torch.bool))
    return _solve(problem, free.threshold if math.isfinite(free.threshold) else None)


def _solve(problem: TransportProblem, start: float | None) -> TransportResult:
    """Solve it, the floors taken for real; without floors no time goes into them."""
    x, floors = problem.logits(), problem.floors
    floor_thresholds = torch.empty(0, dtype=x.dtype, device=x.device)
    ceiling = held = None
    if floors is not None:
        floor_thresholds = group_thresholds(x, floors)
        ceiling = floor_thresholds[floors.group]

    ones = torch.ones_like(x)
    found = (ones, *problem.cost(ones))  # masks, cost and unit costs at the last t that was tried
    trial, slopes = torch.empty_like(x), torch.empty_like(x)  # of every t in turn: fresh memory takes longer than sums

    def evaluate(t: float) -> tuple[float, float]:
        nonlocal found
        masks = torch.sub(x, t if ceiling is None else ceiling.clamp(max=t), out=trial).sigmoid_()
        cost, unit_costs = problem.cost(masks)
        found = masks, cost, unit_costs
        torch.sub(ones, masks, out=slopes).mul_(masks)
        if ceiling is not None:
            slopes.mul_(ceiling > t)
        both = torch.stack([cost, unit_costs @ slopes]).tolist()
        return both[0] - problem.budget, both[1]

    origin = 0.0  # what x, the ceilings and t are measured from
    dense_cost = problem.checked_dense_cost(float(found[1]))
    least = torch.zeros_like(x) if ceiling is None else (x - ceiling).sigmoid_()
    at_least = (least, *problem.cost(least))
    if dense_cost <= problem.budget:
        t, iterations = -math.inf, 1
    elif float(at_least[1]) >= problem.budget:
        found = at_least
        t, iterations = math.inf, 2
    else:
        tolerance = _TOLERANCE * problem.budget
        lowest, highest = torch.stack(torch.aminmax(x)).tolist()
        if start is None:
            start = _first_guess(x, problem.budget / dense_cost, lowest, highest)
        t, excess, iterations = _decreasing_root(evaluate, lowest - _ONE, highest - _ZERO, start, tolerance)
        if abs(excess) > tolerance:
            # Neighbouring numbers near t are too far apart. Seen from t, the logits that matter are small and exact.
            origin, step = t, 2 * _STEPS * math.ulp(t)
            x, floor_thresholds = x - origin, floor_thresholds - origin
            ceiling = None if ceiling is None else ceiling - origin
            t, _, more = _decreasing_root(evaluate, -step, step, 0.0, tolerance)
            iterations += more
        iterations += 2

    masks, cost, unit_costs = found
    at_floor = floor_thresholds <= t
    if floors is not None:
        held = at_floor[floors.group]
    return TransportResult(
        masks=_Masks.apply(problem.scores, masks, unit_costs, held, floors, problem.epsilon),  # type: ignore[no-untyped-call]
        threshold=origin + t,
        at_floor=at_floor,
        cost=float(cost),
        marginal_error=problem.relative_error(float(cost), dense_cost),
        iterations=iterations,
    )


def _first_guess(x: Tensor, share: float, lowest: float, highest: float) -> float:
    """t at which logits that are normally distributed have a mean mask of `share`, nearly.

    It lies where the mean of any logits between the lowest and the highest can have it; so it is exact for equal ones.
    """
    share = min(max(share, 1e-300), 1 - 1e-16)
    logit = math.log(share / (1 - share))
    mean, square = (torch.stack([x.sum(), x @ x]) / len(x)).tolist()  # far quicker than torch.var_mean
    variance = max(square - mean * mean, 0.0)
    return float(min(max(mean - math.sqrt(1 + math.pi / 8 * variance) * logit, lowest - logit), highest - logit))


def group_thresholds(x: Tensor, floors: Floors) -> Tensor:
    """t_g with sum of sigmoid(x_i - t_g) over group g equal to its floor, shape [G,]; +inf for 0, -inf for all units.

    All groups at once, with the safeguarded Newton steps of `_decreasing_root`. The brackets are tight from the start,
    for sigmoid(x_min - t) and sigmoid(x_max - t) bound the mean mask.
    """
    sizes, group, mass = floors.sizes(), floors.group, floors.mass
    zeros = torch.zeros_like(mass)
    share = torch.logit((mass / sizes).clamp(0, 1))
    inside = share.isfinite() & (sizes > 0)
    minimum = torch.full_like(mass, math.inf).scatter_reduce(0, group, x, "amin")
    maximum = torch.full_like(mass, -math.inf).scatter_reduce(0, group, x, "amax")
    low = torch.where(inside, minimum - share, 0.0)
    high = torch.where(inside, maximum - share, 0.0)
    t = (low + high) / 2
    previous = torch.full_like(mass, math.inf)
    for _ in range(_MAX_ITERATIONS):
        masks = torch.sigmoid(x - t[group])
        excess = zeros.index_add(0, group, masks) - mass
        low, high = torch.where(excess >= 0, t, low), torch.where(excess >= 0, high, t)
        middle = (low + high) / 2
        done = ~inside | (excess.abs() <= _TOLERANCE * mass) | (middle <= low) | (middle >= high)
        if bool(done.all()):
            break
        newton = t + excess / zeros.index_add(0, group, masks * (1 - masks))
        good = (low < newton) & (newton < high) & (excess.abs() < 0.5 * previous)
        previous = excess.abs()
        t = torch.where(done, t, torch.where(good, newton, middle))
    return torch.where(inside, t, torch.where(mass > 0, -math.inf, math.inf))


def _decreasing_root(
    evaluate: Callable[[float], tuple[float, float]], low: float, high: float, start: float, tolerance: float
) -> tuple[float, float, int]:
    """Root of a decreasing function that is above zero at `low` and below at `high`, its value there, and the number of
    evaluations.

    `evaluate` gives the value and minus the slope. A Newton step that leaves the bracket, or that does not halve the
    value, is followed by a bisection.
    """
    t = start if low < start < high else (low + high) / 2
    value = previous = math.inf
    for iteration in range(1, _MAX_ITERATIONS + 1):
        value, slope = evaluate(t)
        if abs(value) <= tolerance:
            return t, value, iteration
        if value > 0:
            low = t
        else:
            high = t
        if abs(value) <= _STEPS * math.ulp(t) * slope:
            return t, value, iteration  # no number near t does better
        newton = t + value / slope if slope > 0 else math.nan
        good = low < newton < high and abs(value) < 0.5 * previous
        previous = abs(value)
        following = newton if good else (low + high) / 2
        if following in (low, high) or following == t:
            return t, value, iteration
        t = following
    return t, value, _MAX_ITERATIONS


def budget_price(problem: TransportProblem, result: TransportResult, gradient: Tensor) -> float:
    """-mu: how much a loss falls for each unit of cost that the budget gains, to first order.

    Args:
        problem: what was solved.
        result: its exact solution.
        gradient: of the loss with respect to the masks, shape [n,].

    Returns:
        The price; 0 where no mask moves with the budget.
    """
    masks = result.masks.detach().to(torch.float64)
    v = (1 - masks).mul_(masks)
    if problem.floors is not None:
        v *= ~result.at_floor[problem.floors.group]
    return -float(_mu(v, problem.cost(masks)[1], gradient.to(torch.float64)))


def _mu(v: Tensor, unit_costs: Tensor, gradient: Tensor) -> Tensor:
    """sum(v g) / sum(v c) over the units that no floor holds, shape (); 0 where none of them moves."""
    weight = v @ unit_costs
    return torch.where(weight > 0, (v @ gradient) / weight, 0.0)


class _Masks(torch.autograd.Function):
    """Hands out masks that are solved already, and differentiates them as the module's docstring says."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        scores: Tensor,
        masks: Tensor,
        unit_costs: Tensor,
        held: Tensor | None,
        floors: Floors | None,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(masks, unit_costs, held)
        ctx.floors, ctx.epsilon, ctx.dtype = floors, epsilon, scores.dtype
        return masks.to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        masks, unit_costs, held = ctx.saved_tensors
        g = gradient.to(torch.float64)
        v = (1 - masks).mul_(masks)
        benefit = torch.addcmul(g, unit_costs, _mu(v if held is None else v * ~held, unit_costs, g), value=-1)
        if held is not None:
            group, groups = ctx.floors.group, len(ctx.floors.mass)
            zeros = torch.zeros(groups, dtype=v.dtype, device=v.device)
            spread = zeros.index_add(0, group, v)
            own = torch.where(spread > 0, zeros.index_add(0, group, v * benefit) / spread, 0.0)
            benefit = torch.where(held, benefit - own[group], benefit)
        return (benefit.mul_(v).mul_(2.0 / ctx.epsilon)).to(ctx.dtype), None, None, None, None, None
