"""Closing the loop: choose, look at what it really costs, correct along the learned order, until the limit is met."""

from __future__ import annotations

from collections.abc import Callable

from dtp_deploy.errors import BudgetError
from dtp_deploy.prune import ChannelMasks, PruningPlan

_MAX_TRIES = 8


def close_loop(
    masks: ChannelMasks, used: Callable[[PruningPlan], float], *, fill: float, aim: float = 1.0
) -> PruningPlan:
    """A plan that really keeps the budget, and uses it.

    The masks know the budget through a formula. Here the plan is costed for real, and the formula's limit is moved
    until the real figure is within the budget and close to it: a bisection that starts where proportion points.

    Args:
        masks: with their learned scores.
        used: the real cost of a plan as a share of the budget; at most 1 meets it.
        fill: share of the budget that shall be used before the search stops.
        aim: share that is aimed at; below 1 where `used` is noisy.

    Raises:
        BudgetError: no plan that meets the budget was found; the message says the best.
    """
    limit = masks.limit
    low, high = masks.smallest_cost, masks.dense_cost
    best: tuple[float, PruningPlan] | None = None
    closest = float("inf")
    for attempt in range(_MAX_TRIES):
        plan = masks.choose(limit)
        share = used(plan)
        closest = min(closest, share)
        if share <= 1 and (best is None or share > best[0]):
            best = (share, plan)
        if fill <= share <= 1:
            break
        cost = masks.cost_of_plan(plan)
        if share <= 1:
            low = max(low, cost)
        else:
            high = min(high, cost)
        wanted = limit * aim / share
        # The first corrections trust proportion; later ones halve the bracket, which a staircase cannot fool.
        limit = wanted if attempt < 3 and low < wanted < high else (low + high) / 2
        if masks.choose(limit).widths() == plan.widths():
            break
    if best is None:
        raise BudgetError(
            f"--{masks.budget.kind} {masks.budget} was not met: the best of {_MAX_TRIES} structures reached "
            f"{closest:.1%} of the limit. Give a limit at least {closest * 1.02:.2f} times as large."
        )
    return best[1]
