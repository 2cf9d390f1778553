"""The choice of channels, with random chains of groups: within the limit always, and nothing left that would fit."""

import re
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings

from dtp_deploy.cost import ChannelCount
from dtp_deploy.errors import BudgetError
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.prune.choice import choose_channels, kept_counts
from dtp_deploy.prune.widths import WidthLevels, allowed_widths

from .chains import chain_cost, choices, vector


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


def test_what_is_kept_is_counted_by_group():
    groups = [ChannelGroup("a", 4, 1, ()), ChannelGroup("b", 3, 2, ())]
    assert kept_counts({"b": [0], "a": [1, 2]}, groups).tolist() == [2, 1]
