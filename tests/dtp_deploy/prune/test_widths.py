"""The widths that groups may take, with random chains of groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_deploy.cost import ChannelCount
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.prune.widths import (
    WidthLevels,
    allowed_widths,
    even_widths,
    floor_units,
    raised_to_floors,
    uniform_ratio,
)

from .chains import choices, vector


@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 250), st.integers(1, 64))
def test_allowed_widths_are_multiples_or_the_full_width_and_reach_the_floor(units, each, floor, round_to):
    group = ChannelGroup("g", units, each, ())
    widths = allowed_widths(group, floor, round_to).units
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == units
    for width in widths:
        assert width == units or ((width * each) % round_to == 0 and width >= floor)
    fitting = {w for w in range(1, units + 1) if (w * each) % round_to == 0 and w >= floor}
    assert set(widths) == fitting | {units}


@given(choices(), st.floats(0.01, 1.2))
def test_the_uniform_ratio_costs_the_limit(case, share):
    groups, _, cost, _, _ = case
    units = vector(group.units for group in groups)
    dense, nothing = float(cost(units)[0]), float(cost(0 * units)[0])
    limit = share * dense
    ratio = uniform_ratio(cost, units, limit)
    if limit >= dense:
        assert ratio == 1
    elif limit <= nothing:
        assert ratio == pytest.approx(0, abs=1e-9)
    else:
        assert float(cost(ratio * units)[0]) == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.31, 0.5, 0.77, 0.999])
def test_the_uniform_ratio_is_found_in_a_few_newton_steps(share):
    calls = []

    def cost(widths):  # quadratic, as MACs are: once it is found, no bisection may follow
        calls.append(widths)
        return (widths * widths).sum() + widths.sum(), 2 * widths + 1

    units = torch.tensor([16.0, 32.0, 64.0], dtype=torch.float64)
    limit = share * float(cost(units)[0])
    ratio = uniform_ratio(cost, units, limit)
    assert len(calls) <= 13
    assert float(cost(ratio * units)[0]) == pytest.approx(limit, rel=1e-14)


@given(choices(), st.floats(0, 1), st.integers(1, 4))
def test_floors_never_cost_more_than_the_limit_unless_one_unit_each_does(case, share, least):
    groups, _, cost, _, limit = case
    floors = floor_units(groups, cost, limit, share, least)
    assert all(1 <= floor <= group.units for floor, group in zip(floors, groups, strict=True))
    assert floors == [1] * len(groups) or float(cost(vector(floors))[0]) <= limit


def test_floors_are_a_share_of_the_uniform_width():
    groups = [ChannelGroup("a", 100, 1, ()), ChannelGroup("b", 40, 1, ()), ChannelGroup("c", 3, 1, ())]
    cost = ChannelCount(vector([1, 1, 1]))
    assert floor_units(groups, cost, 71.5, share=0.5, least=2) == [25, 10, 2]
    assert floor_units(groups, cost, 71.5, share=0.0, least=5) == [5, 5, 3]
    assert floor_units(groups, cost, 4.0, share=0.5, least=2) == [1, 1, 1]


def test_even_widths_are_the_two_around_a_count():
    level = WidthLevels((8, 16, 20))
    assert even_widths(level, 3.0).units == (8, 16)  # below the smallest: nothing smaller is allowed
    assert even_widths(level, 16.0).units == (16, 20)
    assert even_widths(level, 17.3).units == (16, 20)
    assert even_widths(level, 20.0).units == (20,)


def test_a_width_little_below_the_floor_is_as_good_as_the_floor() -> None:
    """Raising it would push all other groups down to their floors."""
    levels = [WidthLevels((8, 32, 64)), *(WidthLevels(tuple(range(9, 65))) for _ in range(3))]
    count = ChannelCount(torch.ones(4, dtype=torch.float64))
    assert raised_to_floors(levels, [9] * 4, count, 74) == levels
    assert raised_to_floors(levels, [12, 9, 9, 9], count, 74)[0].units == (32, 64)
