"""Residual blocks that go as a whole: the proof, the removal, the plan, and which ones go."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.budget import parse_budget
from dtp_deploy.cost import WidthFunction, count_macs, count_parameters, macs_cost, parameter_cost
from dtp_deploy.errors import UsageError
from dtp_deploy.graph import ChannelGroup, Groups, ResidualBlock, find_blocks, find_groups
from dtp_deploy.graph.groups import modules_of
from dtp_deploy.prune import (
    BlockChoice,
    ChannelMasks,
    Depth,
    PruningPlan,
    blocks_silenced,
    compose,
    make_plan,
    prove,
    remove_blocks,
    remove_channels,
)
from dtp_deploy.prune.depth import Balance
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.prune.proof import masked, outputs_of, relative_difference
from dtp_deploy.prune.widths import WidthLevels
from dtp_deploy.testing.blocks import BasicBlock, conv_bn
from dtp_deploy.testing.zoo import ZOO, randomise

IMAGE = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network(blocks: int = 3) -> nn.Sequential:
    """A stem, residual blocks of 8 channels, a head; weights and statistics as of a trained network."""
    stem = [conv_bn(3, 8), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    model = nn.Sequential(*stem, *(BasicBlock(8, 8) for _ in range(blocks)), *tail)
    randomise(model, 0)
    return model


def groups_of(model: nn.Module, inputs: Tensor = IMAGE) -> Groups:
    return prove(model, replace(find_groups(model, inputs), blocks=find_blocks(model, inputs)))


def gone(*blocks: ResidualBlock) -> list[BlockChoice]:
    return [BlockChoice(block.name, block.modules, removed=True, reason="too dear") for block in blocks]


@pytest.mark.parametrize("name", ["residual", "bottleneck", "depthwise", "grouped", "squeeze_excite"])
def test_removed_is_silenced(name: str) -> None:
    model, inputs = ZOO[name].model(), ZOO[name].inputs()
    groups = groups_of(model, inputs)
    block = groups.removable[0]
    around = [group for group in groups.prunable if not block.has_inside(group)]
    kept = {group.name: range(1, group.units) for group in around}
    plan = make_plan(groups, kept, fingerprint_of(model), gone(block))

    small = remove_channels(model, plan)

    with masked(model, around, kept), blocks_silenced(model, [block.modules[-1]]):
        wanted = outputs_of(model, (inputs,))
    assert relative_difference(wanted, outputs_of(small, (inputs,))) < 1e-5
    assert relative_difference(outputs_of(model, (inputs,)), wanted) > 1e-3  # and the masks are off again
    assert not [tensor for tensor in small.state_dict() if block.holds(tensor)]
    assert plan.widths() == {
        group.name: 0 if block.has_inside(group) else group.width - group.channels_per_unit * (group in around)
        for group in groups
    }


def test_what_is_left_is_the_input_of_the_block() -> None:
    model = network(1)
    (block,) = find_blocks(model, IMAGE)

    small = remove_blocks(model, block.modules)

    assert torch.equal(small(IMAGE), nn.Sequential(*model[:2], *model[3:])(IMAGE))
    assert count_macs(small, IMAGE) == count_macs(model, IMAGE) - 36 * 2 * 8 * 8 * 9
    small.train()(IMAGE.repeat(2, 1, 1, 1)).sum().backward()


class Views(nn.Module):
    """x + f(x), where f does not run if a layer in it gives another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.relu(self.middle(self.wide(x).view(1, 16, 6, 6))))


class Single(nn.Module):
    """A branch of a single layer, which nothing tells the worth of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Views(), "the model does not run without its layers (RuntimeError: "),
        (Single(), "none of its channels may be pruned, so nothing says what it is worth"),
    ],
)
def test_what_cannot_be_proven_stays(block: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    randomise(model, 0)

    (proven,) = groups_of(model).blocks

    assert proven.kept_because is not None
    assert proven.kept_because.startswith(reason)


def test_the_plan_goes_through_json_and_says_which_version_it_needs() -> None:
    model = network()
    groups = groups_of(model)
    first, second, _ = groups.removable
    choices = [*gone(first), BlockChoice(second.name, second.modules, removed=False, reason="worth it")]
    plan = make_plan(groups, {}, fingerprint_of(model), choices)

    assert PruningPlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["schema_version"] == 2
    assert json.loads(make_plan(groups, {}, "f", choices[1:]).to_json())["schema_version"] == 1
    without = json.loads(make_plan(groups, {}, "f").to_json())
    assert (without["schema_version"], "blocks" in without) == (1, False)
    assert plan.structure != make_plan(groups, {}, fingerprint_of(model)).structure


def test_a_second_plan_is_composed_with_the_first() -> None:
    model = network()
    groups = groups_of(model)
    stem = groups.prunable[0].name
    inner = next(group for group in groups.prunable if groups.removable[1].has_inside(group))
    first = make_plan(groups, {stem: range(6), inner.name: range(5)}, fingerprint_of(model), gone(groups.removable[0]))
    small = remove_channels(model, first)
    later = groups_of(small)
    assert [block.name for block in later.removable] == [block.name for block in groups.removable[1:]]
    second = make_plan(later, {stem: range(1, 6)}, fingerprint_of(small), gone(later.removable[0]))

    both = compose(first, second)

    at_once = remove_channels(model, PruningPlan.from_json(both.to_json()))
    assert torch.equal(at_once(IMAGE), remove_channels(small, second)(IMAGE))
    assert [block.name for block in both.removed_blocks] == [block.name for block in groups.removable[:2]]
    assert not [name for name in both.tensors if groups.removable[1].holds(name)]
    assert both.widths()[inner.name] == 0


def test_a_group_lies_in_a_block_with_all_of_its_tensors_and_not_with_none() -> None:
    groups = groups_of(network(1))
    (block,) = groups.blocks

    assert [block.has_inside(group) for group in groups.prunable] == [False, True]
    assert not block.has_inside(ChannelGroup("output", 5, 1, ()))


def depth_of(model: nn.Module, groups: Groups, cost: object = macs_cost) -> Depth:
    def without(blocks: list[ResidualBlock]) -> WidthFunction:
        return cost(remove_blocks(model, modules_of(blocks)), groups)

    return Depth(groups, without)


def test_the_formula_without_a_block_counts_the_network_without_it() -> None:
    model = network()
    groups = groups_of(model)
    block = groups.removable[1]
    kept = {group.name: range(3) for group in groups.prunable}
    plan = make_plan(groups, kept, fingerprint_of(model), gone(block))
    small = remove_channels(model, plan)
    widths = torch.tensor([0.0 if block.has_inside(group) else 3.0 for group in groups.prunable], dtype=torch.float64)

    assert float(depth_of(model, groups).cost([block])(widths)[0]) == count_macs(small, IMAGE)
    assert float(depth_of(model, groups, parameter_cost).cost([block])(widths)[0]) == count_parameters(small)


def scores_of(groups: Groups, poor: str | None) -> list[Tensor]:
    """One score a unit, from -1 to 1 in every group; in the poor block's, from -1 to -0.6."""
    scores = []
    for group in groups.prunable:
        values = torch.linspace(-1, 1, group.units, dtype=torch.float64)
        inside = any(block.name == poor and block.has_inside(group) for block in groups.blocks)
        scores.append((values - 4) / 5 if inside else values)
    return scores


def levels_of(groups: Groups, floor: int = 2) -> list[WidthLevels]:
    return [WidthLevels(tuple(range(floor, group.units + 1))) for group in groups.prunable]


def test_the_block_whose_floor_holds_poor_channels_goes_and_its_budget_is_used() -> None:
    model = network()
    groups, dense = groups_of(model), count_macs(model, IMAGE)
    depth = depth_of(model, groups)
    poor = groups.removable[1]

    kept, choices = depth.choose(scores_of(groups, poor.name), 0.3 * dense, lambda cost: levels_of(groups))

    assert {choice.name: choice.removed for choice in choices} == {block.name: block is poor for block in groups.blocks}
    plan = make_plan(groups, kept, fingerprint_of(model), choices)
    macs = count_macs(remove_channels(model, plan), IMAGE)
    assert 0.27 * dense < macs <= 0.3 * dense
    wider = sum(len(kept[group.name]) for group in groups.prunable if not poor.has_inside(group))
    never = Depth(replace(groups, blocks=()), lambda blocks: macs_cost(model, groups))
    before, _ = never.choose(scores_of(groups, poor.name), 0.3 * dense, lambda cost: levels_of(groups))
    assert wider > sum(len(before[group.name]) for group in groups.prunable if not poor.has_inside(group))


def test_no_block_goes_where_all_are_alike_or_the_budget_asks_for_nothing() -> None:
    model = network()
    groups, dense = groups_of(model), count_macs(model, IMAGE)
    depth = depth_of(model, groups)

    for poor, share in ((None, 0.3), (groups.removable[1].name, 1.0)):
        _, choices = depth.choose(scores_of(groups, poor), share * dense, lambda cost: levels_of(groups))
        assert [choice.removed for choice in choices] == [False, False, False]
    assert choices[0].reason == "the budget asks for nothing, or removing it would free nothing"


def test_all_blocks_may_go_and_a_block_that_may_not_says_why() -> None:
    model = network()
    groups, dense = groups_of(model), count_macs(model, IMAGE)
    scores = [
        torch.full((group.units,), -0.9 if any(block.has_inside(group) for block in groups.blocks) else 1.0).double()
        for group in groups.prunable
    ]
    scores[0][0] = -1.0
    kept_block = replace(groups.blocks[2], kept_because="kept by --keep 'x'")

    _, choices = depth_of(model, groups).choose(scores, 0.2 * dense, lambda cost: levels_of(groups))
    assert [choice.removed for choice in choices] == [True, True, True]

    held = replace(groups, blocks=(*groups.blocks[:2], kept_block))
    _, choices = depth_of(model, held).choose(scores, 0.3 * dense, lambda cost: levels_of(groups))
    assert [choice.removed for choice in choices] == [True, True, False]
    assert choices[2].reason == "kept by --keep 'x'"


def test_the_balance_is_the_one_of_the_method_page() -> None:
    """One block, by hand: a fixed cost of 10, 4 for every inner channel, two of them kept, 16 for the stream."""

    class Fixed:
        def __init__(self, block: float, each: float) -> None:
            self.block, self.slopes = block, torch.tensor([2.0, each], dtype=torch.float64)

        def __call__(self, widths: Tensor) -> tuple[Tensor, Tensor]:
            return self.block + self.slopes @ widths, self.slopes

    model = network(1)
    groups = groups_of(model)
    assert len(groups.prunable) == 2
    depth = Depth(groups, lambda blocks: Fixed(0.0, 0.0) if blocks else Fixed(10.0, 4.0))
    scores = [torch.linspace(-1, 1, 8, dtype=torch.float64), torch.linspace(-1, 0.4, 8, dtype=torch.float64)]
    kept = {groups.prunable[0].name: [3, 4, 5, 6, 7], groups.prunable[1].name: [6, 7]}

    balance = depth._balance(groups.removable[0], [], kept, scores, threshold=0.5, limit=100.0)

    assert balance.costs == pytest.approx((10 + 8) / 100)
    assert balance.worth == pytest.approx(8 * (0.3 + 1) / (0.5 + 1) / 100)
    assert balance.surplus < 0
    assert str(balance) == "it costs 18.00% of the budget, and its channels are worth 6.93%"
    assert depth._balance(groups.removable[0], [], kept, scores, threshold=-1.0, limit=100.0) == Balance(0.0, 0.0)


def test_masks_choose_blocks_too() -> None:
    model = network()
    groups = groups_of(model)
    budget = parse_budget("macs", "30%")
    masks = ChannelMasks(model, groups, budget, steps=1, depth=depth_of(network(), groups))
    poor = groups.removable[0]
    with torch.no_grad():
        masks.scores.copy_(torch.cat(scores_of(groups, poor.name)))

    plan = masks.choose()

    assert [block.name for block in plan.removed_blocks] == [poor.name]
    assert masks.cost_of_plan(plan) <= masks.limit
    small = remove_channels(network(), plan)
    assert masks.cost_of_plan(plan) == count_macs(small, IMAGE)
    masks.harden(plan)
    with blocks_silenced(model.eval(), [poor.modules[-1]]):
        wanted = outputs_of(model, (IMAGE,))
    assert relative_difference(wanted, outputs_of(remove_channels(model, plan).eval(), (IMAGE,))) < 1e-5


def test_the_same_ratio_in_every_layer_leaves_no_block_out() -> None:
    model = network()
    groups = groups_of(model)
    budget = parse_budget("macs", "30%", "per-layer")

    with pytest.raises(UsageError, match="--per-layer keeps the same ratio in every layer"):
        ChannelMasks(model, groups, budget, steps=1, depth=depth_of(network(), groups))
