"""The choice of channels, with random chains of groups: within the limit always, and nothing left that would fit."""

import math
import re
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtp_deploy.cost import ChannelCount, NetworkCost
from dtp_deploy.errors import BudgetError
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.prune.choice import (
    WidthLevels,
    allowed_widths,
    choose_channels,
    even_widths,
    floor_units,
    kept_counts,
    raised_to_floors,
    uniform_ratio,
)


def chain_cost(units: list[int], factors: list[float]) -> NetworkCost:
    """Cost of layers in a row: factor_k * w_k * w_(k+1), with one channel before and behind, and a constant of 3."""
    groups = len(units)
    before, behind = torch.eye(groups + 1, groups, dtype=torch.float64).roll(1, 0), torch.eye(groups + 1, groups)
    before[0] = 0
    fixed = torch.zeros(groups + 1, dtype=torch.float64)
    first, last = fixed.clone(), fixed.clone()
    first[0], last[-1] = 1, 1
    return NetworkCost(torch.tensor(factors, dtype=torch.float64), (first, last), (before, behind.double()), 3.0)


def vector(widths) -> torch.Tensor:
    return torch.tensor([float(width) for width in widths], dtype=torch.float64)


@st.composite
def choices(draw):
    """Groups, scores with ties among them, a cost, allowed widths, and a limit between nothing and everything."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    groups = [ChannelGroup(f"g{n}", units, draw(st.integers(1, 4)), ()) for n, units in enumerate(sizes)]
    factors = draw(st.lists(st.floats(0.1, 100), min_size=len(sizes) + 1, max_size=len(sizes) + 1))
    score = st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100))
    scores = [torch.tensor(draw(st.lists(score, min_size=n, max_size=n)), dtype=torch.float64) for n in sizes]
    round_to = draw(st.sampled_from([1, 2, 3, 8]))
    levels = [allowed_widths(group, draw(st.integers(1, group.units)), round_to) for group in groups]
    cost = chain_cost(sizes, factors)
    dense = float(cost(vector(sizes))[0])
    return groups, scores, cost, levels, draw(st.floats(0.01, 1.1)) * dense


@given(choices())
@settings(max_examples=200)
def test_within_the_limit_and_nothing_left_that_fits(case):
    groups, scores, cost, levels, limit = case
    smallest = float(cost(vector(level.units[0] for level in levels))[0])
    if smallest > limit:
        message = (
            f"The smallest widths allowed cost {smallest:.6g}, above the limit of {limit:.6g}. Give a larger budget, "
            "or a smaller --round-to."
        )
        with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
            choose_channels(groups, scores, cost, limit, levels)
        return
    kept = choose_channels(groups, scores, cost, limit, levels)
    counts = kept_counts(kept, groups)
    assert float(cost(counts)[0]) <= limit
    for number, (group, score, level) in enumerate(zip(groups, scores, levels, strict=True)):
        units = kept[group.name]
        assert units == sorted(set(units))
        assert len(units) in level.units
        removed = sorted(set(range(group.units)) - set(units))
        if removed:  # the highest scores stay, and among equal ones the first
            assert min((score[u].item(), -u) for u in units) > max((score[u].item(), -u) for u in removed)
        position = level.units.index(len(units))
        if position + 1 < len(level.units):
            wider = counts.clone()
            wider[number] = level.units[position + 1]
            assert float(cost(wider)[0]) > limit


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


def test_floors_keep_a_group_that_the_scores_would_give_up():
    groups = [ChannelGroup("loud", 10, 1, ()), ChannelGroup("quiet", 10, 1, ())]
    scores = [torch.ones(10, dtype=torch.float64) * 9, torch.zeros(10, dtype=torch.float64)]
    cost = ChannelCount(vector([1, 1]))
    without = choose_channels(groups, scores, cost, 10, [allowed_widths(group, 1) for group in groups])
    assert {name: len(units) for name, units in without.items()} == {"loud": 9, "quiet": 1}
    kept = choose_channels(groups, scores, cost, 10, [allowed_widths(group, 4) for group in groups])
    assert {name: len(units) for name, units in kept.items()} == {"loud": 6, "quiet": 4}


def test_what_the_threshold_leaves_is_filled_with_what_fits():
    # The threshold stops at the expensive unit of "a"; two cheap units of "b" with lower scores still fit.
    groups = [ChannelGroup("a", 2, 1, ()), ChannelGroup("b", 3, 1, ())]
    scores = [vector([9, 5]), vector([8, 2, 1])]
    kept = choose_channels(
        groups, scores, ChannelCount(vector([10, 1])), 13, [WidthLevels((1, 2)), WidthLevels((1, 2, 3))]
    )
    assert kept == {"a": [0], "b": [0, 1, 2]}


def test_a_dear_unit_that_only_just_does_not_fit_stays_and_cheap_ones_make_room():
    # The dear unit fits if two cheap ones that count more go; without it, cheap ones that count for little fit.
    groups = [ChannelGroup("dear", 2, 1, ()), ChannelGroup("cheap", 9, 1, ())]
    scores = [vector([90, 50]), vector([80, 59, 58, 1, 0.8, 0.6, 0.4, 0.2, 0])]
    cost, levels = ChannelCount(vector([10, 1])), [allowed_widths(group, 1) for group in groups]
    assert choose_channels(groups, scores, cost, 21, levels) == {"dear": [0, 1], "cheap": [0]}
    # Where those below are nearly as good, the dear one goes; a dead one beside them, below all, changes nothing.
    groups[1], levels[1] = ChannelGroup("cheap", 16, 1, ()), WidthLevels(tuple(range(1, 17)))
    for dead in (0.0, -1000.0):
        scores[1] = vector([80, 59, 58, *[49] * 8, 5, 4, 3, 2, dead])
        assert choose_channels(groups, scores, cost, 21, levels) == {"dear": [0], "cheap": list(range(11))}


@pytest.mark.parametrize("lowest", [0.0, -4.6, -1000.0])
def test_one_unit_far_below_the_others_does_not_decide_who_makes_room(lowest):
    groups = [ChannelGroup(name, 2, 1, ()) for name in ("dear", "good", "poor", "dead")]
    scores = [vector([4, 0.4]), vector([5, 3]), vector([5, 0.5]), vector([0.2, lowest])]
    levels = [allowed_widths(group, 1) for group in groups]
    kept = choose_channels(groups, scores, ChannelCount(vector([10, 1, 2, 0.5])), 25.5, levels)
    assert {name: len(units) for name, units in kept.items()} == {"dear": 2, "good": 2, "poor": 1, "dead": 2}


def test_the_choice_does_not_depend_on_the_order_of_the_groups():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        sizes = torch.randint(2, 7, (3,), generator=generator).tolist()
        factors = (0.2 + torch.rand(4, dtype=torch.float64, generator=generator) * 5).tolist()
        in_row = chain_cost(sizes, factors)
        groups = [ChannelGroup(f"g{n}", size, 1, ()) for n, size in enumerate(sizes)]
        scores = [torch.rand(size, dtype=torch.float64, generator=generator) for size in sizes]
        smallest, dense = (float(in_row(vector(widths))[0]) for widths in ([1] * 3, sizes))
        limit = smallest + float(torch.rand((), dtype=torch.float64, generator=generator)) * (dense - smallest)
        choices = []
        for order in permutations(range(3)):
            back = torch.argsort(torch.tensor(order))

            def cost(widths, back=back, in_row=in_row):
                value, gradient = in_row(widths[back])
                return value, torch.zeros_like(gradient).index_copy_(0, torch.argsort(back), gradient)

            shuffled = [groups[n] for n in order]
            levels = [allowed_widths(group, 1) for group in shuffled]
            choices.append(choose_channels(shuffled, [scores[n] for n in order], cost, limit, levels))
        assert all(choice == choices[0] for choice in choices)


def test_even_widths_are_the_two_around_a_count():
    level = WidthLevels((8, 16, 20))
    assert even_widths(level, 3.0).units == (8, 16)  # below the smallest: nothing smaller is allowed
    assert even_widths(level, 16.0).units == (16, 20)
    assert even_widths(level, 17.3).units == (16, 20)
    assert even_widths(level, 20.0).units == (20,)
    assert math.isclose(float(kept_counts({"g": [1, 2]}, [ChannelGroup("g", 4, 1, ())])), 2)


def test_a_width_little_below_the_floor_is_as_good_as_the_floor() -> None:
    """Raising it would push all other groups down to their floors."""
    levels = [WidthLevels((8, 32, 64)), *(WidthLevels(tuple(range(9, 65))) for _ in range(3))]
    count = ChannelCount(torch.ones(4, dtype=torch.float64))
    assert raised_to_floors(levels, [9] * 4, count, 74) == levels
    assert raised_to_floors(levels, [12, 9, 9, 9], count, 74)[0].units == (32, 64)
