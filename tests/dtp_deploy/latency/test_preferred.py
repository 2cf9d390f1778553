"""Preferred widths when channels are chosen, and what the report says about them."""

import pytest
import torch
from torch import nn

from dtp_deploy.budget import parse_budget
from dtp_deploy.cost import macs_cost
from dtp_deploy.graph import find_groups
from dtp_deploy.latency import explain_deviations
from dtp_deploy.prune import ChannelMasks, make_plan
from dtp_deploy.prune.plan import fingerprint_of


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 5))


def masks_on(model: nn.Module, preferred: list[tuple[int, ...]] | None, scope: str = "global") -> ChannelMasks:
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    budget = parse_budget("macs", "40%", scope=scope)  # type: ignore[arg-type]
    return ChannelMasks(model, groups, budget, steps=1, cost=macs_cost(model, groups), preferred=preferred)


@pytest.mark.parametrize("scope", ["global", "per-layer"])
def test_only_preferred_widths_are_chosen(scope: str, model: nn.Module) -> None:
    masks = masks_on(model, [(4, 8, 16), (6, 12, 24)], scope)
    units = [len(choice.kept_units) for choice in masks.choose().groups if choice.frozen_because is None]
    assert units[0] in (4, 8, 16)
    assert units[1] in (6, 12, 24)
    assert masks.cost_of_plan(masks.choose()) <= masks.limit
    masks.detach()


def test_a_group_with_no_preferred_width_keeps_all(model: nn.Module) -> None:
    masks = masks_on(model, [(16,), tuple(range(1, 25))])
    assert next(iter(masks.choose().widths().values())) == 16
    masks.detach()


def test_a_hole_above_the_floor_does_not_make_a_budget_impossible(model: nn.Module) -> None:
    masks = masks_on(model, [(2, 16), (2, 24)])
    assert min(masks.floors) > 2
    plan = masks.choose()
    assert sorted(plan.widths().values())[:2] in ([2, 5], [5, 16])  # and the outputs, which stay
    assert masks.cost_of_plan(plan) <= masks.limit
    masks.detach()


def test_learned_widths_are_those_of_the_masks(model: nn.Module) -> None:
    masks = masks_on(model, None)
    learned = masks.learned_widths()
    expected = [int((part >= 0.5).sum()) for part in torch.split(masks.result.masks.detach(), [16, 24])]
    assert list(learned.values()) == expected
    masks.detach()


def test_the_report_counts_deviations_and_names_the_biggest(model: nn.Module) -> None:
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    plan = make_plan(groups, {"0": range(16), "2": range(12)}, fingerprint_of(model))
    assert explain_deviations({"0": 9, "2": 17}, plan, [(16,), (12, 24)], groups) == [
        "1 of 2 groups have another width than the masks learned, to suit the target and the measured latency; the "
        "largest change is 2: 17 to 12 of 24 channels.",
        "1 of 2 groups keep their full width, as no smaller one is faster on the target; the one that the masks cut "
        "most is 0: 9 of 16 channels.",
    ]
    predicted = explain_deviations({"0": 9, "2": 17}, plan, [(16,), (12, 24)], groups, predicted=True)
    assert "to suit the target and the predicted latency" in predicted[0]
    assert explain_deviations({"0": 16, "2": 12}, plan, [(8, 16), (12, 24)], groups) == []
    assert explain_deviations({"0": 9, "2": 17}, plan, None, groups) == []
