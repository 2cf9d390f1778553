"""Closing the loop: choose, look at what it really costs, correct along the learned order, until the limit is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dtp_deploy.budget import flag_of
from dtp_deploy.errors import BudgetError
from dtp_deploy.prune import ChannelMasks, PruningPlan

_MAX_TRIES = 8
_TRUST_IN_PROPORTION = 3
_HALVINGS = 12


def close_loop(
    masks: ChannelMasks, used: Callable[[PruningPlan], float], *, fill: float, aim: float = 1.0
) -> PruningPlan:
    """A plan that really keeps the budget, and uses it.

    The masks know the budget through a formula. Here the plan is costed for real, and the formula's limit is moved
    until the real figure is within the budget and close to it: a bisection that starts where proportion points. A
    structure is costed once only.

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
    shares: dict[object, float] = {}
    best: tuple[float, PruningPlan] | None = None
    plan: PruningPlan | None = _plan_at(masks, limit) or _plan_at(masks, high)
    while plan is not None and len(shares) < _MAX_TRIES:
        share = shares[plan.structure] = used(plan)
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
        trusted = [wanted] if len(shares) <= _TRUST_IN_PROPORTION and low < wanted < high else []
        plan = None
        for limit in [*trusted, *_halves(low, high, up=share <= 1)]:
            candidate = _plan_at(masks, limit)
            if candidate is not None and candidate.structure not in shares:
                plan = candidate
                break
    if best is None:
        closest = min(shares.values())
        raise BudgetError(
            f"{flag_of(masks.budget.kind)} {masks.budget} was not met: the best of {len(shares)} structures reached "
            f"{closest:.1%} of the limit. Give a limit at least {closest * 1.02:.2f} times as large."
        )
    return best[1]


def _halves(low: float, high: float, up: bool) -> Iterator[float]:
    """The middle of a bracket; then, where that gives nothing new, middles ever closer to one of its ends."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        yield middle
        low, high = (middle, high) if up else (low, middle)


def _plan_at(masks: ChannelMasks, limit: float) -> PruningPlan | None:
    """What the masks choose within a limit; None where the widths allowed there cost more."""
    try:
        return masks.choose(limit)
    except BudgetError:
        return None
