"""Budgets of a real width: on 1,120 prunable channels, nearly all of the budget is used, and never more."""

import copy

import pytest
import torch

from dtp_deploy.budget import Budget
from dtp_deploy.cost import count_macs, count_parameters
from dtp_deploy.errors import BudgetError
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import ChannelMasks, MaskSettings, make_plan, prove, remove_channels
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.testing.zoo import randomise
from examples.fashion_resnet import make_wide_model

INPUTS = torch.zeros(1, 1, 28, 28)


@pytest.fixture(scope="module")
def wide():
    model = randomise(make_wide_model(), 0)
    groups = prove(model, find_groups(model, INPUTS))
    assert sum(group.width for group in groups.prunable) == 1120
    return model, groups


def choose(wide, budget, **settings):
    """The masks and their plan; the scores are random, so that the layers' widths are uneven."""
    model, groups = wide
    masks = ChannelMasks(copy.deepcopy(model), groups, budget, steps=1, settings=MaskSettings(**settings))
    with torch.no_grad():
        masks.scores.copy_(torch.randn(len(masks.scores), generator=torch.Generator().manual_seed(1)))
    return masks, masks.choose()


@pytest.mark.parametrize("scope", ["global", "per-layer"])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.77])
@pytest.mark.parametrize(
    ("kind", "count"), [("macs", lambda model: count_macs(model, INPUTS)), ("params", count_parameters)]
)
def test_the_removed_network_uses_nearly_all_of_the_budget(wide, kind, count, share, scope):
    model, _ = wide
    limit = share * count(model)
    masks, plan = choose(wide, Budget(kind, share, relative=True, scope=scope))
    achieved = count(remove_channels(model, plan))
    assert masks.limit == pytest.approx(limit)
    assert achieved == pytest.approx(masks.cost_of_plan(plan))
    assert 0.97 * limit <= achieved <= limit


@pytest.mark.parametrize("kind", ["macs", "params", "size", "channels"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_no_further_step_fits(wide, kind, round_to):
    masks, plan = choose(wide, Budget(kind, 0.4, relative=True), round_to=round_to)
    prunable = [choice for choice in plan.groups if choice.frozen_because is None]
    widths = torch.tensor([float(len(choice.kept_units)) for choice in prunable], dtype=torch.float64)
    assert float(masks.cost(widths)[0]) <= masks.limit
    for number, (choice, level) in enumerate(zip(prunable, masks.levels(), strict=True)):
        larger = [units for units in level.units if units > len(choice.kept_units)]
        if larger:
            wider = widths.clone()
            wider[number] = larger[0]
            assert float(masks.cost(wider)[0]) > masks.limit


def test_widths_are_rounded_or_full(wide):
    _, plan = choose(wide, Budget("macs", 0.4, relative=True), round_to=16)
    widths = {(choice.width_after, choice.width_before) for choice in plan.groups if choice.frozen_because is None}
    assert all(after % 16 == 0 or after == before for after, before in widths)
    assert len(widths) > 5


def test_floors_hold(wide):
    masks, plan = choose(wide, Budget("macs", 0.1, relative=True))
    prunable = [choice for choice in plan.groups if choice.frozen_because is None]
    share = MaskSettings().floor_share * masks.ratio
    for choice, floor in zip(prunable, masks.floors, strict=True):
        assert len(choice.kept_units) >= floor == max(2, int(share * choice.width_before))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.77])
def test_per_layer_keeps_the_same_ratio_everywhere(wide, share):
    masks, plan = choose(wide, Budget("macs", share, relative=True, scope="per-layer"))
    for choice in plan.groups:
        if choice.frozen_because is None:
            assert abs(choice.width_after - masks.ratio * choice.width_before) <= 1


def test_a_global_budget_does_not(wide):
    masks, plan = choose(wide, Budget("macs", 0.3, relative=True))
    off = [abs(c.width_after - masks.ratio * c.width_before) for c in plan.groups if c.frozen_because is None]
    assert max(off) > 3


def test_a_larger_limit_keeps_more_of_the_same_order(wide):
    masks, _ = choose(wide, Budget("macs", 0.3, relative=True))
    small, large = masks.choose(), masks.choose(2 * masks.limit)
    assert masks.limit < masks.cost_of_plan(large) <= 2 * masks.limit
    assert masks.choose(masks.dense_cost).tensors == {}
    assert sum(len(choice.kept_units) for choice in small.groups) < sum(len(c.kept_units) for c in large.groups)


def test_widths_that_are_rounded_too_coarsely_for_the_budget(wide):
    with pytest.raises(BudgetError) as caught:
        choose(wide, Budget("macs", 0.02, relative=True), round_to=32)
    assert "but the narrowest widths that --round-to allows still cost " in str(caught.value)
    assert str(caught.value).endswith("% or more, or a smaller --round-to.")


def test_a_budget_below_one_channel_everywhere_is_refused_before_anything_happens(wide):
    model, groups = wide
    names = list(model.state_dict())
    with pytest.raises(BudgetError) as caught:
        ChannelMasks(model, groups, Budget("params", 100.0), steps=1)
    assert str(caught.value) == (
        "--params 100 is a limit of 100, but one channel in every layer that may be pruned still costs "
        f"{masks_smallest(wide):.6g} of the dense {count_parameters(model):.6g}. Give 0.1% or more."
    )
    assert list(model.state_dict()) == names


def masks_smallest(wide) -> int:
    """Parameters of the network with one unit a group, counted on the network itself."""
    model, groups = wide
    one = make_plan(groups, {group.name: [0] for group in groups.prunable}, fingerprint_of(model))
    return count_parameters(remove_channels(model, one))
