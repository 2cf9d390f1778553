"""Closing the loop, with masks and costs that are formulas."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from dtp_deploy.budget import parse_budget
from dtp_deploy.errors import BudgetError
from dtp_deploy.latency import close_loop
from dtp_deploy.prune import ChannelMasks, PruningPlan


@dataclass(frozen=True)
class Plan:
    width: int

    @property
    def structure(self) -> int:
        return self.width


class Masks:
    """One group of 100 units whose cost is its width; widths are multiples of `step`, from `floor` up."""

    smallest_cost, dense_cost = 1.0, 100.0

    def __init__(self, limit: float, step: int = 1, floor: int = 1) -> None:
        self.limit, self.step, self.floor = limit, step, floor
        self.budget = parse_budget("latency", "50%")

    def choose(self, limit: float) -> Plan:
        width = int(limit) // self.step * self.step
        if width < self.floor:
            raise BudgetError("too small")
        return Plan(min(width, 100))

    def cost_of_plan(self, plan: Plan) -> float:
        return float(plan.width)


def closed(masks: Masks, share: Callable[[int], float], fill: float = 0.93) -> tuple[int, list[int]]:
    """The width that was chosen, and all that were costed."""
    tried: list[int] = []

    def used(plan: Any) -> float:
        tried.append(plan.width)
        return share(plan.width)

    plan: Any = close_loop(cast(ChannelMasks, masks), cast(Callable[[PruningPlan], float], used), fill=fill, aim=0.965)
    return plan.width, tried


def test_a_right_formula_needs_one_look() -> None:
    assert closed(Masks(50), lambda width: width / 51) == (50, [50])


@pytest.mark.parametrize(
    "real", [lambda w: w / 30, lambda w: w / 90, lambda w: (w / 60) ** 2, lambda w: (w + 40) / 100]
)
def test_a_wrong_formula_is_corrected_in_few_looks(real: Callable[[int], float]) -> None:
    width, tried = closed(Masks(50), real)
    assert 0.93 <= real(width) <= 1
    assert len(tried) <= 4
    assert len(set(tried)) == len(tried)


def test_a_staircase_is_used_up_to_its_last_step_that_fits() -> None:
    width, tried = closed(Masks(50, step=16), lambda width: width / 70)
    assert width == 64
    assert len(set(tried)) == len(tried)


def test_a_first_choice_just_above_the_limit_is_not_the_end() -> None:
    """The correction by proportion chooses the same width again: then the search goes on below."""
    assert closed(Masks(50, step=16), lambda width: width / 47)[0] == 32


def test_a_limit_below_every_allowed_width_is_looked_at_from_above() -> None:
    assert closed(Masks(5, step=8, floor=16), lambda width: width / 20)[0] == 16


def test_what_cannot_be_met_says_the_best() -> None:
    with pytest.raises(BudgetError, match=r"--latency 50% was not met: the best of \d structures reached 160\.0% of"):
        closed(Masks(50, step=16, floor=16), lambda width: width / 10)
