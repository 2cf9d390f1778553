"""`ChannelMasks`: what goes on the model and comes off it, and what is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from dtp_deploy.budget import Budget
from dtp_deploy.cost import ChannelCount, count_macs
from dtp_deploy.errors import BudgetError, TrainingError, UsageError
from dtp_deploy.prune import ChannelMasks, MaskSettings, cost_of, remove_channels
from dtp_deploy.prune.proof import outputs_of, relative_difference

from .proven import proven, prunable_entry
from .tiny import batch, groups_of, network, put_on, train

HALF = Budget("channels", 0.5, relative=True)


@prunable_entry
def test_hardened_masks_are_removed_channels_on_every_structure(entry):
    model, groups = proven(entry)
    before = list(model.state_dict())
    types = [type(module) for module in model.modules()]
    masks = ChannelMasks(model, groups, HALF, steps=1)
    assert any(parametrize.is_parametrized(module) for module in model.modules())
    dense = outputs_of(entry.model(), (entry.inputs(),))
    masks.step()
    plan = masks.harden()
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert list(model.state_dict()) == before
    assert [type(module) for module in model.modules()] == types
    wanted = outputs_of(model, (entry.inputs(),))
    found = outputs_of(remove_channels(model, plan), (entry.inputs(),))
    assert relative_difference(wanted, found) < 1e-4
    assert relative_difference(dense, found) > 0.01
    assert masks.cost_of_plan(plan) <= masks.limit


def test_the_weight_of_a_reader_is_its_own_times_the_masks():
    model = network()
    weights = [model[number].weight.detach().clone() for number in (0, 3, 6, 9)]
    masks = put_on(model, HALF, steps=2)
    first, second, third = masks.result.masks.detach().float().split([16, 24, 20])
    torch.testing.assert_close(model[0].weight, weights[0])
    torch.testing.assert_close(model[3].weight, weights[1] * first[:, None, None])
    torch.testing.assert_close(model[6].weight, weights[2] * second[:, None, None])
    torch.testing.assert_close(model[9].weight, weights[3] * third.repeat_interleave(4))


def test_detaching_keeps_the_weights_that_the_masks_make():
    model = network().eval()
    masks = put_on(model, HALF, steps=4)
    train(model, masks, 2)
    wanted = outputs_of(model.eval(), (batch()[0],))
    masks.detach()
    assert relative_difference(wanted, outputs_of(model, (batch()[0],))) == 0
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_choosing_leaves_the_model_alone_and_hardening_can_take_another_plan():
    model = network()
    masks = put_on(model, Budget("macs", 0.5, relative=True), steps=3)
    train(model, masks, 3)
    before = copy.deepcopy(model.state_dict())
    smaller = masks.choose(0.3 * masks.dense_cost)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert masks.harden(smaller) is smaller
    small = remove_channels(model.eval(), smaller)
    images = batch()[0]
    assert relative_difference(outputs_of(model, (images,)), outputs_of(small, (images,))) < 1e-4
    assert count_macs(small, images[:1]) == pytest.approx(masks.cost_of_plan(smaller))
    assert masks.cost_of_plan(smaller) <= 0.3 * masks.dense_cost


def test_hardening_early_keeps_undecided_units_alive():
    model = network()
    masks = put_on(model, HALF, steps=100)
    train(model, masks, 1)
    assert masks.undecided > 0.1
    before = model[9].parametrizations.weight.original.detach().clone()
    plan = masks.harden()
    kept = [unit for unit in plan.groups[2].kept_units for _ in range(4)]
    columns = [4 * unit + place % 4 for place, unit in enumerate(kept)]
    factors = model[9].weight[:, columns] / before[:, columns]
    assert factors.min() >= 0.5 - 1e-6
    assert (model[9].weight[:, [c for c in range(80) if c not in columns]] == 0).all()


def test_a_full_budget_prunes_nothing():
    model = network()
    reference = outputs_of(model, (batch()[0],))
    masks = put_on(model, Budget("macs", 1.0, relative=True), steps=2)
    for _ in range(2):
        model(batch()[0]).sum().backward()
        masks.step()
    assert masks.result.masks.detach().min() > 0.98
    plan = masks.harden()
    assert plan.tensors == {}
    assert relative_difference(reference, outputs_of(model, (batch()[0],))) < 1e-4


def test_the_limit_is_absolute_or_a_share():
    relative, absolute = put_on(network(), HALF, 1), put_on(network(), Budget("channels", 30), 1)
    assert relative.dense_cost == absolute.dense_cost == 60
    assert relative.limit == absolute.limit == 30
    assert relative.smallest_cost == 3


def test_size_is_four_bytes_a_parameter():
    model = network()
    groups = groups_of(model)
    widths = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
    size, parameters = (cost_of(Budget(kind, 1), model, groups)(widths)[0] for kind in ("size", "params"))
    assert size == 4 * parameters


LATENCY = (
    "A latency budget needs a cost learned from the target: give ChannelMasks(..., cost=..., limit=...), or use "
    "dtp_deploy.compress."
)


def test_a_latency_budget_needs_a_cost():
    with pytest.raises(UsageError) as caught:
        put_on(network(), Budget("latency", 5.0), steps=1)
    assert str(caught.value) == LATENCY


def test_a_latency_budget_with_a_cost_and_a_limit_of_its_own():
    model = network()
    cost = ChannelCount(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    masks = ChannelMasks(model, groups_of(model), Budget("latency", 5.0), steps=2, cost=cost, limit=6.0)
    assert masks.limit == 6.0
    assert masks.dense_cost == pytest.approx(0.1 * 16 + 0.2 * 24 + 0.3 * 20)
    train(model, masks, 2)
    assert 5.7 < masks.cost_of_plan(masks.harden()) <= 6.0


def test_the_number_of_steps_may_follow_from_what_the_budget_leaves():
    model, given = network(), []
    masks = ChannelMasks(model, groups_of(model), HALF, steps=lambda ratio: given.append(ratio) or 3)
    assert (masks.steps, given) == (3, [masks.ratio])
    assert 0 < masks.ratio < 1


@pytest.mark.parametrize(("steps", "number"), [(0, 0), (-3, -3), (lambda ratio: 0, 0)])
def test_no_steps(steps, number):
    model = network()
    with pytest.raises(UsageError) as caught:
        put_on(model, HALF, steps=steps)
    assert str(caught.value) == f"steps is {number}; the mask phase needs at least one training step."
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_a_budget_below_one_unit_a_group():
    model = network()
    with pytest.raises(BudgetError) as caught:
        put_on(model, Budget("channels", 0.04, relative=True), steps=1)
    assert str(caught.value) == (
        "--channel-count 4% is a limit of 2.4, but one channel in every layer that may be pruned still costs 3 of the "
        "dense 60. Give 5% or more."
    )
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert put_on(model, Budget("channels", 0.05, relative=True), steps=1).choose().widths() == {
        "0": 1,
        "3": 1,
        "6": 1,
        "9": 5,
    }


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite(poison):
    model = network().eval()
    masks = put_on(model, HALF, steps=9)
    train(model, masks, 2)
    scores = masks.scores.detach().clone()
    (model(batch()[0]) * poison).sum().backward()
    with pytest.raises(TrainingError) as caught:
        masks.step()
    assert str(caught.value) == ("The masks' gradients hold NaN or infinity at step 2. Lower --lr, or check the data.")
    assert torch.equal(masks.scores.detach(), scores)


def test_settings_are_checked_and_used():
    with pytest.raises(UsageError):
        MaskSettings(solver="newton")
    masks = put_on(network(), Budget("macs", 0.6, relative=True), steps=1, round_to=8, floor_share=0.0, floor_units=8)
    assert masks.floors == [8, 8, 8]
    widths = masks.choose().widths()
    assert all(width % 8 == 0 or width == 20 for name, width in widths.items() if name != "9")


def test_a_model_on_half_precision_weights_keeps_its_dtype():
    model = network().bfloat16()
    groups = groups_of(network())
    masks = ChannelMasks(model, groups, HALF, steps=1)
    assert model[3].weight.dtype == torch.bfloat16
    model(batch()[0].bfloat16()).sum().backward()
    masks.step()
    masks.harden()
    assert isinstance(model[3].weight, nn.Parameter)
    assert model[3].weight.dtype == torch.bfloat16


def test_one_iteration_a_step_makes_no_sense_where_every_layer_has_its_own_budget():
    budget = Budget("channels", 0.5, relative=True, scope="per-layer")
    with pytest.raises(UsageError, match=r"--solver sinkhorn-1 shares one budget among the layers; with --per-layer"):
        put_on(network(), budget, steps=1, solver="sinkhorn-1")


def test_a_model_that_has_masks_takes_no_others():
    model = network()
    put_on(model, HALF, steps=1)
    with pytest.raises(UsageError, match=r" has masks already, on '.*'\. Call harden\(\) or detach\(\)"):
        ChannelMasks(model, groups_of(network()), HALF, steps=1)


def test_masks_hardened_for_a_while_are_zero_or_one_in_the_model_and_come_back():
    model = network().eval()
    masks = put_on(model, Budget("macs", 0.4, relative=True), 6)
    train(model, masks, 4)
    model.eval()
    images, _ = batch()
    soft = model(images).detach()
    with masks.hardened():
        inside = masks._padded.detach().clone()
        hard = model(images).detach()
    assert set(inside.tolist()) == {0.0, 1.0}
    assert [int(part.sum()) for part in inside[:-1].split([16, 24, 20])] == list(masks.learned_widths().values())
    assert not torch.equal(hard, soft)
    assert torch.equal(model(images), soft)
    with pytest.raises(RuntimeError, match="stop"), masks.hardened():
        raise RuntimeError("stop")
    assert torch.equal(model(images), soft)


def test_entropy_is_one_bit_for_a_half_and_zero_for_what_is_decided():
    masks = put_on(network(), Budget("channels", 0.5, relative=True), 4)
    masks.result = replace(masks.result, masks=torch.full_like(masks.result.masks, 0.5))
    assert masks.entropy_bits == pytest.approx(1.0)
    masks.result = replace(masks.result, masks=torch.ones_like(masks.result.masks))
    assert masks.entropy_bits == 0.0


def test_a_frozen_reader_loses_channels_and_keeps_its_values():
    model = network()
    model[3].weight.requires_grad_(False)
    wanted = {number: model[number].weight.detach().clone() for number in (3, 6)}
    masks = put_on(model, HALF, steps=8)
    train(model, masks, 3)  # masks are still soft
    plan = masks.harden()
    kept = {choice.name: list(choice.kept_units) for choice in plan.groups}
    assert torch.equal(model[3].weight[:, kept["0"]], wanted[3][:, kept["0"]])
    assert not model[3].weight.requires_grad
    others = [unit for unit in range(16) if unit not in kept["0"]]
    assert not model[3].weight[:, others].any()
    assert not torch.equal(model[6].weight[:, kept["3"]], wanted[6][:, kept["3"]])
